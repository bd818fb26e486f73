"""Checkpoint: where the files of a checkpoint are, the vision tower's included, and what its config says."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any

from ..configuration import CONFIG_NAME, PREPROCESSOR_NAME, Share4VConfig, has_file, read_json
from ..configuration_formats import (
    CLIP_LARGE_336,
    ORIGINAL_MODEL_TYPES,
    format_of,
    named_tower,
    read_crop_size,
    tower_paths,
)
from ..home_directory import expand_home
from ..hub import HubError, RepoOptions, is_checkpoint_name, resolve, split_tag
from ..hub.directories import adapter_advice, is_adapter
from ..load_options import CheckpointOptions
from .adapters import Adapter, adapted_config, check_adapters, completed_config, read_adapters
from .errors import CheckpointError
from .formats import find_weights, stored_tensors
from .formats.gguf import SUFFIX
from .gguf.pair import GGUFPair, is_gguf_source, open_pair
from .weights import VISION_MODEL, is_known, our_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found; its weights are not read yet.

    Make it with `open`, and pass it to `Share4V.from_checkpoint` and `Share4VProcessor.from_checkpoint`.

    Attributes:
        directory: holds config.json, the weights and the tokenizer's files; of GGUF files, the language model's file.
        vision_directory: holds the vision tower's config.json and weights, which replace any in `directory`. None if
            the tower is in `directory`, or if it was not found and was not needed.
        config: the content of the config files.
        format: "original", "llava", "own" or "gguf".
        adapters: LoRA adapters that are merged into the weights as they are read.
        gguf: the open files if the format is "gguf", else None.
    """

    directory: Path
    vision_directory: Path | None
    config: Share4VConfig
    format: str
    adapters: tuple[Adapter, ...] = ()
    gguf: GGUFPair | None = None

    def kept_layout(self, dtype: str | None) -> str | None:
        """Return the layout in which a model of this dtype has the checkpoint's own integers, or None; for GGUF only.

        With an adapter there is none: the merged weights are new, and rounded like those of any other checkpoint.
        """
        return None if self.gguf is None or self.adapters else self.gguf.kept_layout(dtype)

    def config_for(self, dtype: str) -> Share4VConfig:
        """Return the config of a model that is loaded with this dtype."""
        layout = self.kept_layout(dtype)
        if layout is None:
            return self.config
        return replace(self.config, quantization=dtype, quantization_layout=layout)

    @classmethod
    def open(
        cls, name_or_path: str | Path, options: CheckpointOptions | None = None, weights: bool = True
    ) -> Checkpoint:
        """Find a checkpoint and read its config; download what is on a hub and not on this machine yet.

        The name is resolved once and each config.json is read once. The config is checked before weights are
        downloaded.

        The original format keeps its vision tower in a separate directory. The tower is, in this order: the one that
        `options.vision_tower` names, the one that the checkpoint contains, or the one that config.json names as
        mm_vision_tower: a path (as given, relative to the checkpoint, or next to it), or a name on a hub.

        Args:
            name_or_path: a directory, the name of a preset such as "sharegpt4v-7b", owner/name on a hub, or a GGUF
                file; `options.vision_tower` is then its mmproj file, by default the one beside it. owner/name:TAG is
                one of a repository's GGUF models, where TAG is a quantization ("Q4_0") or a file's name.
            options: where to look for the files; LoadOptions are accepted too.
            weights: False if only configs, tokenizer and preprocessor files are needed. A vision tower that is not
                found is then not an error: the sizes come from mm_hidden_size and preprocessor_config.json. Without
                that file, CLIP ViT-L/14 at 336 px is assumed, which every published checkpoint uses.

        Raises:
            HubError: the checkpoint was not found; the message lists what was tried.
            FileNotFoundError: the directory has no config.json or no weights.
            CheckpointError: the vision tower was not found, the weights are incomplete, or an adapter is damaged or
                does not fit the model; the message names its tensors.
            ValueError: config.json has an unknown format or contradicts itself.

        Example:
            >>> from mindone.models.share4v.checkpoint import Checkpoint
            >>> Checkpoint.open("sharegpt4v-tiny").format
            'own'
        """
        options = CheckpointOptions() if options is None else options
        path = expand_home(name_or_path)
        if is_gguf_source(path / options.subfolder):
            _refuse_revision(path, options)
            return _open_gguf(path / options.subfolder, options)
        if path.suffix == SUFFIX and not split_tag(str(name_or_path))[1]:
            raise FileNotFoundError(f"there is no file {path}")

        def check_config(directory: Path) -> None:
            _read(directory, options, weights=False)

        mmproj = _mmproj_in_repository(options.vision_tower)
        found = resolve(
            name_or_path,
            options.cache_dir,
            options.local_files_only,
            weights,
            before_weights=check_config,
            repo_options=RepoOptions(options.revision, options.token, options.subfolder, mmproj=mmproj),
        )
        return _open_gguf(found, options) if is_gguf_source(found) else _read(found, options, weights)


