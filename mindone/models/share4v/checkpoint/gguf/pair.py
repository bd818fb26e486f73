"""Finding and opening a pair of GGUF files: a language model, and the `mmproj` file with its vision tower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...configuration import CONFIG_NAME, Share4VConfig
from ...hub.gguf_files import preferred_projector
from ...quantization import LAYOUTS, OLDEST_LAYOUT, precision_of
from ..errors import CheckpointError, listing
from ..formats.gguf import SUFFIX, GGUFFile, is_later_part, open_gguf_model
from ..formats.tensor import StoredTensor
from .metadata import describe, is_projector
from .tensors import KEPT_IN, is_swapped, language_tensors, main_type, types_in, vision_tensors


@dataclass(frozen=True)
class GGUFPair:
    """An open pair of GGUF files, or a language model alone; their tensors are not read yet.

    Attributes:
        language: the language model's file, which also has the tokenizer.
        vision: the `mmproj` file, with the vision tower and the projector; None if there is none.
        config: what both say.
        notes: how they were understood, in sentences for the user.
    """

    language: GGUFFile
    vision: GGUFFile | None
    config: Share4VConfig
    notes: tuple[str, ...]

    def stored_tensors(self) -> Iterator[StoredTensor]:
        """Yield every tensor, by the name of the file's format."""
        yield from language_tensors(self.language, self.config)
        if self.vision is not None:
            yield from vision_tensors(self.vision, self.config)

    def kept_layout(self, dtype: str | None) -> str | None:
        """Return the layout in which the kernels compute with the file's own integers, or None if there is none.

        Args:
            dtype: of the model in memory.
        """
        kept = dtype in LAYOUTS and dtype in KEPT_IN.get(main_type(self.language), ())
        return OLDEST_LAYOUT if kept else None

    def exactness(self, dtype: str | None, layout: str | None) -> list[str]:
        """Return a line for each type of the files: whether a model of this dtype has exactly its values.

        Args:
            dtype: "float32", "float16", "bfloat16", "int8" or "int4"; None for the stored one.
            layout: what `Checkpoint.kept_layout` returned.

        Example:
            >>> from mindone.models.share4v.checkpoint import Checkpoint
            >>> Checkpoint.open("model-q4_0.gguf").gguf.exactness("int4", "groups")  # doctest: +SKIP
            ['Q4_0 (224 matrices, 6.61e+03 M weights of model-q4_0.gguf): exact: the integers and scales are kept', ...]
        """
        lines = []
        for file, is_language in ((self.language, True), (self.vision, False)):
            if file is None:
                continue
            for name, (matrices, weights) in types_in(file).items():
                kept = _fate(name, dtype, layout, is_language)
                lines.append(f"{name} ({matrices} matrices, {weights / 1e6:.3g} M weights of {file.path.name}): {kept}")
        return lines


_EXACT, _FLOATS = "exact", ("F32", "F16", "BF16")
# dtype -> the types of GGUF whose values it holds exactly.
_EXACT_FLOATS = {"float16": ("F16",), "bfloat16": ("BF16",)}


def _fate(name: str, dtype: str | None, layout: str | None, is_language: bool) -> str:
    """Return what becomes of the values of a type."""
    if dtype is None or dtype == "float32":
        return _EXACT
    if dtype in _EXACT_FLOATS:
        return _EXACT if name in _EXACT_FLOATS[dtype] else f"rounded to {dtype}"
    kept = KEPT_IN.get(name, ())
    if layout is None or not is_language or "int8" not in kept:
        return f"rounded {'' if name in _FLOATS else 'again '}to {dtype if is_language else precision_of(dtype).vision}"
    if dtype in kept:
        return f"{_EXACT}, since its integers and scales are kept; rounded to float16 in the table of embeddings"
    return f"{_EXACT} in the output layer; rounded to float16 in the table of embeddings, and to {dtype} in the layers"


