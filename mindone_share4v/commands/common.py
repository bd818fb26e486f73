"""What the commands share: options for the model and for generation, names of images, and usage errors."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.load_options import LoadOptions, option_names
from mindone.pipelines.image_to_text.settings import check_settings

from ..printing import one_line, print_error
from .exit_status import USAGE_ERROR

if TYPE_CHECKING:
    from mindone.models.share4v.processing.image_loading import ImageSource

STANDARD_INPUT = "-"
DEFAULT_MAX_NEW_TOKENS = 256  # of `caption` without a style
_SAMPLING_ONLY = ("top_p", "top_k", "min_p")
_GENERATION = (
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "temperature",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "seed",
    *_SAMPLING_ONLY,
)
# Names of one word that errors of the libraries start with.
_PLAIN_NAMES = (
    "adapter",
    "format",
    "out",
    "actors",
    "attempts",
    "captions",
    "cpus",
    "dtype",
    "fit",
    "frames",
    "limit",
    "numa",
    "replicas",
    "restart",
    "seed",
    "temperature",
    "template",
    "texts",
    "workers",
)
_FLAGS = {"texts": "--text"}  # of arguments whose flag has another name
# Errors of the libraries name an argument and then its flag, as in "pass restart (--restart)".
_NAME_AND_FLAG = re.compile(r"\b\w+ \((--[a-z-]+)\)")


def generation_settings(arguments: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `generate` that the command line asks for.

    A temperature above 0 turns sampling on.

    Raises:
        ValueError: a value is outside its range.
    """
    settings = {name: getattr(arguments, name) for name in _GENERATION if getattr(arguments, name, None) is not None}
    settings["stop"] = tuple(arguments.stop)
    settings.setdefault("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
    settings["do_sample"] = settings["temperature"] > 0
    if settings["do_sample"] and settings.get("num_beams", 1) > 1:
        raise ValueError("--num-beams above 1 cannot be combined with a --temperature above 0: leave one of them out")
    print_unused_sampling(arguments)
    return check_settings(None, settings)


def print_unused_sampling(arguments: Namespace) -> None:
    """Print a note if flags for sampling are given without a temperature that turns it on."""
    unused = [flag_of(name) for name in _SAMPLING_ONLY if getattr(arguments, name) is not None]
    if unused and not arguments.temperature > 0:
        print_error(f"note: {' and '.join(unused)} have no effect without a --temperature above 0")


def count_of(count: int, noun: str) -> str:
    """Return a count with its noun: "1 image", "3 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def model_options(arguments: Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `pipeline` that say which model to load and how."""
    names = ("model", "conversation", *option_names(LoadOptions))
    return {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}


def read_image(source: str) -> ImageSource:
    """Return the image source that an IMAGE argument stands for: the bytes of standard input for `-`, else itself."""
    from mindone.models.share4v.processing.image_limits import MAX_IMAGE_BYTES

    # One byte more than the limit, so that `load_image` rejects what is too large.
    return sys.stdin.buffer.read(MAX_IMAGE_BYTES + 1) if source == STANDARD_INPUT else source


def check_max_pixels(arguments: Namespace) -> None:
    """Check --max-image-pixels before the model is loaded.

    Raises:
        ValueError: it is not positive.
    """
    from mindone.models.share4v.processing.image_limits import max_pixels

    max_pixels(arguments.max_image_pixels)


def image_name(source: str) -> str:
    """Return a short name of an IMAGE argument, on one line."""
    from mindone.models.share4v.processing.image_loading import describe

    return one_line(describe(source))


def failure(source: ImageSource, error: Exception) -> str:
    """Return why an image failed, without its name, which the errors of `load_image` start with."""
    from mindone.models.share4v.processing.image_loading import describe

    return one_line(str(error).removeprefix(f"{describe(source)}: "))


def usage_error(arguments: Namespace, error: Exception) -> int:
    """Report an error in how the command was called, and return its exit status.

    The libraries name Python arguments in their errors; the report names the flags of the same meaning.
    """
    print_error(f"error: {with_flags(arguments, _words_of(error))}")
    return USAGE_ERROR


def _words_of(error: Exception) -> str:
    """Return an error's message; that of the operating system without its number, and the file first."""
    if type(error).__str__ is OSError.__str__ and isinstance(error, OSError) and error.strerror and error.filename:
        name = error.filename if isinstance(error.filename, str) else os.fsdecode(error.filename)
        return f"{name}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return str(error)


def flag_of(name: str) -> str:
    """Return the flag that sets an argument: --top-p for top_p."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def with_flags(arguments: Namespace, message: str) -> str:
    """Return `message` with the command's flags in place of the Python arguments that it names.

    A name of several words (max_new_tokens) is replaced wherever it stands by itself; a plain word such as dtype only
    at the start of the message, where it must be an argument.

    Example:
        >>> from argparse import Namespace
        >>> from mindone_share4v.commands.common import with_flags
        >>> with_flags(Namespace(max_new_tokens=0, seed=1), "max_new_tokens must be positive, got 0")
        '--max-new-tokens must be positive, got 0'
    """
    message = _NAME_AND_FLAG.sub(r"\1", message)
    for name in vars(arguments):
        if "_" in name:
            # Not inside a path, a dotted name or quotes; `name=True` becomes the flag alone, since it takes no value.
            message = re.sub(rf"(?<![\w./'\"-]){name}(=True)?(?![\w/'\"-]|\.\w)", flag_of(name), message)
        elif name in _PLAIN_NAMES:
            message = re.sub(rf"\A{name}(?=[ :])", flag_of(name), message)
    return message
