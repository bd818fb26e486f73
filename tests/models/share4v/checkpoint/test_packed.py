"""Checkpoints of packed blocks: written, mapped without a copy, refused where they are damaged."""

from __future__ import annotations

import json
import mmap
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.backends import CELLS
from helpers.llava import IMAGE, SHAPES, Reference
from helpers.published_formats import write_llava, write_llava_in_memory_names, write_original
from safetensors.numpy import load_file, save_file

from mindone.models.share4v import Share4V, Share4VConfig, convert
from mindone.models.share4v.checkpoint import CheckpointError
from mindone.models.share4v.quantization import QUANTIZED

WEIGHTS = "model.safetensors"
HEAD = "language_model.lm_head.packed"
SHAPE = "odd-grouped-gelu"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(SHAPES[SHAPE])


@pytest.fixture(scope="module")
def source(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(reference, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoint in both types of integers; not to be changed."""
    directory = tmp_path_factory.mktemp("converted")
    return {dtype: convert(source, directory / dtype, dtype=dtype, fast=dtype == "int4") for dtype in QUANTIZED}


@pytest.fixture
def copied(converted: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the int4 checkpoint, to be damaged."""
    return Path(shutil.copytree(converted["int4"], tmp_path / "copy"))


def logits_of(model: Share4V, reference: Reference) -> np.ndarray:
    pixels = np.random.default_rng(3).standard_normal(reference.images(1).shape).astype(np.float32)
    logits: np.ndarray = model([[1, 5, IMAGE, 9, 30, 7]], pixels).logits.asnumpy()
    return logits


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_converted_weights_have_the_bits_of_those_rounded_at_loading(
    dtype: str, reference: Reference, source: Path, converted: dict[str, Path], tmp_path: Path
) -> None:
    rounded, mapped = Share4V.from_pretrained(source, dtype=dtype), Share4V.from_pretrained(converted[dtype])
    assert (mapped.dtype, mapped.config.quantization, mapped.config.torch_dtype) == (dtype, dtype, None)
    wanted = logits_of(rounded, reference)
    np.testing.assert_array_equal(logits_of(mapped, reference), wanted)
    assert np.abs(wanted - logits_of(Share4V.from_pretrained(source), reference)).max() > 1e-3
    for number, model in enumerate((rounded, mapped)):  # written by save_pretrained they are the same again
        model.save_pretrained(tmp_path / str(number))
        again = Share4V.from_pretrained(tmp_path / str(number), dtype=dtype)
        np.testing.assert_array_equal(logits_of(again, reference), wanted)
        assert load_file(tmp_path / str(number) / WEIGHTS).keys() == load_file(converted[dtype] / WEIGHTS).keys()


@pytest.mark.parametrize("write", [write_original, write_llava_in_memory_names])
@pytest.mark.parametrize("name", ["head-size-tied-biased", "linear-rope"])
def test_every_form_is_packed(name: str, write: Callable[..., Path], tmp_path: Path) -> None:
    reference = Reference(SHAPES[name])
    path = write(reference, tmp_path / "model", "bfloat16")
    mapped = Share4V.from_pretrained(convert(path, tmp_path / "out", dtype="int4", fast=True))
    np.testing.assert_array_equal(
        logits_of(mapped, reference), logits_of(Share4V.from_pretrained(path, dtype="int4"), reference)
    )


def base_of(array: np.ndarray) -> object:
    """Return what an array's memory belongs to, behind all views."""
    owner: object = array
    while getattr(owner, "base", None) is not None:  # `as_strided` puts an object of its own between two arrays
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


def test_blocks_are_used_where_they_lie_in_the_file(converted: dict[str, Path]) -> None:
    model, path = Share4V.from_pretrained(converted["int4"]), (converted["int4"] / WEIGHTS).resolve()
    regions = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [tuple(int(end, 16) for end in region.split("-")) for region in regions]
    count = 0
    for component in model.packed_components():
        for name in component.names:
            block = component.array(name)
            assert isinstance(base_of(block), mmap.mmap)
            address = block.ctypes.data
            assert any(start <= address and address + block.size <= end for start, end in ranges)
            assert address % 64 == 0
            count += 1
    assert count == 1 + 2 + 1 + 1 + 3 + 2  # embedding, layers, head; patches, layers; projector


def test_the_safetensors_library_reads_the_file(converted: dict[str, Path]) -> None:
    tensors = load_file(converted["int8"] / WEIGHTS)
    assert {tensor.dtype.name for name, tensor in tensors.items() if name.endswith(".packed")} == {"uint8"}
    assert {tensor.dtype.name for name, tensor in tensors.items() if not name.endswith(".packed")} == {"float32"}
    sizes = [(path / WEIGHTS).stat().st_size for path in converted.values()]
    assert sizes[1] < sizes[0]


# Asked for what it is not


def test_another_type_is_refused(converted: dict[str, Path], tmp_path: Path) -> None:
    for dtype in ("float32", "float16", "int8"):
        with pytest.raises(ValueError, match=f"weights are already int4 and cannot become {dtype}"):
            Share4V.from_pretrained(converted["int4"], dtype=dtype)
    for dtype in ("int4", "int8", "float16", None):
        with pytest.raises(ValueError, match="already rounded to int4: convert the checkpoint that they came from"):
            convert(converted["int4"], tmp_path / "again", dtype=dtype)
    assert not (tmp_path / "again").exists()


def test_cells_cannot_hold_integers(converted: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="dtype 'int4' needs the CPU kernels"):
        Share4V.from_pretrained(converted["int4"], **CELLS)


def test_an_unknown_quantization_is_refused_by_the_config(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "quantization": "int3"}))
    with pytest.raises(ValueError, match=r"quantization .int3. is not supported: expected .int8., .int4. or none"):
        Share4V.from_pretrained(copied)