def is_gguf_source(path: Path) -> bool:
    """Return whether a path is a GGUF file, or a directory with such files and without a config.json."""
    if path.suffix == SUFFIX:
        return path.is_file()
    return path.is_dir() and not (path / CONFIG_NAME).is_file() and next(path.glob(f"*{SUFFIX}"), None) is not None


def open_pair(source: Path, vision_tower: str | Path | None) -> GGUFPair:
    """Open a language model and its `mmproj` file.

    Args:
        source: the language model's file (of several parts, any one), or a directory with both files.
        vision_tower: the `mmproj` file, or a directory with one; by default the one beside the language model, and
            without one the language model is opened alone.

    Raises:
        CheckpointError: a file is missing, damaged, not supported, or one of several that could be meant, or the files
            do not belong together; the message gives both widths.
        ValueError: sizes contradict each other.
    """
    candidates = _files_in(source if source.is_dir() else source.parent)
    if source.is_dir():
        languages = [path for path in candidates if not _looks_like_projector(path)]
        source = _only(languages, source, "language models", "the file's path as the model")
    language = open_gguf_model(source)
    if is_projector(language):
        raise CheckpointError(
            f"{source} is an mmproj file, a vision tower without a language model: give the language model's file as "
            "the model and this one as vision_tower (--vision-tower)"
        )
    path = _projector_path(source, vision_tower, candidates)
    vision = None if path is None else open_gguf_model(path)
    found = describe(language, vision)
    notes = found.notes if vision is None else [f"vision tower and projector: {vision.path}", *found.notes]
    if vision is not None and is_swapped(vision, found.config):
        notes.append("the MLP's matrices of the vision tower have each other's names, as in old files: put right")
    return GGUFPair(language, vision, found.config, tuple(notes))


def _projector_path(source: Path, vision_tower: str | Path | None, candidates: Sequence[Path]) -> Path | None:
    """Return the `mmproj` file; None if none is named and there is none beside the language model."""
    if vision_tower is None:
        return _projector_among(candidates, source.parent)
    path = Path(vision_tower).expanduser()
    if path.is_dir():
        return _projector_among(_files_in(path), path, is_required=True)
    if path.name == str(path) and not path.is_file():  # a name that is meant beside the language model
        path = source.parent / path
    if not path.is_file():
        raise CheckpointError(
            f"the vision tower {str(vision_tower)!r} was not found: a GGUF language model needs its mmproj file, a "
            "path such as mmproj-model-f16.gguf"
        )
    return path


def _projector_among(files: Sequence[Path], directory: Path, is_required: bool = False) -> Path | None:
    found = {path.name: path for path in files if _looks_like_projector(path)}
    if not found and not is_required:
        return None
    preferred = preferred_projector([*found])
    if preferred is not None:
        return found[preferred]
    return _only([*found.values()], directory, "mmproj files", "the model's own as vision_tower (--vision-tower)")


def _files_in(directory: Path) -> list[Path]:
    """List the GGUF files in a directory; of a split model, its first part."""
    return sorted(path for path in directory.glob(f"*{SUFFIX}") if not is_later_part(path))


def _looks_like_projector(path: Path) -> bool:
    """Return whether a file is an `mmproj` file: by its metadata, or by its name if it cannot be read."""
    try:
        return is_projector(open_gguf_model(path))
    except (CheckpointError, OSError):
        return "mmproj" in path.name


def _only(paths: Sequence[Path], directory: Path, what: str, give: str) -> Path:
    if len(paths) == 1:
        return paths[0]
    found = f"{len(paths)} {what}: {listing([path.name for path in paths])}" if paths else f"no {what}"
    raise CheckpointError(f"{directory} has {found}; give {give}")


def tokenizer_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of the language model that a path (see `is_gguf_source`) stands for.

    Raises:
        CheckpointError: as in `open_pair`.
    """
    if path.is_dir():
        languages = [file for file in _files_in(path) if not _looks_like_projector(file)]
        path = _only(languages, path, "language models", "the file's path as the model")
    return open_gguf_model(path).metadata
