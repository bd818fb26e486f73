"""Packed weights are mapped, not copied: a file that is changed meanwhile is noticed before its memory is used.

Before, truncating the file ended the process with SIGBUS, and writing into it silently changed the answers. In the
vision tower's part no logit changed: `test_what_a_change_in_the_vision_tower_does_without_the_check` shows why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.checkpoint.formats import find_weights, stored_tensors
from mindone.models.share4v.checkpoint.formats.mapped_file import FileChangedError, FileVersion, mapped_versions
from mindone.models.share4v.checkpoint.formats.tensor import StoredTensor, map_file

PROMPT = np.array([[1, 5, 7, 9]])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of packed int4 weights, which are mapped when it is loaded."""
    directory = tmp_path_factory.mktemp("packed")
    Share4V.from_pretrained("sharegpt4v-tiny", dtype="int4").save_pretrained(directory)
    return directory


@pytest.fixture
def weights(packed: Path, tmp_path: Path) -> Path:
    """The weights of a copy of the checkpoint."""
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model.safetensors"


def write_into(path: Path, part: str) -> None:
    """Overwrite 64 bytes of the first packed block whose name contains `part`, in place."""
    (tensor,) = [one for one in stored_tensors(find_weights(path.parent)) if part in one.name][:1]
    overwrite(path, tensor, 2048, 64)


def overwrite(path: Path, tensor: StoredTensor, start: int, size: int) -> None:
    """Overwrite bytes of a stored tensor, in place."""
    with path.open("r+b") as file:
        file.seek(int(tensor.read().ctypes.data - map_file_address(tensor.mapped)) + start)
        file.write(bytes(size))


def map_file_address(mapped: np.ndarray) -> int:
    owner = mapped
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    return int(owner.ctypes.data)


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, 4096), "has 4096 bytes, and had"),
    "truncated to nothing": (lambda path: os.truncate(path, 0), "has 0 bytes, and had"),
    "longer": (lambda path: os.truncate(path, path.stat().st_size + 1), "bytes, and had"),
    "language model": (lambda path: write_into(path, "layers.0"), "was written to"),
    "vision tower": (lambda path: write_into(path, "vision"), "was written to"),
    "replaced": (replace, "was replaced"),
    "deleted": (lambda path: path.unlink(), "cannot be read"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_file_is_reported_at_the_next_call(
    weights: Path, change: Callable[[Path], object], message: str
) -> None:
    model = Share4V.from_pretrained(weights.parent)
    change(weights)
    pixels = np.zeros((1, 3, *[model.config.vision_config.image_size] * 2), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: model.generate(PROMPT, max_new_tokens=2),
        lambda: next(iter(model.stream(PROMPT, max_new_tokens=2))),
        lambda: model.encode_images(pixels),
        lambda: model(PROMPT),
        lambda: model.save_pretrained(weights.parent / "copy"),
    ]
    for call in calls:
        with pytest.raises(FileChangedError, match=message) as raised:
            call()
        assert str(weights) in str(raised.value) and "load the model again" in str(raised.value)


def test_a_change_in_any_tensor_is_reported_at_the_next_call(weights: Path) -> None:
    """Embedding, layers, head, patches, projector, and what is stored beside the blocks: one byte of each, in turn."""
    model, tensors = Share4V.from_pretrained(weights.parent), stored_tensors(find_weights(weights.parent))
    names = [tensor.name for tensor in tensors]
    packed = [name for part in model.packed_components() for name in (*part.names, *part.plain)]
    assert len(packed) > 10 and all(any(name in stored for stored in names) for name in packed), names
    for number, tensor in enumerate(tensors):
        os.utime(weights, (number, number))  # a time that differs from that of the change below
        model._mapped_files = frozenset({FileVersion.of(weights, weights.stat())})
        model.generate(PROMPT, max_new_tokens=1)  # nothing is wrong before the change
        overwrite(weights, tensor, tensor.read().nbytes - 1, 1)
        with pytest.raises(FileChangedError, match="was written to"):
            model.generate(PROMPT, max_new_tokens=1)


def test_what_a_change_in_the_vision_tower_does_without_the_check(weights: Path) -> None:
    """The features of an image that was just seen come from a cache; those of any other image change."""
    model = Share4V.from_pretrained(weights.parent)
    size = model.config.vision_config.image_size
    seen, other = np.linspace(-1, 1, 2 * 3 * size * size, dtype=np.float32).reshape(2, 1, 3, size, size)
    before = model.encode_images(seen).asnumpy()
    other_before = Share4V.from_pretrained(weights.parent).encode_images(other).asnumpy()
    write_into(weights, "vision")
    model._mapped_files = frozenset()  # as before there was a check
    np.testing.assert_array_equal(model.encode_images(seen).asnumpy(), before)
    assert np.abs(model.encode_images(other).asnumpy() - other_before).max() > 0
    model.forget_values()
    assert np.abs(model.encode_images(seen).asnumpy() - before).max() > 0


def test_a_file_that_changes_during_an_answer_ends_it(weights: Path) -> None:
    model = Share4V.from_pretrained(weights.parent)
    model.tokenizer = Share4VProcessor.from_pretrained("sharegpt4v-tiny").tokenizer
    pieces = model.stream(PROMPT, max_new_tokens=8, min_new_tokens=8)
    next(pieces)
    os.truncate(weights, 4096)
    with pytest.raises(FileChangedError, match="load the model again"):
        next(pieces)


def test_the_checkpoint_can_be_loaded_again(weights: Path) -> None:
    model = Share4V.from_pretrained(weights.parent)
    expected = model.generate(PROMPT, max_new_tokens=3)
    replace(weights)
    with pytest.raises(FileChangedError):
        model.generate(PROMPT, max_new_tokens=3)
    assert Share4V.from_pretrained(weights.parent).generate(PROMPT, max_new_tokens=3) == expected


def test_only_mapped_weights_depend_on_their_file(tmp_path: Path, weights: Path) -> None:
    """What is packed while it is loaded, or copied, is in memory."""
    path = tmp_path / "array"
    path.write_bytes(bytes(100))
    view = map_file(path)
    (version,) = mapped_versions([view, view[10:].reshape(9, 10)])
    assert version.path == path and version.identity[2] == 100
    assert mapped_versions([view.copy(), np.zeros(3)]) == frozenset()
    assert Share4V.from_pretrained("sharegpt4v-tiny", dtype="int4")._mapped_files == frozenset()
    assert {version.path for version in Share4V.from_pretrained(weights.parent)._mapped_files} == {weights}
