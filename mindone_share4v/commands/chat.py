"""`share4v chat`: answer questions about images, typed on a terminal or read from a pipe."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ..printing import one_line, print_error, print_json, print_text
from ..signals import signal_handler
from ..status_line import STATUS
from .chat_commands import Conversation, QuitChat, is_command, load_images, run_command
from .chat_input import questions
from .common import (
    STANDARD_INPUT,
    check_max_pixels,
    generation_settings,
    image_name,
    model_options,
    usage_error,
    with_flags,
)
from .exit_status import DONE, SOME_FAILED

if TYPE_CHECKING:
    from mindone.models.share4v.generation.streaming import GenerationPiece
    from mindone.pipelines.image_to_text.chat import ChatSession


def run(arguments: Namespace) -> int:
    """Load the images and the model, answer until the questions end, and return the exit status."""
    from mindone.pipelines import pipeline
    from mindone.pipelines.image_to_text.chat import ChatSession

    try:
        settings = generation_settings(arguments)
        if STANDARD_INPUT in arguments.images:
            raise ValueError(
                "IMAGE - cannot be used here, since the questions are read from standard input: "
                "give the image as a file"
            )
        check_max_pixels(arguments)
        images = load_images(arguments.images, arguments)
        if images is None:
            return SOME_FAILED
        STATUS.show(f"loading {arguments.model}")
        answerer = pipeline("image-text-to-text", **model_options(arguments))
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    STATUS.clear()
    return _Chat(ChatSession(answerer, images, settings, drop_oldest=True), arguments, settings).run()


class _Chat:
    """One run of the command."""

    def __init__(self, session: ChatSession, arguments: Namespace, settings: dict[str, Any]) -> None:
        self.session = session
        self.arguments = arguments
        self.interactive = sys.stdin.isatty()
        self.streams = sys.stdout.isatty() and not arguments.json
        self.conversation = Conversation(session, list(arguments.images), self._answer, settings, arguments)

    def run(self) -> int:
        status = DONE
        if self.interactive:
            names = ", ".join(map(image_name, self.arguments.images))
            print_error(f"ask a question about {names}; /help lists the commands, /quit leaves")
        with suppress(QuitChat), closing(questions(self.interactive, not self.arguments.no_history)) as lines:
            for line in lines:
                # In a pipe, a line such as "/etc is what?" is a question.
                is_asked = not is_command(line) and not (self.interactive and line.startswith("/"))
                succeeded = self._answer(line, {}) if is_asked else run_command(self.conversation, line)
                if not succeeded and not (self.interactive and not is_asked):
                    status = SOME_FAILED
        return status

    def _answer(self, question: str, changes: dict[str, Any]) -> bool:
        """Print the answer to a question; on failure, print the error and return False."""
        pieces: list[GenerationPiece] = []
        try:
            with _stop_on_ctrl_c(self.interactive) as stopped:
                for piece in self.session.ask(question, changes):
                    if not pieces and self.session.dropped:
                        self._print_dropped()
                    pieces.append(piece)
                    if self.streams:
                        print_text(piece.text, end="")
                    if stopped:
                        break
        except ValueError as error:
            message = with_flags(self.arguments, str(error))
            print_error(f"{message}; /reset starts a new conversation" if self.session.messages else message)
            if self.arguments.json:
                print_json({"question": question, "error": message})
            return False
        if stopped:
            print_text("")
            print_error("stopped; this question and its answer are left out of the conversation")
            return True
        answer = "".join(piece.text for piece in pieces).strip()
        self.conversation.turns.append((question, answer))
        if self.arguments.json:
            print_json(self._record(question, answer, pieces[-1]))
        else:
            print_text("" if self.streams else one_line(answer))
        return True

    def _print_dropped(self) -> None:
        count = self.session.dropped
        turns = "oldest question and its answer" if count == 1 else f"{count} oldest questions and their answers"
        print_error(f"the model's context is full: it no longer sees the {turns}")

    def _record(self, question: str, answer: str, last: GenerationPiece) -> dict[str, Any]:
        record = {
            "question": question,
            "answer": answer,
            "tokens": last.generated_tokens,
            "seconds": round(last.seconds, 3),
            "finish_reason": last.finish_reason,
        }
        return {**record, "dropped_turns": self.session.dropped} if self.session.dropped else record


@contextmanager
def _stop_on_ctrl_c(interactive: bool) -> Iterator[list[int]]:
    """Yield a list that becomes non-empty on Ctrl-C at a terminal; a second Ctrl-C calls the previous handler.

    The caller polls the list between tokens: an exception could be raised inside MindSpore, which may abort on it.
    """
    stopped: list[int] = []
    previous = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        if stopped and callable(previous):
            previous(number, frame)
        stopped.append(number)

    with signal_handler(stop) if interactive else nullcontext():
        yield stopped
