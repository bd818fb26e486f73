"""Which GGUF files of a repository are meant: one quantization of the language model, and its `mmproj` file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import HubError

SUFFIX = ".gguf"
# What llama.cpp and ollama take of a repository with several quantizations if the user names none.
DEFAULT_QUANTIZATION = "Q4_K_M"
# mmproj files are published in several types; F16 is what most repositories have, and what the vision tower was.
_VISION_TYPES = ("F16", "BF16", "F32", "Q8_0")
_PART = re.compile(r"-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})$")
_QUANTIZATION = re.compile(
    r"(?:^|[-_.])(?P<name>(?:UD-)?I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?(?:16|32))(?=$|[-.])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class GGUFChoice:
    """The files of one GGUF model.

    Attributes:
        language: names of the language model's file, or of its parts in order.
        vision: name of the `mmproj` file; None if there is none, or if none is needed.
        reason: how they were chosen, in a sentence for the user.
        is_default: whether there were others and the user did not say which one is meant.
    """

    language: tuple[str, ...]
    vision: str | None
    reason: str
    is_default: bool = False

    @property
    def names(self) -> list[str]:
        """All names, the small `mmproj` file first: if its download fails, nothing large was downloaded in vain."""
        return [*([] if self.vision is None else [self.vision]), *self.language]


def is_gguf(name: str) -> bool:
    """Return whether this is the name of a GGUF file."""
    return name.lower().endswith(SUFFIX)


def is_projector_name(name: str) -> bool:
    """Return whether a file is an `mmproj` file by its name, which is how llama.cpp finds it in a repository."""
    return is_gguf(name) and "mmproj" in name.lower()


def quantization_of(name: str) -> str:
    """Return the quantization that a file's name states, such as "Q4_K_M"; empty if it states none.

    Example:
        >>> from mindone.models.share4v.hub.gguf_files import quantization_of
        >>> quantization_of("ggml-model-q4_k.gguf"), quantization_of("llava-7b.Q8_0-00001-of-00002.gguf")
        ('Q4_K', 'Q8_0')
    """
    found = [match["name"] for match in _QUANTIZATION.finditer(_stem(name))]
    return found[-1].upper().replace("FP", "F") if found else ""


def choose_gguf(names: Iterable[str], wanted: str = "", mmproj: str | None = None) -> GGUFChoice:
    """Choose the files of one model among those of a repository.

    Args:
        names: of all files.
        wanted: a quantization such as "Q4_0", in any case, or a file's name; empty for the only language model, or of
            several, Q4_K_M.
        mmproj: name of the `mmproj` file; None for the only one, or of several, the one in F16; empty if the caller
            has another.

    Raises:
        HubError: there is no such file, several could be meant, or parts are missing; the message lists what there is.

    Example:
        >>> from mindone.models.share4v.hub.gguf_files import choose_gguf
        >>> choose_gguf(["a-Q4_0.gguf", "a-Q8_0.gguf", "mmproj-a-f16.gguf"], "q8_0").names
        ['mmproj-a-f16.gguf', 'a-Q8_0.gguf']
    """
    found = sorted(filter(is_gguf, names))
    models = _models([name for name in found if not is_projector_name(name)])
    first, reason, is_default = _language(models, wanted)
    vision = _vision([name for name in found if is_projector_name(name)], mmproj)
    shown = first if len(models[first]) == 1 else f"{first} and {len(models[first]) - 1} more parts"
    beside = "no mmproj file" if vision is None and mmproj is None else f"the mmproj file {vision}" if vision else ""
    sentence = f"uses {shown}{f' and {beside}' if beside else ''}{f': {reason}' if reason else ''}"
    return GGUFChoice(tuple(models[first]), vision, sentence, is_default)


def _stem(name: str) -> str:
    return _PART.sub("", name[: -len(SUFFIX)] if is_gguf(name) else name)


def _models(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the parts of each language model, in order, by the name of the first."""
    by_stem: dict[tuple[str, str], list[str]] = {}
    for name in names:
        part = _PART.search(name[: -len(SUFFIX)])
        by_stem.setdefault((_stem(name), "" if part is None else part["count"]), []).append(name)
    return {parts[0]: parts for parts in by_stem.values()}


def _language(models: dict[str, list[str]], wanted: str) -> tuple[str, str, bool]:
    """Return the first file of the language model that is meant, why, and whether that is a default."""
    if not models:
        raise HubError("has no GGUF file of a language model")
    if wanted:
        chosen, reason = _named(models, wanted), ""
    elif len(models) == 1:
        chosen, reason = [*models], ""
    else:
        chosen = [name for name in models if quantization_of(name) == DEFAULT_QUANTIZATION]
        reason = (
            f"it has {len(models)} GGUF language models, and {DEFAULT_QUANTIZATION} is the default; choose another as "
            f"owner/name:TAG, with one of {', '.join(_tags(models))}"
        )
    if len(chosen) != 1:
        what = f"{'several' if chosen else 'no'} GGUF file{'s' if chosen else ''} {wanted or DEFAULT_QUANTIZATION}"
        raise HubError(
            f"has {what}: choose one as owner/name:TAG, where TAG is a quantization or a file's name. It has "
            f"{', '.join(models)}"
        )
    parts = models[chosen[0]]
    stated = _PART.search(parts[0][: -len(SUFFIX)])
    if stated is not None and len(parts) != int(stated["count"]):
        raise HubError(f"has only {len(parts)} of the {int(stated['count'])} parts of {parts[0]}")
    return chosen[0], reason, bool(reason)


def _named(models: dict[str, list[str]], wanted: str) -> list[str]:
    """Return the language models that a tag can mean: a file's name, else a quantization, else the end of a name."""
    exact = [first for first, parts in models.items() if wanted in (*parts, *(name[: -len(SUFFIX)] for name in parts))]
    same = [name for name in models if quantization_of(name) == wanted.upper()]
    bounded = re.compile(rf"(?:^|[-_.]){re.escape(wanted)}(?:$|[-.])", re.IGNORECASE)
    return exact or same or [name for name in models if bounded.search(_stem(name))]


def _tags(models: Iterable[str]) -> list[str]:
    return [quantization_of(name) or name for name in models]


def _vision(names: Sequence[str], mmproj: str | None) -> str | None:
    if mmproj == "" or (not names and mmproj is None):
        return None
    if mmproj is not None:
        if mmproj in names:
            return mmproj
        raise HubError(f"has no file {mmproj}: its mmproj files are {', '.join(names) or 'none'}")
    chosen = preferred_projector(names)
    if chosen is None:
        raise HubError(
            f"has {len(names)} mmproj files: {', '.join(names)}; give the name of the model's own as vision_tower "
            "(--vision-tower)"
        )
    return chosen


def preferred_projector(names: Sequence[str]) -> str | None:
    """Return the `mmproj` file to use: the only one, or of one model's files in several types, the one in F16.

    None if there are several of a type, which are of different models.

    Example:
        >>> from mindone.models.share4v.hub.gguf_files import preferred_projector
        >>> preferred_projector(["mmproj-model-f32.gguf", "mmproj-model-f16.gguf"])
        'mmproj-model-f16.gguf'
    """
    if len(names) == 1:
        return names[0]
    types = {quantization_of(name): name for name in names}
    # Without its type, the name of each must be that of the others: the same model, written several times.
    stems = {_QUANTIZATION.sub("", _stem(name)).lower() for name in names}
    if len(types) != len(names) or len(stems) != 1:
        return None
    return next((types[kind] for kind in _VISION_TYPES if kind in types), None)
