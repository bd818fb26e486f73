"""LoRA adapters: found, read and compared with the model before a weight is read, then merged as weights are read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..configuration import CONFIG_NAME, Share4VConfig, read_json
from ..configuration_formats import ORIGINAL_MODEL_TYPES, READERS, format_of
from ..configuration_schema import shown
from ..home_directory import expand_home
from ..hub import is_adapter_name, resolve_adapter
from ..hub.directories import ADAPTER_EXTRAS, ADAPTER_NAME, ADAPTER_WEIGHTS
from ..language.weights import LANGUAGE_MODEL, LM_HEAD
from ..load_options import CheckpointOptions, adapter_weights
from .adapter_config import AdapterConfig
from .adapter_merging import AdaptedReplacement, BiasShift, Change, LowRank, Replacement, merged
from .errors import CheckpointError, listing
from .formats import StoredTensor, WeightFiles, stored_tensors
from .weights import MM_PROJECTOR, expected_shapes, is_known, our_name

logger = logging.getLogger(__name__)
OTHER_WEIGHTS = ADAPTER_EXTRAS[0]
# LLaVA stores config.json with the adapter; these fields of it say how the adapted model is used.
CONFIG_FIELDS = ("select_layer", "select_feature", "image_aspect_ratio", "use_im_start_end", "use_im_patch_token")
MAX_NAME = 256  # characters of a tensor's name
MAX_TENSORS = 4096  # an adapter of all layers of a 70B has 2,000; patterns are matched with each
_BLOCK = 1 << 20  # bytes that are read at once
LANGUAGE_MODEL_TYPES = ("llama", "mistral")

_LORA = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB])(?:\.default)?\.(?P<kind>weight|bias)")
_EMBEDDING = re.compile(r"(?P<module>.+)\.(?P<part>lora_embedding_[AB])(?:\.default)?(?P<kind>)")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.(?P<part>lora_magnitude_vector)(?:\.default)?(?:\.weight)?(?P<kind>)")
_WRAPPED = re.compile(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.(?:weight|bias)$)")
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, as PEFT or LLaVA wrote it; its tensors are not read yet.

    Attributes:
        directory: holds adapter_config.json and the tensors.
        weight: what its changes are multiplied by.
        config: the content of adapter_config.json.
        changes: what it does to each weight, by our name.
        unknown: its tensors that have no meaning for this model, by their names in the file.
        model_config: the content of config.json, which LLaVA stores with an adapter; None if there is none.
    """

    directory: Path
    weight: float
    config: AdapterConfig
    changes: Mapping[str, Change] = field(repr=False)
    unknown: tuple[str, ...] = ()
    model_config: Mapping[str, Any] | None = field(default=None, repr=False)

    @classmethod
    def read(cls, path: str | Path, weight: float = 1.0) -> Adapter:
        """Read the config and the list of tensors of an adapter.

        Raises:
            FileNotFoundError: the directory, its config or its tensors do not exist.
            CheckpointError: a file is damaged, or asks for something that cannot be merged.

        Example:
            >>> from mindone.models.share4v.checkpoint.adapters import Adapter
            >>> Adapter.read("my-lora").config.rank  # doctest: +SKIP
            128
        """
        directory = expand_home(path)
        if not (directory / ADAPTER_NAME).is_file():
            problem = f"has no {ADAPTER_NAME}" if directory.is_dir() else "is not a directory on this machine"
            raise FileNotFoundError(
                f"adapter {str(path)!r} {problem}: give the directory of a LoRA adapter, as PEFT or LLaVA writes it, "
                "or owner/name of its repository on a hub"
            )
        config = AdapterConfig.read(directory)
        files = [directory / name for name in ADAPTER_WEIGHTS if (directory / name).is_file()][:1]
        if not files:
            raise FileNotFoundError(f"adapter {directory} has no weights: expected {' or '.join(ADAPTER_WEIGHTS)}")
        if (directory / OTHER_WEIGHTS).is_file():
            files.append(directory / OTHER_WEIGHTS)
        changes, unknown = _changes(stored_tensors(WeightFiles(tuple(files))), config, directory)
        has_config = (directory / CONFIG_NAME).is_file()
        model_config = read_json(directory / CONFIG_NAME) if has_config else None
        return cls(directory, weight, config, changes, tuple(unknown), model_config)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the merged weights depend on."""
        return _files(self.directory)


def adapter_digest(path: str | Path) -> str | None:
    """Return a digest of an adapter's files, so that one that was trained again is noticed; None if there are none.

    Example:
        >>> from mindone.models.share4v.checkpoint.adapters import adapter_digest
        >>> adapter_digest("my-lora")  # doctest: +SKIP
        '2c26b46b68ffc68f'
    """
    directory, digest = expand_home(path), sha256()
    files = [*_files(directory), *(file for file in (directory / CONFIG_NAME,) if file.is_file())]
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16] if files else None


def _files(directory: Path) -> tuple[Path, ...]:
    names = (ADAPTER_NAME, *ADAPTER_WEIGHTS, OTHER_WEIGHTS)
    return tuple(directory / name for name in names if (directory / name).is_file())


def _changes(
    tensors: Sequence[StoredTensor], config: AdapterConfig, directory: Path
) -> tuple[dict[str, Change], list[str]]:
    """Return what an adapter's tensors change, by our names of the weights, and the names that mean nothing here."""
    changes: dict[str, Change] = {}
    unknown: list[str] = []
    parts: dict[str, dict[str, StoredTensor]] = {}
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(
            f"adapter {directory} has {len(tensors)} tensors, at most {MAX_TENSORS} are expected: is it a complete "
            "model? Give that as the model"
        )
    for tensor in tensors:
        if len(tensor.name) > MAX_NAME:
            raise CheckpointError(
                f"{tensor.file} has a tensor whose name has {len(tensor.name)} characters, at most {MAX_NAME} are "
                f"expected: {tensor.name[:80]!r}..."
            )
        found = _LORA.fullmatch(tensor.name) or _EMBEDDING.fullmatch(tensor.name) or _MAGNITUDE.fullmatch(tensor.name)
        if found is None:
            name = _known_name(_WRAPPED.sub("", tensor.name))
            if name is None:
                unknown.append(tensor.name)
            elif (ours := our_name(name)) is not None:
                _add(changes, ours, Replacement(tensor), directory)
        elif _known_name(f"{found['module']}.weight") is None:
            unknown.append(tensor.name)
        else:
            part = f"{found['part']}.bias" if found["kind"] == "bias" else found["part"]
            if parts.setdefault(found["module"], {}).setdefault(part, tensor) is not tensor:
                raise CheckpointError(f"adapter {directory} has two tensors {part} of {found['module']}")
    for module, own in parts.items():
        for ours, change in _low_rank(module, own, config, directory):
            _add(changes, ours, change, directory)
    return changes, unknown


