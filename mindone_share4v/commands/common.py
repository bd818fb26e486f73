"""What the commands share: settings of a command line, and how things are said on a terminal or in a line."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from mindone.pipelines.image_to_text.settings import check_settings

if TYPE_CHECKING:
    from mindone.models.share4v.processing.image_loading import ImageSource

DONE, SOME_FAILED, WRONG_USE = 0, 1, 2
STANDARD_INPUT = "-"
_SAMPLING_ONLY = ("top_p", "top_k")
_LENGTHS = ("max_new_tokens", "min_new_tokens", "num_beams")
_SETTINGS = (*_LENGTHS, "temperature", "repetition_penalty", "seed", *_SAMPLING_ONLY)
_MODEL = (
    "model",
    "vision_tower",
    "dtype",
    "kv_cache_dtype",
    "cache_dir",
    "local_files_only",
    "conversation",
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_settings(arguments: Namespace) -> dict[str, Any]:
    """Return the arguments of `generate` that a command line asks for; a temperature above 0 turns sampling on.

    Raises:
        ValueError: a value is outside its range.
    """
    settings = {name: getattr(arguments, name) for name in _SETTINGS if getattr(arguments, name, None) is not None}
    settings["stop"] = tuple(arguments.stop)
    settings["do_sample"] = settings["temperature"] > 0
    if not settings["do_sample"]:
        idle = [f"--{name.replace('_', '-')}" for name in _SAMPLING_ONLY if name in settings]
        if idle:
            print_error(f"note: {' and '.join(idle)} change nothing without a --temperature above 0")
    return check_settings(None, settings)


def model_options(arguments: Namespace) -> dict[str, Any]:
    """Return the arguments of `pipeline` that say which model to load and how."""
    return {name: getattr(arguments, name) for name in _MODEL}


def read_image(source: str) -> ImageSource:
    """Return what a command line's IMAGE means: `-` is the bytes of standard input, all else stays as it is."""
    return sys.stdin.buffer.read() if source == STANDARD_INPUT else source


def image_name(source: str) -> str:
    """Name a command line's IMAGE in a short line."""
    from mindone.models.share4v.processing.image_loading import describe

    return one_line(describe(source))


def failure(source: ImageSource, error: Exception) -> str:
    """Return why a picture failed, without its name, which the errors of `load_image` begin with."""
    from mindone.models.share4v.processing.image_loading import describe

    return one_line(str(error).removeprefix(f"{describe(source)}: "))


def print_error(message: str) -> None:
    """Say something on standard error."""
    print(f"share4v: {message}", file=sys.stderr, flush=True)


def usage_error(error: Exception) -> int:
    """Say what is wrong with how the command was called, and return its exit status."""
    print_error(f"error: {error}")
    return WRONG_USE


def print_json(record: dict[str, Any]) -> None:
    """Print one object as a line, at once."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    print(json.dumps(record, ensure_ascii=encoding != "utf8"), flush=True)


def one_line(text: str) -> str:
    """Make one line of a text: runs of line ends and tabs become a space, other control characters vanish."""
    return visible(" ".join(part.strip() for part in text.replace("\t", "\n").splitlines() if part.strip()))


def visible(text: str) -> str:
    """Leave out control characters, with which a text could steer a terminal; line ends and tabs stay."""
    return _CONTROLS.sub("", text)
