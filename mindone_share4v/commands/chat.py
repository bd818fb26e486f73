"""`share4v chat`: questions about pictures, typed or from a pipe, answered turn by turn."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .common import (
    DONE,
    SOME_FAILED,
    STANDARD_INPUT,
    failure,
    image_name,
    model_options,
    one_line,
    print_error,
    print_json,
    read_settings,
    usage_error,
    visible,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from mindone.pipelines.image_to_text.chat import ChatSession

PROMPT = "> "


def run(arguments: Namespace) -> int:
    """Load pictures and model, answer until the questions end, and return the exit status."""
    from mindone.pipelines import pipeline
    from mindone.pipelines.image_to_text.chat import ChatSession

    try:
        settings = read_settings(arguments)
        if STANDARD_INPUT in arguments.images:
            raise ValueError("standard input is where questions come from: give the picture as a file")
        images = _load(arguments.images)
        if images is None:
            return SOME_FAILED
        answerer = pipeline("image-text-to-text", **model_options(arguments))
    except (ValueError, OSError) as error:
        return usage_error(error)
    return _Chat(ChatSession(answerer, images, settings), arguments.json).run()


def _load(sources: list[str]) -> list[PILImage] | None:
    """Load every picture; None if one failed, which is said."""
    from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

    images = []
    for source in sources:
        try:
            images.append(load_image(source))
        except ImageLoadError as error:
            print_error(f"{image_name(source)}: {failure(source, error)}")
    return images if len(images) == len(sources) else None


class _Chat:
    """One run of the command."""

    def __init__(self, session: ChatSession, as_json: bool) -> None:
        self.session, self.as_json = session, as_json
        self.typed = sys.stdin.isatty()
        self.streams = sys.stdout.isatty() and not as_json

    def run(self) -> int:
        status = DONE
        if self.typed:
            print_error("ask about the picture; /help shows the commands")
        for line in self._lines():
            if line in COMMANDS:
                if not COMMANDS[line].act(self.session):
                    break
            elif line.startswith("/") and self.typed:
                print_error(f"unknown command {line}; there are {', '.join(COMMANDS)}")
            elif line and not self._answer(line):
                status = SOME_FAILED
        return status

    def _lines(self) -> Iterator[str]:
        if not self.typed:
            yield from (line.strip() for line in sys.stdin)
            return
        with suppress(ImportError):
            import readline  # noqa: F401  (input() then edits lines and recalls them)
        with suppress(EOFError):
            while True:
                with _handled_by(signal.default_int_handler):  # so that readline puts the terminal in order
                    line = input(PROMPT if sys.stdout.isatty() else "")
                yield line.strip()

    def _answer(self, question: str) -> bool:
        """Answer and show it; say what went wrong and return False otherwise."""
        pieces = []
        try:
            with _stopped_by_ctrl_c(self.typed) as stopped:
                for piece in self.session.ask(question):
                    pieces.append(piece)
                    if self.streams:
                        print(visible(piece.text), end="", flush=True)
                    if stopped:
                        break
        except ValueError as error:
            print_error(f"{error}; /reset begins anew" if self.session.messages else str(error))
            if self.as_json:
                print_json({"question": question, "error": str(error)})
            return False
        if stopped:
            print(flush=True)
            print_error("stopped; this question and its answer do not count")
            return True
        answer = "".join(piece.text for piece in pieces).strip()
        if self.as_json:
            record: dict[str, Any] = {"question": question, "answer": answer, "tokens": pieces[-1].generated_tokens}
            print_json({**record, "seconds": round(pieces[-1].seconds, 3), "finish_reason": pieces[-1].finish_reason})
        else:
            print("" if self.streams else one_line(answer), flush=True)
        return True


@contextmanager
def _handled_by(act: Callable[[int, Any], Any]) -> Iterator[None]:
    """Let a Ctrl-C call `act` for a while; MindSpore makes a SIGTERM of one that comes while it is at work."""
    before = {number: signal.signal(number, act) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stopped_by_ctrl_c(typed: bool) -> Iterator[list[int]]:
    """Yield a list that a Ctrl-C at the terminal puts something into; a second one does what it did before.

    Nothing is raised, since MindSpore may be at work.
    """
    stopped: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        if stopped and callable(before):
            before(number, frame)
        stopped.append(number)

    with _handled_by(stop) if typed else nullcontext():
        yield stopped


@dataclass(frozen=True)
class _ChatCommand:
    """What a line that is no question does; `act` returns whether the chat goes on."""

    summary: str
    act: Callable[[ChatSession], bool]


def _help(_: ChatSession) -> bool:
    for name, command in COMMANDS.items():
        print_error(f"{name:8}{command.summary}")
    return True


def _reset(session: ChatSession) -> bool:
    session.reset()
    print_error("the conversation begins anew; the pictures stay")
    return True


def _exit(_: ChatSession) -> bool:
    return False


COMMANDS = {
    "/help": _ChatCommand("show this list", _help),
    "/reset": _ChatCommand("forget the questions and answers so far", _reset),
    "/exit": _ChatCommand("leave (Ctrl-D too)", _exit),
}