def _add(changes: dict[str, Change], name: str, change: Change, directory: Path) -> None:
    before = changes.get(name)
    if isinstance(before, Replacement) and isinstance(change, LowRank) and ".base_layer." in before.tensor.name:
        change = AdaptedReplacement(before, change)
    elif before is not None:
        raise CheckpointError(
            f"adapter {directory} changes {name} twice, with {before.tensors[0].name} and "
            f"{change.tensors[0].name}: it may hold adapters of several models"
        )
    changes[name] = change


def _low_rank(
    module: str, parts: Mapping[str, StoredTensor], config: AdapterConfig, directory: Path
) -> Iterator[tuple[str, Change]]:
    """Yield the changes of one adapted module, whose name is as in the file."""
    plain = module.removeprefix("base_model.model.")
    published = _known_name(f"{module}.weight")
    name = None if published is None else our_name(published)
    kinds = [("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")]
    pair = next((pair for pair in kinds if set(pair) <= parts.keys()), None)
    extra = parts.keys() - {*(pair or ()), "lora_magnitude_vector", "lora_B.bias"}
    if name is None or pair is None or extra:
        raise CheckpointError(
            f"adapter {directory} has {listing(sorted(parts))} for {module}: expected lora_A and lora_B of the layer; "
            "the file is incomplete"
        )
    magnitude = parts.get("lora_magnitude_vector")
    if config.is_dora != (magnitude is not None):
        raise CheckpointError(
            f"adapter {directory}: use_dora is {str(config.is_dora).lower()} in {ADAPTER_NAME}, but {module} has "
            f"{'a' if magnitude else 'no'} lora_magnitude_vector: the files do not belong together"
        )
    is_embedding = pair[0] != "lora_A"
    if magnitude is not None and is_embedding:
        raise CheckpointError(
            f"adapter {directory}: DoRA of embeddings ({module}) is not supported: merge it with PEFT"
        )
    rank = config.rank_of(plain)
    change = LowRank(parts[pair[0]], parts[pair[1]], config.scale_of(plain, rank), magnitude, is_embedding)
    if change.ranks != (rank, rank):
        raise CheckpointError(
            f"adapter {directory}: {ADAPTER_NAME} gives {module} the rank {rank}, but its A is "
            f"{list(change.a.shape)} and its B {list(change.b.shape)}"
        )
    yield name, change
    if "lora_B.bias" in parts:
        yield f"{name.removesuffix('.weight')}.bias", BiasShift(parts["lora_B.bias"], change.scale)


