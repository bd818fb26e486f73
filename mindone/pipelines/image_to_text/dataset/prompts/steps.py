"""Steps: prompts of a task that contain earlier texts of the same input, as in "Shorten: {long}"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..state.tasks import Task
from .variables import fill


def next_steps(task: Task, answers: Sequence[str | None], index: int) -> Iterator[tuple[int, str]]:
    """Yield the prompts that can be asked once an answer is known: index and text, variables filled in.

    Args:
        task: the input and its prompts.
        answers: the answers so far, one for each prompt; None where there is none yet.
        index: of the newest answer.

    Raises:
        VariableError: an answer is empty, or contains a special token of the model.
    """
    known = {task.text_of(place): answer for place, answer in enumerate(answers) if answer is not None}
    newest = task.text_of(index)
    for place in range(index + 1, len(answers)):
        needs = task.needs_of(place)
        if newest in needs and known.keys() >= set(needs):
            yield place, fill(task.prompts[place], task.item, {name: known[name] for name in needs})
