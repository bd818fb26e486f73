"""The commands that can be typed into `share4v chat`: a table of names, and what each of them does."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.home_directory import expand_home
from mindone.models.share4v.suggestions import unknown

from ..printing import one_line, print_error
from .common import count_of, failure, image_name, with_flags

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from mindone.pipelines.image_to_text.chat import ChatSession

RETRY_TEMPERATURE = 0.7  # of /retry after an answer without sampling, which would be the same again


@dataclass
class Conversation:
    """A chat and what was said in it.

    Attributes:
        session: the model's side.
        images: names of the images.
        answer: asks a question, prints the answer and returns whether that succeeded; settings are for that answer.
        settings: arguments of `generate` for all answers.
        arguments: of the command line.
        turns: questions and answers since the start or the last /reset, including those that the model no longer sees.
        retries: number of answers that /retry requested.
    """

    session: ChatSession
    images: list[str]
    answer: Callable[[str, dict[str, Any]], bool]
    settings: dict[str, Any]
    arguments: Namespace
    turns: list[tuple[str, str]] = field(default_factory=list)
    retries: int = 0


@dataclass(frozen=True)
class ChatCommand:
    """A command of the chat; `act` gets the text after its name, and returns whether it succeeded."""

    usage: str
    summary: str
    act: Callable[[Conversation, str], bool]


def run_command(chat: Conversation, line: str) -> bool:
    """Run a command of the chat; return whether it succeeded."""
    name, _, argument = line.partition(" ")
    if name not in COMMANDS:
        print_error(one_line(f"{unknown('command', name, COMMANDS, str)} A question cannot start with /"))
        return False
    return COMMANDS[name].act(chat, argument.strip())


def is_command(line: str) -> bool:
    """Return whether a line starts with the name of a command."""
    return line.partition(" ")[0] in COMMANDS


def load_images(sources: list[str], arguments: Namespace) -> list[PILImage] | None:
    """Load every image; print the errors and return None if any failed."""
    from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

    images = []
    for source in sources:
        try:
            images.append(load_image(source, arguments.max_image_pixels))
        except ImageLoadError as error:
            print_error(f"{image_name(source)}: {with_flags(arguments, failure(source, error))}")
    return images if len(images) == len(sources) else None


def _help(_: Conversation, argument: str) -> bool:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        print_error(f"{command.usage:{width}}  {command.summary}")
    print_error('several lines: end a line with \\, or put the question between """ and """')
    print_error("Ctrl-C: stop an answer, or discard the line that you are typing; arrow up: earlier questions")
    return True


def _reset(chat: Conversation, argument: str) -> bool:
    chat.session.reset()
    chat.turns.clear()
    print_error("new conversation about the same images")
    return True


def _image(chat: Conversation, argument: str) -> bool:
    sources = _paths(argument)
    if not sources:
        print_error("/image needs the path or URL of an image; several are separated by spaces, with quotes if needed")
        return False
    images = load_images(sources, chat.arguments)
    if images is None:
        print_error(f"the conversation is still about {', '.join(map(image_name, chat.images))}")
        return False
    chat.session.reset(images)
    chat.images[:] = sources
    chat.turns.clear()
    print_error(f"new conversation about {', '.join(map(image_name, sources))}")
    return True


def _paths(argument: str) -> list[str]:
    """Return the paths in a command; one path with spaces, as terminals paste it, needs no quotes."""
    expanded = _with_home(argument)
    if not argument or Path(expanded).exists():
        return [expanded] if argument else []
    try:
        return [_with_home(path) for path in shlex.split(argument)]
    except ValueError:  # a quotation mark without its other half
        return [expanded]


def _with_home(path: str) -> str:
    """Return a path with the home directory in place of `~`, if there is one."""
    with suppress(FileNotFoundError):
        return str(expand_home(path)) if path.startswith("~") else path
    return path


def _retry(chat: Conversation, argument: str) -> bool:
    question = chat.session.undo()
    if question is None:
        print_error("there is no question to ask again")
        return False
    chat.retries += 1
    changes: dict[str, Any] = {"seed": chat.retries + chat.settings.get("seed", 0)}
    if not chat.settings.get("do_sample"):
        changes |= {"do_sample": True, "temperature": RETRY_TEMPERATURE}
        print_error(f"asked again with --temperature {RETRY_TEMPERATURE}; at 0 the answer would be the same")
    before = chat.turns.pop() if chat.turns else None
    if chat.answer(question, changes):
        return True
    if before is not None:
        chat.turns.append(before)
    return False


def _save(chat: Conversation, argument: str) -> bool:
    if not argument:
        print_error("/save needs the path of a file: text, or JSON if it ends in .json")
        return False
    path = Path(_with_home(argument))
    try:
        with path.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_transcript(chat, as_json=path.suffix.lower() == ".json"))
    except FileExistsError:
        print_error(one_line(f"{path} exists and was not changed: choose another name"))
        return False
    except OSError as error:
        print_error(one_line(f"{path}: {error.strerror or error}"))
        return False
    print_error(one_line(f"saved {count_of(len(chat.turns), 'question')} and their answers in {path}"))
    return True


def _transcript(chat: Conversation, as_json: bool) -> str:
    if as_json:
        messages = [
            {"role": role, "content": text}
            for turn in chat.turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return json.dumps({"images": chat.images, "messages": messages}, ensure_ascii=False, indent=2) + "\n"
    parts = [f"Images: {', '.join(chat.images)}"]
    for question, answer in chat.turns:
        quoted = "\n".join(f"> {line}" for line in question.splitlines())
        parts += [quoted, answer]
    return "\n\n".join(parts) + "\n"


class QuitChat(Exception):
    """The user leaves the chat."""


def _quit(_: Conversation, argument: str) -> bool:
    raise QuitChat


COMMANDS = {
    "/help": ChatCommand("/help", "list the commands", _help),
    "/image": ChatCommand("/image PATH...", "start a new conversation about other images", _image),
    "/retry": ChatCommand("/retry", "ask the last question again, for another answer", _retry),
    "/reset": ChatCommand("/reset", "start a new conversation about the same images", _reset),
    "/save": ChatCommand("/save PATH", "write the conversation to a new file (.json: as JSON)", _save),
    "/quit": ChatCommand("/quit", "leave the chat (also /exit, Ctrl-D)", _quit),
    "/exit": ChatCommand("/exit", "the same as /quit", _quit),
}
