"""bfloat16 on disk and in memory: rounded as torch does, saved, converted and loaded to the same numbers.

MindSpore's CPU holds bfloat16 but does not compute in it, so cells are made for an Ascend here and never run.
"""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers.llava import Reference, Shape
from helpers.published_formats import write_original
from helpers.weights import read_weights
from mindspore import Tensor, nn
from safetensors.torch import load_file

from mindone.models.share4v import Share4V, convert
from mindone.models.share4v.bfloat16 import BFLOAT16, dtype_name, from_bfloat16, to_bfloat16
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError, save_weights
from mindone.models.share4v.checkpoint.loading import cast, load_weights
from mindone.models.share4v.checkpoint.saving import parameter_array
from mindone.models.share4v.language.llama import LlamaForCausalLM
from mindone.models.share4v.nn.device_operators import device_operators
from mindone.models.share4v.vision.clip import CLIPVisionTower

ASCEND = device_operators("Ascend")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    reference = Reference(Shape({"image_size": 28, "patch_size": 14, "num_hidden_layers": 1}, {"num_hidden_layers": 1}))
    return write_original(reference, tmp_path_factory.mktemp("model"), "bfloat16")


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)


def test_rounding_equals_torchs() -> None:
    """Every pattern of the upper half, with lower halves around the tie; and numbers that are none."""
    upper = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    values = (upper | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).view(np.float32)
    ours, wanted = to_bfloat16(values), bits_of(torch.tensor(values))
    missing = np.isnan(values)
    np.testing.assert_array_equal(ours["bfloat16"][~missing], wanted[~missing])
    assert np.isnan(from_bfloat16(ours)[missing]).all()
    assert (ours.dtype, ours.shape, dtype_name(ours)) == (BFLOAT16, values.shape, "bfloat16")


def test_widening_is_exact_and_back_is_the_same() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    stored = bits.view(BFLOAT16)
    wide = from_bfloat16(stored)
    np.testing.assert_array_equal(wide, torch.tensor(bits.view(np.int16)).view(torch.bfloat16).float().numpy())
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(to_bfloat16(wide)[finite], stored[finite])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_arrays_of_every_shape(kind: type, shape: tuple[int, ...]) -> None:
    values = np.asarray(np.random.default_rng(0).standard_normal(shape), kind).T
    rounded, wanted = to_bfloat16(values), torch.tensor(values).bfloat16()
    assert rounded.shape == values.shape
    np.testing.assert_array_equal(rounded["bfloat16"], bits_of(wanted))
    np.testing.assert_array_equal(from_bfloat16(rounded), wanted.float().numpy())


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"w has values up to 3.4e\+38, too large for bfloat16"):
        cast(np.array([1, 3.4e38], np.float32), "bfloat16", "w")
    kept = cast(np.array([np.inf, np.nan, 3.38e38], np.float32), "bfloat16", "w")
    np.testing.assert_array_equal(np.isfinite(from_bfloat16(kept)), [False, False, True])


def test_files_are_read_by_the_library_and_by_us(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {
        "a.weight": to_bfloat16(rng.standard_normal((3, 5))),
        "b.bias": rng.standard_normal(7).astype(np.float32),
        "c.ids": np.arange(3, dtype=np.int64),
        "d.weight": to_bfloat16(rng.standard_normal((4, 4)).T),
        "e.weight": rng.standard_normal((2, 2)).astype(np.float16),
    }
    save_weights(values.items(), tmp_path / "one")
    save_weights(values.items(), tmp_path / "shards", max_shard_size=60)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for directory in (tmp_path / "one", tmp_path / "shards"):
        loaded = {name: value for path in directory.glob("*.safetensors") for name, value in load_file(path).items()}
        assert set(loaded) == set(values)
        for name, value in values.items():
            if value.dtype == BFLOAT16:
                assert loaded[name].dtype == torch.bfloat16
                np.testing.assert_array_equal(bits_of(loaded[name]), value["bfloat16"])
            else:
                np.testing.assert_array_equal(loaded[name].numpy(), value)


def test_a_checkpoint_in_bfloat16_is_converted_without_loss(original: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(original)
    stored = read_weights(checkpoint)
    convert(original, tmp_path / "half", dtype="bfloat16", progress=False)
    convert(original, tmp_path / "wide", dtype="float32", progress=False)
    sizes = [sum(path.stat().st_size for path in (tmp_path / kind).glob("*.safetensors")) for kind in ("half", "wide")]
    assert sizes[0] < 0.6 * sizes[1]
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = read_weights(Checkpoint.open(tmp_path / "half"))
    assert set(again) == set(stored)
    for name, value in stored.items():
        np.testing.assert_array_equal(again[name], value)
    assert Share4V.from_pretrained(tmp_path / "half").dtype == "float32"  # and a CPU loads it


class Cells(nn.Cell):
    """Tower and language model as an Ascend has them, under the names of a whole model."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.vision_tower = CLIPVisionTower(config, "bfloat16", ASCEND)
        self.language_model = LlamaForCausalLM(config, "bfloat16", ASCEND)


def test_cells_of_bfloat16_are_filled_and_saved_without_loss(original: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(original)
    stored = read_weights(checkpoint)
    with ms.nn.utils.no_init_parameters():
        cells = Cells(checkpoint.config)
        whole = Share4V(checkpoint.config, language_backend="llama", vision_backend="clip")
        whole.vision_tower, whole.language_model = cells.vision_tower, cells.language_model
    load_weights(whole, checkpoint)
    names = {parameter.name: parameter for parameter in cells.get_parameters()}
    assert names
    for name, parameter in names.items():
        kind = ms.float32 if parameter.ndim == 1 or "position_embedding" in name else ms.bfloat16
        assert parameter.dtype == kind, name
        np.testing.assert_array_equal(parameter.float().asnumpy(), stored[name], name)
    pairs = [(name, parameter_array(parameter)) for name, parameter in names.items()]
    save_weights(pairs, tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        for name, value in load_file(path).items():
            assert value.dtype == (torch.bfloat16 if names[name].dtype == ms.bfloat16 else torch.float32)
            np.testing.assert_array_equal(value.float().numpy(), stored[name])


def test_activations_and_the_cache_are_bfloat16(original: Path) -> None:
    config = Checkpoint.open(original).config
    llama = LlamaForCausalLM(config, "bfloat16", ASCEND)
    assert llama.activations == ms.bfloat16
    cached = llama.new_cached(2, 64)
    assert {cell.key.dtype for cell in cached.caches} == {cell.value.dtype for cell in cached.caches} == {ms.bfloat16}


def test_mindspores_own_rounding_is_never_asked() -> None:
    """What a weight is rounded to is decided here; MindSpore only stores the same number."""
    values = from_bfloat16(to_bfloat16(np.random.default_rng(0).standard_normal(1000)))
    np.testing.assert_array_equal(Tensor(values, ms.bfloat16).float().asnumpy(), values)
