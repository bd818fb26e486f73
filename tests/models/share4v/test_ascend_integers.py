"""int8 and int4 as on an Ascend: the whole model on stand-ins, against the floats that its integers mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from helpers.ascend import PORTABLE, register, stand_ins
from mindspore import Tensor

from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.checkpoint import save_weights
from mindone.models.share4v.device_memory import device_memory, weight_bytes
from mindone.models.share4v.language.llama import LlamaForCausalLM
from mindone.models.share4v.nn.device_operators import DEVICES
from mindone.models.share4v.nn.integer_linear import IntegerLinear
from mindone.models.share4v.nn.layers import Linear

CELLS = {"language_backend": "mindspore", "vision_backend": "mindspore"}
TEXT = TextConfig(500, 128, 192, 1, 4, 2, max_position_embeddings=256, attention_bias=True)
CONFIG = Share4VConfig(VisionConfig(64, 128, 2, 2, image_size=56, patch_size=14), ProjectorConfig("mlp2x_gelu"), TEXT)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """MindSpore's device has Ascend's row of the table, with stand-ins."""
    register()
    monkeypatch.setitem(DEVICES, "CPU", (stand_ins(), ()))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in float16."""
    path = tmp_path_factory.mktemp("checkpoint")
    model, rng = Share4V(CONFIG, "float16"), np.random.default_rng(0)
    for name, parameter in model.parameters_and_names():
        scale = 1.0 / np.sqrt(parameter.shape[-1]) if len(parameter.shape) > 1 else 0.1
        values = rng.normal(0, scale, parameter.shape).astype(np.float32) + ("norm" in name and "bias" not in name)
        parameter.set_data(Tensor(values, parameter.dtype))
    model.save_pretrained(path)
    return path


def integer_layers(model: Any) -> dict[str, IntegerLinear]:
    return {name: cell for name, cell in model.cells_and_names() if isinstance(cell, IntegerLinear)}


def prompt() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    ids = rng.integers(3, 500, (3, 90))  # no images: vision tower and projector have no integers
    mask = (np.arange(90) < np.array([90, 3, 40])[:, None]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_model_computes_with_what_its_integers_mean(dtype: str, checkpoint: Path, device: None) -> None:
    """Full sequences, prefill and decoding; the other model has the same matrices as float16, without any operator."""
    ours = Share4V.from_pretrained(checkpoint, dtype=dtype, **CELLS)
    layers = integer_layers(ours)
    assert len(layers) == 7 + 1 and all(name.startswith("language_model.") for name in layers)
    assert {cell.is_int4 for name, cell in layers.items() if "lm_head" not in name} == {dtype == "int4"}
    assert not layers["language_model.lm_head"].is_int4
    assert ours.vision_tower.activations == ours.language_model.activations == ms.float16
    wanted = Share4V.from_pretrained(checkpoint, dtype="float16", **PORTABLE)
    for name, cell in wanted.cells_and_names():
        if name in layers:
            assert type(cell) is Linear
            cell.weight.set_data(Tensor(layers[name].restored(), ms.float16))
    logits = [model(**prompt()).logits.asnumpy() for model in (ours, wanted)]
    assert np.abs(logits[0] - logits[1]).max() < 16 * 2.0**-11 * np.abs(logits[1]).max()
    if dtype == "int4":  # the layers are the same in a prefill and in decoding
        assert ours.generate(**prompt(), max_new_tokens=6) == wanted.generate(**prompt(), max_new_tokens=6)


def test_bfloat16_checkpoints_compute_in_bfloat16() -> None:
    """A CPU does not compute in it; so only the types of the cells are looked at."""
    config = Share4VConfig(text_config=TEXT, torch_dtype="bfloat16")
    model = LlamaForCausalLM(config, "int4", stand_ins())
    assert model.activations == model.model.embed_tokens.weight.dtype == ms.bfloat16
    scales = {cell.scale.dtype for cell in integer_layers(model).values()}
    assert scales == {ms.bfloat16}
    assert Share4VConfig(torch_dtype="float32").computes_in == Share4VConfig().computes_in == "float16"


def test_rounded_weights_are_not_saved(checkpoint: Path, device: None, tmp_path: Path) -> None:
    model = Share4V.from_pretrained(checkpoint, dtype="int8", **CELLS)
    with pytest.raises(ValueError, match="weights that were rounded to int8 for this device cannot be saved"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ValueError, match="weights of int8 are not converted to float16"):
        model.half()


def test_files_of_the_kernels_are_refused(checkpoint: Path, device: None, tmp_path: Path) -> None:
    Share4V.from_pretrained(checkpoint, dtype="int8").save_pretrained(tmp_path / "int8")  # on the kernels
    with pytest.raises(ValueError, match=r"converted to int8 for the CPU kernels.*load the checkpoint that they were"):
        Share4V.from_pretrained(tmp_path / "int8", **CELLS)


def test_a_missing_or_misshapen_weight_is_named(checkpoint: Path, device: None, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "model.safetensors")
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    save_weights(((key, value) for key, value in weights.items() if key != name), tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    with pytest.raises(ValueError, match=f"1 missing: {name}"):
        Share4V.from_pretrained(tmp_path, dtype="int4", **CELLS)
    weights[name] = weights[name][:, :64]
    save_weights(weights.items(), tmp_path)
    with pytest.raises(ValueError, match=rf"{name} is \[192, 64\], expected \[192, 128\]"):
        Share4V.from_pretrained(tmp_path, dtype="int4", **CELLS)


def test_a_weight_that_is_not_finite_is_named(checkpoint: Path, device: None, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "model.safetensors")
    name = "language_model.model.layers.0.self_attn.k_proj.weight"
    weights[name][3, 5] = np.nan
    save_weights(weights.items(), tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    for dtype in ("int8", "int4"):
        with pytest.raises(ValueError, match=f"{name}: values are not finite"):
            Share4V.from_pretrained(tmp_path, dtype=dtype, **CELLS)


def test_without_the_operator_integers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs the operator weight_quant_batch_matmul"):
        LlamaForCausalLM(CONFIG, "int4")


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_computed_memory_is_that_of_the_parameters(dtype: str, device: None) -> None:
    model = Share4V(CONFIG, dtype)
    assert weight_bytes(CONFIG, dtype) == sum(parameter.nbytes for parameter in model.get_parameters())
    cached = model.language_model.new_cached(3, 128)
    memory = device_memory(CONFIG, dtype, 3, 128)
    assert memory.cache == sum(cache.key.nbytes + cache.value.nbytes for cache in cached.caches)
    assert memory.total == memory.weights + memory.cache + memory.activations > memory.weights + memory.cache