def _known_name(name: str) -> str | None:
    """Return the published name of a weight, without what PEFT or LLaVA put before it; None if it is in no format."""
    inner = name.removeprefix("base_model.")
    for candidate in (inner.removeprefix("model."), inner, inner.removeprefix("model.model.")):
        if is_known(candidate):
            return candidate
    return None


def find_adapter(name: str, options: CheckpointOptions) -> Path:
    """Return the directory of an adapter: one on this machine, or that of a repository, downloaded if necessary.

    A directory has precedence over a repository of the same name. The options' revision and subfolder are those of the
    checkpoint; an adapter is taken from its main revision, and from a folder as owner/name/folder.

    Raises:
        HubError: it is no directory, and was not found on the hub; the message lists what was tried.
    """
    path = expand_home(name)
    if path.exists() or not is_adapter_name(name):
        return path
    return resolve_adapter(name, options.cache_dir, options.local_files_only, options.token)


def read_adapters(options: CheckpointOptions) -> tuple[Adapter, ...]:
    """Find and read the adapters of `options.adapter`.

    Raises:
        ValueError: two paths lead to one directory.
        HubError: as in `find_adapter`.
        FileNotFoundError, CheckpointError: as in `Adapter.read`.
    """
    given = adapter_weights(options.adapter)
    adapters = tuple(Adapter.read(find_adapter(path, options), weight) for path, weight in given.items())
    for index, one in enumerate(adapters):
        for other in adapters[:index]:
            if one.directory.samefile(other.directory):
                raise ValueError(
                    f"adapter {one.directory} is the same directory as {other.directory}: give it once, with the sum "
                    "of the weights"
                )
    return adapters


def completed_config(data: dict[str, Any], adapters: Sequence[Adapter], directory: Path) -> dict[str, Any]:
    """Return the config.json to load `directory` with: LLaVA's adapters of a language model have the model's config.

    Raises:
        CheckpointError: the adapter's config.json does not fit the language model.
    """
    if data.get("model_type") not in LANGUAGE_MODEL_TYPES:
        return data
    config = next((adapter.model_config for adapter in adapters if adapter.model_config is not None), None)
    if config is None or config.get("model_type") not in ORIGINAL_MODEL_TYPES:
        return data
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    wrong = [
        f"{key} {shown(config.get(key))}, not {shown(data.get(key))}"
        for key in keys
        if config.get(key) != data.get(key)
    ]
    if wrong:
        raise CheckpointError(
            f"the adapter's config.json does not fit the language model {directory}: it has {', '.join(wrong)}"
        )
    return dict(config)


def adapted_config(config: Share4VConfig, adapters: Sequence[Adapter]) -> Share4VConfig:
    """Return the config of the adapted model; LLaVA's adapters may be trained on other image features than the base.

    Raises:
        CheckpointError: two adapters contradict each other, or one fits another model.
    """
    found: dict[str, Any] = {}
    for adapter in adapters:
        stated = adapter.model_config
        if stated is None or stated.get("model_type") in LANGUAGE_MODEL_TYPES:
            continue
        vision = asdict(config.vision_config)
        own = Share4VConfig.from_dict(stated, vision)
        if own.projector_config != config.projector_config:
            raise CheckpointError(
                f"adapter {adapter.directory} was trained with the projector {own.projector_config.projector_type!r}, "
                f"but the model has {config.projector_config.projector_type!r}: use the model that it was trained on"
            )
        for name in set(CONFIG_FIELDS) & READERS[format_of(stated)](stated, vision).keys():
            value = getattr(own, name)
            if found.setdefault(name, value) != value:
                raise CheckpointError(
                    f"adapter {adapter.directory} was trained with {name} {value!r}, another one with {found[name]!r}: "
                    "they cannot be combined"
                )
    changed = {name: value for name, value in found.items() if getattr(config, name) != value}
    for name, value in changed.items():
        logger.warning("%s is %r, as in the adapter's config.json, not %r", name, value, getattr(config, name))
    return replace(config, **changed)


def check_adapters(adapters: Sequence[Adapter], config: Share4VConfig, directory: Path) -> None:
    """Compare adapters with the model that they are for; no tensor is read.

    Raises:
        CheckpointError: the model's weights are already integers, or an adapter's tensors belong to no weight of it,
            have other shapes, or are incomplete; the message names them.
    """
    if adapters and config.quantization is not None:
        raise CheckpointError(
            f"{directory} holds weights that were already rounded to {config.quantization}, and an adapter must be "
            "merged before that: load the checkpoint that they came from, with the same adapter (and dtype "
            f"(--dtype) {config.quantization}), or convert it: share4v convert ... --adapter DIR --dtype "
            f"{config.quantization} --out ..."
        )
    shapes, _ = expected_shapes(config)
    for adapter in adapters:
        problems = list(_problems(adapter, shapes, config))
        if problems:
            base = f"\nIt was made for {adapter.config.base!r}: use that model" if adapter.config.base else ""
            raise CheckpointError(
                f"adapter {adapter.directory} does not fit {directory}:\n" + "\n".join(problems) + base
            )
        _report_lost_biases(adapter, shapes)