def _mmproj_in_repository(vision_tower: str | Path | None) -> str | None:
    """Return which `mmproj` file of a GGUF repository is meant, as in RepoOptions: any, one by its name, or none."""
    if vision_tower is None:
        return None
    name = str(vision_tower)
    return name if name.endswith(SUFFIX) and Path(name).name == name and not Path(name).is_file() else ""


def _refuse_revision(path: Path, options: CheckpointOptions) -> None:
    RepoOptions(options.revision, options.token, options.subfolder).check()
    if options.revision not in (None, "main"):
        raise ValueError(f"revision {options.revision!r} was given, but {path} has none: leave revision out")


def _open_gguf(path: Path, options: CheckpointOptions) -> Checkpoint:
    pair = open_pair(path, options.vision_tower)
    for note in pair.notes:
        logger.info("%s: %s", pair.language.path, note)
    adapters = read_adapters(options)
    config = adapted_config(pair.config, adapters)
    check_adapters(adapters, config, pair.language.path)
    return Checkpoint(pair.language.path, None, config, "gguf", adapters, pair)


def _read(directory: Path, options: CheckpointOptions, weights: bool) -> Checkpoint:
    """Read the config of the checkpoint in `directory`, and find its vision tower."""
    adapters = read_adapters(options)
    data = completed_config(read_json(directory / CONFIG_NAME), adapters, directory)
    checkpoint_format = format_of(data)
    if weights:
        _find_model_weights(directory)
    search = _TowerSearch(options, weights)
    vision_directory, vision = None, None
    _check_tower_of_adapters(adapters, options)
    if options.vision_tower is not None:
        vision_directory = _requested_tower(options.vision_tower, search)
    elif checkpoint_format == "original" and not (weights and _contains_tower(directory)):
        vision_directory = _tower_of_config(data, directory, search)
    elif checkpoint_format == "original":
        # The weights are inside, only their config is missing; it is not worth a download.
        search = _TowerSearch(replace(options, local_files_only=True), weights=False)
        found = _tower_of_config(data, directory, search)
        vision = None if found is None else read_json(found / CONFIG_NAME)
    if vision_directory is not None:
        vision = read_json(vision_directory / CONFIG_NAME)
    elif checkpoint_format == "original" and not weights:
        vision = _assumed_tower(data, directory)
    try:
        config = Share4VConfig.from_dict(data, vision)
    except ValueError as error:
        if checkpoint_format != "original" or vision is not None:
            raise
        raise CheckpointError(
            f"{directory} does not fit CLIP ViT-L/14 at 336 px ({error}), and the vision tower that its config.json "
            f"names was not found:\n{search.report()}\nPass vision_tower (--vision-tower) with the tower's "
            "directory or name"
        ) from error
    config = adapted_config(config, adapters)
    check_adapters(adapters, config, directory)
    return Checkpoint(directory, vision_directory, config, checkpoint_format, adapters)


def _check_tower_of_adapters(adapters: Sequence[Adapter], options: CheckpointOptions) -> None:
    """Refuse to ignore a vision tower that was trained with an adapter; ShareGPT4V's training stores it there."""
    for adapter in adapters:
        tower = adapter.directory / "vision_tower"
        if options.vision_tower is None and (tower / CONFIG_NAME).is_file():
            raise CheckpointError(
                f"adapter {adapter.directory} comes with a vision tower of its own: pass {tower} as vision_tower "
                "(--vision-tower), or the tower that you want to use"
            )


def _find_model_weights(directory: Path) -> None:
    """Check that a checkpoint has weights.

    Raises:
        CheckpointError: it has those of a LoRA adapter only, or an index is damaged.
        FileNotFoundError: there are none.
    """
    try:
        find_weights(directory)
    except FileNotFoundError as error:
        if is_adapter(directory):
            raise CheckpointError(f"{directory} has no weights of a model: {adapter_advice(directory)}") from error
        raise


