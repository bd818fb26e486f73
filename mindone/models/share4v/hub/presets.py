"""Presets: the checkpoints that can be loaded by a short name. To add one, add a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .cache import WEIGHTS
from .errors import HubError

PACKAGE = "mindone.models.share4v"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
VISION_FILES = ("config.json", "preprocessor_config.json", "pytorch_model.bin")


@dataclass(frozen=True)
class Preset:
    """Where a named checkpoint comes from.

    Attributes:
        repo: owner/name on the Hugging Face hub.
        files: files to request from a mirror without a manifest.json; those that are not `is_required` may be missing.
        embedded: directory of a checkpoint inside this package, which is not downloaded.
        size: about how many bytes a download takes, computed from the shapes: 2 bytes for each parameter of a language
            model and its projector, 4 for each of a vision tower. The files themselves could not be listed so far.
    """

    repo: str | None = None
    files: tuple[str, ...] = ()
    embedded: str | None = None
    size: int | None = None


def _shards(count: int) -> tuple[str, ...]:
    names = (f"pytorch_model-{number:05d}-of-{count:05d}.bin" for number in range(1, count + 1))
    return ("config.json", "generation_config.json", *TOKENIZER_FILES, "pytorch_model.bin.index.json", *names)


# Vision towers have rows too: a checkpoint's config.json names them by their `repo`.
PRESETS: dict[str, Preset] = {
    "sharegpt4v-tiny": Preset(embedded="assets/sharegpt4v-tiny"),
    "sharegpt4v-7b": Preset("Lin-Chen/ShareGPT4V-7B", _shards(2), size=2 * (6_738_415_616 + 20_979_712)),
    "sharegpt4v-13b": Preset("Lin-Chen/ShareGPT4V-13B", _shards(3), size=2 * (13_015_864_320 + 31_467_520)),
    "sharegpt4v-7b-vision-tower": Preset(
        "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12", VISION_FILES, size=4 * 303_507_456
    ),
    "sharegpt4v-13b-vision-tower": Preset(
        "Lin-Chen/ShareGPT4V-13B_Pretrained_vit-large336-l12", VISION_FILES, size=4 * 303_507_456
    ),
    # LLaVA-1.5 has the same architecture; its vision tower is CLIP as OpenAI trained it.
    "llava-1.5-7b": Preset("liuhaotian/llava-v1.5-7b", _shards(2), size=2 * (6_738_415_616 + 20_979_712)),
    "llava-1.5-13b": Preset("liuhaotian/llava-v1.5-13b", _shards(3), size=2 * (13_015_864_320 + 31_467_520)),
    "llava-1.5-7b-hf": Preset("llava-hf/llava-1.5-7b-hf", size=2 * (6_738_939_904 + 20_979_712 + 303_507_456)),
    "llava-1.5-13b-hf": Preset("llava-hf/llava-1.5-13b-hf", size=2 * (13_016_519_680 + 31_467_520 + 303_507_456)),
    "llava-1.5-vision-tower": Preset("openai/clip-vit-large-patch14-336", VISION_FILES, size=4 * 427_944_193),
}


def is_required(name: str) -> bool:
    """Return whether a checkpoint is unusable without the file of this name."""
    return (
        name in ("config.json", "tokenizer.model")
        or name.endswith(".index.json")
        or any(Path(name).match(pattern) for pattern in WEIGHTS)
    )


def preset_of(name: str, presets: Mapping[str, Preset] | None = None) -> tuple[str, Preset] | None:
    """Return the row with this name or repository, or None."""
    rows = PRESETS if presets is None else presets
    for key, preset in rows.items():
        if name == key or (preset.repo is not None and name == preset.repo):
            return key, preset
    return None


def embedded_directory(name: str, folder: str) -> Path:
    """Return the directory of a checkpoint that is part of the package.

    Raises:
        HubError: it does not exist.
    """
    directory = Path(str(files(PACKAGE).joinpath(folder)))
    if not (directory / "config.json").is_file():
        raise HubError(f"{name} is part of the package, but is not in {directory}: install mindone-share4v again")
    return directory
