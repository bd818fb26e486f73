"""`share4v chat`: answer questions about images, typed on a terminal or read from a pipe."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..printing import one_line, print_error, print_json, print_text
from ..signals import signal_handler
from .common import (
    DONE,
    SOME_FAILED,
    STANDARD_INPUT,
    check_max_pixels,
    failure,
    generation_settings,
    image_name,
    model_options,
    usage_error,
    with_flags,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from mindone.pipelines.image_to_text.chat import ChatSession

PROMPT = "> "


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
        images = _load(arguments)
        if images is None:
            return SOME_FAILED
        answerer = pipeline("image-text-to-text", **model_options(arguments))
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    return _Chat(ChatSession(answerer, images, settings), arguments.json).run()


def _load(arguments: Namespace) -> list[PILImage] | None:
    """Load every image; print the errors and return None if any failed."""
    from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

    images = []
    for source in arguments.images:
        try:
            images.append(load_image(source, arguments.max_image_pixels))
        except ImageLoadError as error:
            print_error(f"{image_name(source)}: {with_flags(arguments, failure(source, error))}")
    return images if len(images) == len(arguments.images) else None


class _Chat:
    """One run of the command."""

    def __init__(self, session: ChatSession, as_json: bool) -> None:
        self.session = session
        self.as_json = as_json
        self.interactive = sys.stdin.isatty()
        self.streams = sys.stdout.isatty() and not as_json

    def run(self) -> int:
        status = DONE
        if self.interactive:
            print_error("ask a question about the image; /help lists the commands")
        for line in self._lines():
            if line in COMMANDS:
                if not COMMANDS[line].act(self.session):
                    break
            elif line.startswith("/") and self.interactive:
                print_error(f"unknown command {line}; the commands are {', '.join(COMMANDS)}")
            elif line and not self._answer(line):
                status = SOME_FAILED
        return status

    def _lines(self) -> Iterator[str]:
        if not self.interactive:
            yield from (line.strip() for line in sys.stdin)
            return
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() line editing and a history)
        with suppress(EOFError):
            while True:
                with signal_handler(signal.default_int_handler):  # so that readline restores the terminal
                    line = input(PROMPT if sys.stdout.isatty() else "")
                yield line.strip()

    def _answer(self, question: str) -> bool:
        """Print the answer to a question; on failure, print the error and return False."""
        pieces = []
        try:
            with _stop_on_ctrl_c(self.interactive) as stopped:
                for piece in self.session.ask(question):
                    pieces.append(piece)
                    if self.streams:
                        print_text(piece.text, end="")
                    if stopped:
                        break
        except ValueError as error:
            print_error(f"{error}; /reset starts a new conversation" if self.session.messages else str(error))
            if self.as_json:
                print_json({"question": question, "error": str(error)})
            return False
        if stopped:
            print_text("")
            print_error("stopped; this question and its answer are left out of the conversation")
            return True
        answer = "".join(piece.text for piece in pieces).strip()
        if self.as_json:
            last = pieces[-1]
            print_json(
                {
                    "question": question,
                    "answer": answer,
                    "tokens": last.generated_tokens,
                    "seconds": round(last.seconds, 3),
                    "finish_reason": last.finish_reason,
                }
            )
        else:
            print_text("" if self.streams else one_line(answer))
        return True


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


@dataclass(frozen=True)
class _ChatCommand:
    """A command of the chat itself; `act` returns False to end the chat."""

    summary: str
    act: Callable[[ChatSession], bool]


def _help(_: ChatSession) -> bool:
    for name, command in COMMANDS.items():
        print_error(f"{name:8}{command.summary}")
    return True


def _reset(session: ChatSession) -> bool:
    session.reset()
    print_error("new conversation about the same images")
    return True


def _exit(_: ChatSession) -> bool:
    return False


COMMANDS = {
    "/help": _ChatCommand("list the commands", _help),
    "/reset": _ChatCommand("start a new conversation about the same images", _reset),
    "/exit": _ChatCommand("leave the chat (also Ctrl-D)", _exit),
}