@dataclass(frozen=True)
class _TowerSearch:
    """A search for a vision tower.

    Attributes:
        options: where to look.
        weights: whether the tower's weights are needed.
        tried: a line for each place where the tower was not found.
    """

    options: CheckpointOptions
    weights: bool
    tried: list[str] = field(default_factory=list)

    def in_directory(self, path: Path) -> Path | None:
        """Return `path` if it holds a tower, else None."""
        if not path.is_dir():
            self.tried.append(f"directory {path}: does not exist")
            return None
        if not (path / CONFIG_NAME).is_file():
            self.tried.append(f"directory {path}: has no {CONFIG_NAME}")
            return None
        if self.weights:
            try:
                find_weights(path)
            except (FileNotFoundError, CheckpointError) as error:
                self.tried.append(f"directory {path}: {error}")
                return None
        return path

    def on_hub(self, name: str) -> Path | None:
        """Return the directory of a tower with a name on a hub, downloaded if necessary; None if it is not found."""
        try:
            repo_options = RepoOptions(token=self.options.token)
            return resolve(
                name, self.options.cache_dir, self.options.local_files_only, self.weights, repo_options=repo_options
            )
        except (HubError, FileNotFoundError) as error:
            self.tried.append(f"hub {name}: {error}")
            return None

    def report(self) -> str:
        """Return a list of what was tried, for an error message."""
        return "\n".join(f"- {line}" for line in self.tried) or "- config.json names none"


def _requested_tower(vision_tower: str | Path, search: _TowerSearch) -> Path:
    """Find the tower that the caller asked for."""
    if str(vision_tower).endswith(SUFFIX):
        raise CheckpointError(
            f"vision_tower {str(vision_tower)!r} is a GGUF file, which only a GGUF language model can use: give that "
            "as the model, or give the directory of a CLIP vision model"
        )
    found = search.in_directory(expand_home(vision_tower))
    if found is None and is_checkpoint_name(str(vision_tower)):
        found = search.on_hub(str(vision_tower))
    if found is None:
        raise CheckpointError(f"the vision tower {str(vision_tower)!r} was not found:\n{search.report()}")
    _check_is_tower(vision_tower, read_json(found / CONFIG_NAME))
    return found


def _check_is_tower(name: str | Path, config: dict[str, Any]) -> None:
    """Refuse a language model or a complete model in place of a vision tower."""
    if "vision_config" in config or "image_size" in config or "vocab_size" not in config:
        return
    kind = "a complete model" if config.get("model_type") in ORIGINAL_MODEL_TYPES else "a language model"
    raise CheckpointError(
        f"vision_tower {str(name)!r} is {kind} (model_type {config.get('model_type')!r:.80}), not a vision tower: give "
        "the directory of a CLIP vision model, or leave vision_tower out to use the one that the checkpoint names"
    )


def _tower_of_config(data: dict[str, Any], directory: Path, search: _TowerSearch) -> Path | None:
    """Find the tower that config.json names; None if it is not found and its weights are not needed."""
    named = named_tower(data)
    if isinstance(named, str):
        for path in tower_paths(named, directory):
            found = search.in_directory(path)
            if found is not None:
                return found
        found = search.on_hub(named) if is_checkpoint_name(named) else None
        if found is not None:
            return found
    if not search.weights:
        return None
    raise CheckpointError(
        f"{directory} is a checkpoint in the original format, which keeps its vision tower in a separate directory. "
        f"Its config.json names {named!r}, which was not found:\n{search.report()}\n{_ckpt_hint(data, directory)}"
        "Pass vision_tower (--vision-tower) with the directory that holds the tower's config.json and weights, or its "
        "name on a hub"
    )


def _ckpt_hint(data: dict[str, Any], directory: Path) -> str:
    """Return advice for the earlier MindSpore port, whose config names the tower's weights file separately."""
    weights = data.get("mm_vision_tower_path")
    if not weights:
        return ""
    return f"config.json's mm_vision_tower_path names {weights!r}: copy that file into {directory} to have it found. "


def _assumed_tower(data: dict[str, Any], directory: Path) -> dict[str, Any] | None:
    """Return a config for a vision tower that was not found, enough to preprocess images.

    preprocessor_config.json gives the image size; None if the file does not exist.
    """
    if not has_file(directory / PREPROCESSOR_NAME):
        return None
    edge = read_crop_size(read_json(directory / PREPROCESSOR_NAME))
    hidden = data.get("mm_hidden_size") or CLIP_LARGE_336["hidden_size"]
    heads = gcd(hidden, CLIP_LARGE_336["num_attention_heads"])
    patch = min(edge, CLIP_LARGE_336["patch_size"])
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "image_size": edge, "patch_size": patch}
    return {**CLIP_LARGE_336, **sizes}


def _contains_tower(directory: Path) -> bool:
    names = [tensor.name for tensor in stored_tensors(find_weights(directory))]
    return any((our_name(name) or "").startswith(VISION_MODEL) for name in names if is_known(name))