def _report_lost_biases(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Log a warning if an adapter was trained with biases that its file does not have."""
    if not adapter.config.trains_biases:
        return
    biases = [f"{name.removesuffix('.weight')}.bias" for name in adapter.changes if name.endswith(".weight")]
    lost = [name for name in biases if name in shapes and name not in adapter.changes]
    if lost:
        logger.warning(
            "adapter %s was trained with biases, of which its file lacks %d: %s. PEFT did not save those of "
            'bias="lora_only" up to version 0.20, so the model keeps its own; where the training can be repeated, use '
            "a newer one",
            adapter.directory,
            len(lost),
            listing(lost),
        )


def _problems(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], config: Share4VConfig) -> Iterator[str]:
    """Yield a line for each way in which an adapter does not fit a model with weights of these shapes."""
    if not adapter.changes and not adapter.unknown:
        yield "- it holds no tensors"
    # The weights of a projector that another package registered are not in `shapes`.
    foreign = [
        change.tensors[0].name
        for name, change in adapter.changes.items()
        if name not in shapes and not (name.startswith(MM_PROJECTOR) and not any(map(_is_projector, shapes)))
    ]
    unknown = [*adapter.unknown, *foreign]
    if unknown:
        total = len(unknown) + len(adapter.changes) - len(foreign)
        yield f"- {len(unknown)} of {total} changes belong to no weight of the model: {listing(sorted(unknown))}"
    wrong = [
        f"{name} is {list(shapes[name])}, but the adapter's {change.describe()}"
        for name, change in adapter.changes.items()
        if name in shapes and not change.fits(shapes[name])
    ]
    if wrong:
        yield f"- {len(wrong)} weights have another shape: {listing(wrong)}"
    tied = [name for name in (f"{LANGUAGE_MODEL}embed_tokens.weight", f"{LM_HEAD}weight") if name in adapter.changes]
    if tied and config.text_config.tie_word_embeddings:
        yield f"- it changes {' and '.join(tied)}, which the model uses for both ends: merge it with PEFT"
    missing = _missing(adapter, shapes)
    if missing:
        yield f"- it has nothing for {len(missing)} weights that its config names: {listing(missing)}"


def _is_projector(name: str) -> bool:
    return name.startswith(MM_PROJECTOR)


def _missing(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the weights of the language model that should be adapted according to the config, but are not.

    A target counts if any layer has it, because targets may be meant for other parts of the model.
    """
    lacking: list[str] = []
    by_target: dict[str, dict[int, str]] = {}
    for name in shapes:
        found = _LAYER.fullmatch(name.removeprefix(LANGUAGE_MODEL).removesuffix(".weight"))
        if name.startswith(LANGUAGE_MODEL) and found is not None and name.endswith(".weight"):
            by_target.setdefault(found[2], {})[int(found[1])] = name
    allowed = adapter.config.layers
    for part, names in by_target.items():
        is_target = any(part == target or part.endswith(f".{target}") for target in adapter.config.targets)
        if not is_target or not any(name in adapter.changes for name in names.values()):
            continue
        lacking += [
            name
            for layer, name in names.items()
            if name not in adapter.changes and (allowed is None or layer in allowed)
        ]
    for module in adapter.config.modules_to_save:
        whole = re.compile(rf"(?:.*\.)?{re.escape(module)}(?:\.[\w.]+)?\.(?:weight|bias)")
        names_in_file = [tensor.name for change in adapter.changes.values() for tensor in change.tensors]
        if not any(whole.fullmatch(_WRAPPED.sub("", name)) for name in names_in_file):
            lacking.append(f"{module} (modules_to_save)")
    return lacking


def merged_entries(entries: Mapping[str, StoredTensor], adapters: Sequence[Adapter]) -> dict[str, StoredTensor]:
    """Return the entries of an adapted model: reading one merges its changes in float32, and nothing is kept.

    Raises:
        CheckpointError: an adapter changes a weight that the checkpoint does not have, other than replacing it.
    """
    result = dict(entries)
    for name in {name: None for adapter in adapters for name in adapter.changes}:
        changes = [(adapter.changes[name], adapter.weight) for adapter in adapters if name in adapter.changes]
        result[name] = merged(name, entries.get(name), changes)
    return result
