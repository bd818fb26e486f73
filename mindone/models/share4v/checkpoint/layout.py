"""Where the parts of a checkpoint lie: its own directory, and the vision tower's where that is kept apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

from ..configuration import CONFIG_NAME, PREPROCESSOR_NAME, Share4VConfig, read_json
from ..configuration_formats import CLIP_LARGE_336, form_of, named_tower, read_crop_size, tower_places
from ..hub import HubError, is_checkpoint_name, resolve
from .errors import CheckpointError
from .formats import find_weights, stored_tensors
from .weights import VISION_MODEL, is_known, our_name


@dataclass(frozen=True)
class CheckpointLayout:
    """A checkpoint that was found.

    Attributes:
        directory: holds config.json, the weights, the tokenizer's files.
        vision_directory: holds the vision tower's config.json and weights, which take the place of any in
            `directory`; None where the tower is in `directory`, or could not be had and was not needed.
        config: what the config files say.
        form: "original", "llava" or "own".
    """

    directory: Path
    vision_directory: Path | None
    config: Share4VConfig
    form: str


@dataclass(frozen=True)
class _Search:
    """How towers are looked for, and what came of it."""

    cache_dir: str | Path | None
    local_files_only: bool
    weights: bool
    tried: list[str]

    def directory(self, path: Path) -> Path | None:
        if not path.is_dir():
            self.tried.append(f"directory {path}: not there")
            return None
        if not (path / CONFIG_NAME).is_file():
            self.tried.append(f"directory {path}: no {CONFIG_NAME}")
            return None
        if self.weights:
            try:
                find_weights(path)
            except (FileNotFoundError, CheckpointError) as error:
                self.tried.append(f"directory {path}: {error}")
                return None
        return path

    def hub(self, name: str) -> Path | None:
        try:
            return resolve(name, self.cache_dir, self.local_files_only, self.weights)
        except HubError as error:
            self.tried.append(f"hub {name}: {error}")
            return None


def locate(
    name_or_path: str | Path,
    vision_tower: str | Path | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    weights: bool = True,
) -> CheckpointLayout:
    """Find a checkpoint and read its config; download what is on a hub and not here yet.

    The original form keeps its vision tower apart. It is, in this order, what `vision_tower` says, what is inside the
    checkpoint itself, what config.json's mm_vision_tower names as a path (as it stands, from the checkpoint's
    directory, beside it) or on a hub.

    Args:
        name_or_path: a directory, the name of a preset such as "sharegpt4v-7b", or owner/name on a hub.
        vision_tower: directory or name of another vision tower, whose weights are used in place of the checkpoint's.
        cache_dir: where downloads are kept; by default SHARE4V_HOME, else ~/.cache/share4v.
        local_files_only: never touch the network.
        weights: False where only configs, tokenizer and preprocessor files are wanted. A tower that cannot be had is
            then no error: the sizes are those of mm_hidden_size and preprocessor_config.json; without the latter
            CLIP ViT-L/14 at 336 px is taken, which every published checkpoint uses.

    Raises:
        HubError: the checkpoint was found nowhere; the message says what was tried.
        FileNotFoundError: the directory has no config.json, or no weights.
        CheckpointError: the vision tower was found nowhere, or the weights are incomplete.
        ValueError: config.json is of no known form, or contradicts itself.

    Example:
        >>> from mindone.models.share4v.checkpoint import locate
        >>> locate("ShareGPT4V-7B", vision_tower="my-vit").vision_directory  # doctest: +SKIP
        PosixPath('my-vit')
    """
    directory = resolve(name_or_path, cache_dir, local_files_only, weights)
    data = read_json(directory / CONFIG_NAME)
    form = form_of(data)
    if weights:
        find_weights(directory)
    search = _Search(cache_dir, local_files_only, weights, [])
    vision_directory, vision = None, None
    if vision_tower is not None:
        vision_directory = _named_tower(vision_tower, search)
    elif form == "original" and not (weights and _carries_tower(directory)):
        vision_directory = _tower(data, directory, search)
    elif form == "original":
        # The weights are inside; only their config is still to be found, and no download is worth it.
        search = _Search(cache_dir, True, False, [])
        found = _tower(data, directory, search)
        vision = None if found is None else read_json(found / CONFIG_NAME)
    if vision_directory is not None:
        vision = read_json(vision_directory / CONFIG_NAME)
    elif form == "original" and not weights:
        vision = _assumed_tower(data, directory)
    try:
        config = Share4VConfig.from_dict(data, vision)
    except ValueError as error:
        if form != "original" or vision is not None:
            raise
        raise CheckpointError(_default_does_not_fit(directory, error, search)) from error
    return CheckpointLayout(directory, vision_directory, config, form)


def _default_does_not_fit(directory: Path, error: ValueError, search: _Search) -> str:
    return (
        f"{directory} does not fit CLIP ViT-L/14 at 336 px ({error}), and the vision tower that its config.json names "
        f"was not found:\n{_tries(search)}\nPass vision_tower= with the tower's directory or name"
    )


def _named_tower(vision_tower: str | Path, search: _Search) -> Path:
    """Find the tower that the caller asked for; nothing else will do."""
    found = search.directory(Path(vision_tower).expanduser())
    if found is None and is_checkpoint_name(str(vision_tower)):
        found = search.hub(str(vision_tower))
    if found is None:
        raise CheckpointError(f"the vision tower {str(vision_tower)!r} cannot be had:\n{_tries(search)}")
    return found


def _tower(data: dict[str, Any], directory: Path, search: _Search) -> Path | None:
    """Find the tower that config.json names."""
    named = named_tower(data)
    if isinstance(named, str):
        for path in tower_places(named, directory):
            found = search.directory(path)
            if found is not None:
                return found
        found = search.hub(named) if is_checkpoint_name(named) else None
        if found is not None:
            return found
    if not search.weights:
        return None
    raise CheckpointError(
        f"{directory} is a checkpoint of the original form, which keeps its vision tower apart; its config.json names "
        f"{named!r}, which cannot be had:\n{_tries(search)}\n{_ckpt_hint(data, directory)}Pass vision_tower= with the "
        "directory that holds the tower's config.json and weights, or its name on a hub"
    )


def _ckpt_hint(data: dict[str, Any], directory: Path) -> str:
    """The earlier MindSpore port names a tower's weights and its configs apart."""
    weights = data.get("mm_vision_tower_path")
    if not weights:
        return ""
    return f"config.json's mm_vision_tower_path names {weights!r}: copy that file into {directory}, and it is found. "


def _assumed_tower(data: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """Make up for a tower that was not found where pictures alone are to be prepared: the preprocessor states their
    size. None where it does not."""
    if not (directory / PREPROCESSOR_NAME).is_file():
        return None
    edge = read_crop_size(read_json(directory / PREPROCESSOR_NAME))
    hidden = data.get("mm_hidden_size") or CLIP_LARGE_336["hidden_size"]
    heads = gcd(hidden, CLIP_LARGE_336["num_attention_heads"])
    patch = min(edge, CLIP_LARGE_336["patch_size"])
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "image_size": edge, "patch_size": patch}
    return {**CLIP_LARGE_336, **sizes}


def _carries_tower(directory: Path) -> bool:
    names = [tensor.name for tensor in stored_tensors(find_weights(directory))]
    return any((our_name(name) or "").startswith(VISION_MODEL) for name in names if is_known(name))


def _tries(search: _Search) -> str:
    return "\n".join(f"- {line}" for line in search.tried) or "- config.json names none"