# Damaged


def test_a_truncated_file_is_told(copied: Path) -> None:
    path = copied / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated .*download it again"):
        Share4V.from_pretrained(copied)


def rewrite(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change a checkpoint's tensors, as another program could; what it writes is aligned to 8 bytes."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def test_a_missing_block_is_named(copied: Path) -> None:
    rewrite(copied, lambda tensors: tensors.pop(HEAD))
    with pytest.raises(CheckpointError, match=r"1 missing: language_model\.lm_head\.packed"):
        Share4V.from_pretrained(copied)


def test_a_block_that_is_too_much_is_named(copied: Path) -> None:
    rewrite(copied, lambda tensors: tensors.update({"language_model.model.layers.7.packed": tensors[HEAD]}))
    with pytest.raises(CheckpointError, match=r"1 not in the model: language_model\.model\.layers\.7\.packed"):
        Share4V.from_pretrained(copied)


def test_a_block_of_another_size_is_named(copied: Path) -> None:
    rewrite(copied, lambda tensors: tensors.update({HEAD: tensors[HEAD][:-64]}))
    with pytest.raises(
        CheckpointError, match=r"1 of the wrong shape: language_model\.lm_head\.packed is \[\d+\], expected"
    ):
        Share4V.from_pretrained(copied)


@pytest.mark.parametrize("place", [0, 9, 20, 60, 120, 150], ids=lambda place: f"byte {place}")
def test_a_block_with_a_wrong_header_is_named(place: int, copied: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors[HEAD][place] ^= 0x21

    rewrite(copied, damage)
    with pytest.raises(CheckpointError, match=f"{re.escape(HEAD)} is not the block .* convert the checkpoint again"):
        Share4V.from_pretrained(copied)


def test_a_file_without_alignment_gives_the_same_bits(copied: Path, reference: Reference) -> None:
    """Other programs align to 8 bytes."""
    wanted = logits_of(Share4V.from_pretrained(copied), reference)
    rewrite(copied, lambda tensors: tensors.update({"vision_tower.vision_model.pre_layrnorm.bias": tensors[
        "vision_tower.vision_model.pre_layrnorm.bias"]}))  # fmt: skip
    np.testing.assert_array_equal(logits_of(Share4V.from_pretrained(copied), reference), wanted)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.1.mlp.up_proj.weight",
        "model.language_model.layers.0.input_layernorm.weight",
        "model.language_model.embed_tokens.weight",
        "model.vision_tower.vision_model.embeddings.position_embedding.weight",
        "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
        "model.multi_modal_projector.linear_2.weight",
    ],
)
def test_weights_that_are_no_numbers_are_named(name: str, dtype: str, reference: Reference, tmp_path: Path) -> None:
    path = write_llava_in_memory_names(reference, tmp_path / "model")
    weights = load_file(path / WEIGHTS)
    weights[name][..., -1] = np.nan
    save_file(weights, path / WEIGHTS)
    ours = (
        name.removeprefix("model.")
        .replace("language_model.", "language_model.model.")
        .replace("multi_modal_projector.linear_2", "mm_projector.2")
    )
    with pytest.raises(CheckpointError, match=f"{re.escape(ours)}.*: values are not finite"):
        Share4V.from_pretrained(path, dtype=dtype)
    if dtype in QUANTIZED:
        with pytest.raises(CheckpointError, match=f"{re.escape(ours)}.*: values are not finite"):
            convert(path, tmp_path / "out", dtype=dtype, fast=dtype == "int4")
        assert not list((tmp_path / "out").iterdir())


def test_a_value_too_large_for_float16_is_named(reference: Reference, tmp_path: Path) -> None:
    path = write_llava_in_memory_names(reference, tmp_path / "model")
    weights = load_file(path / WEIGHTS)
    weights["lm_head.weight"][3, 3] = 1e5
    save_file(weights, path / WEIGHTS)
    assert np.isfinite(logits_of(Share4V.from_pretrained(path), reference)).all()
    with pytest.raises(CheckpointError, match=r"lm_head.weight: .*too large for float16; use dtype"):
        Share4V.from_pretrained(path, dtype="float16")


# save_pretrained of blocks of floats


@pytest.mark.parametrize("name", SHAPES)
def test_saved_floats_are_the_checkpoints_own(name: str, tmp_path: Path) -> None:
    path = write_original(Reference(SHAPES[name]), tmp_path / "original")
    Share4V.from_pretrained(path).save_pretrained(tmp_path / "kernels")
    Share4V.from_pretrained(path, **CELLS).save_pretrained(tmp_path / "cells")
    Share4V.from_pretrained(path, dtype="float16").save_pretrained(tmp_path / "half")
    wide, cells, half = (load_file(tmp_path / kind / WEIGHTS) for kind in ("kernels", "cells", "half"))
    assert wide.keys() == cells.keys() == half.keys()
    for key, weight in cells.items():
        np.testing.assert_array_equal(wide[key], weight, strict=True)
        is_matrix = weight.ndim > 1 and not key.endswith("position_embedding.weight")
        np.testing.assert_array_equal(half[key], weight.astype("float16" if is_matrix else "float32"), strict=True)
    assert Share4VConfig.from_pretrained(tmp_path / "half").torch_dtype == "float16"
