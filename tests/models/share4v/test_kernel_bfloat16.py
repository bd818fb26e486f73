"""bfloat16 on the CPU kernels: the checkpoint's own bits, and results closer to exact ones than PyTorch's bfloat16.

That results do not depend on the batch, chunks or threads is in test_kernel_components.py, for every type.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.adapters import RANK, write_adapter
from helpers.backends import CELLS
from helpers.llava import IMAGE, SHAPES, Reference
from helpers.paths import SCENE
from helpers.published_formats import write_llava, write_original
from mindspore import Tensor
from safetensors.torch import load_file

from mindone.models.share4v import Share4V, convert
from mindone.models.share4v.checkpoint.packed import unpack
from mindone.pipelines import pipeline

SHAPE = "odd-grouped-gelu"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    """A checkpoint in bfloat16."""
    reference = Reference(SHAPES[SHAPE])
    return reference, write_llava(reference, tmp_path_factory.mktemp("llava") / "model", "bfloat16")


@pytest.fixture(scope="module")
def model(stored: tuple[Reference, Path]) -> Share4V:
    return Share4V.from_pretrained(stored[1], dtype="bfloat16")


def matrices(model: Share4V) -> dict[str, np.ndarray]:
    """Return every matrix of a model on the kernels, float32 [rows, columns]."""
    found = {}
    for component in model.packed_components():
        for plan in component.plans:
            found |= {name: weight for name, weight in unpack(plan, component.array(plan.name)) if weight.ndim == 2}
    return found


def logits_of(model: Share4V, prompt: list[int], images: np.ndarray) -> np.ndarray:
    return model(np.array([prompt]), images).logits.asnumpy()[0]


@pytest.mark.parametrize(
    "name, write", [(SHAPE, write_llava), ("head-size-tied-biased", write_original), ("linear-rope", write_llava)]
)
def test_logits_are_closer_to_exact_ones_than_those_of_pytorch(
    name: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    """Exact: float32 with the same weights. PyTorch rounds more: norms, sums of residuals and logits."""
    reference = Reference(SHAPES[name])
    model = Share4V.from_pretrained(write(reference, tmp_path / "model", "bfloat16"), dtype="bfloat16")
    assert model.dtype == "bfloat16"
    prompt, images = [1, *reference.text(20), IMAGE, *reference.text(9)], reference.images(1)
    ours = logits_of(model, prompt, images)
    with reference.rounded(torch.bfloat16):
        exact = reference.logits(prompt, images)
    before = {key: value.clone() for key, value in reference.model.state_dict().items()}
    reference.model.to(torch.bfloat16)
    theirs = reference.logits(prompt, images)
    reference.model.to(torch.float32).load_state_dict(before)
    error, other = np.sqrt(((ours - exact) ** 2).mean()), np.sqrt(((theirs - exact) ** 2).mean())
    assert 0 < error < other


def test_the_bits_of_the_checkpoint_are_kept(stored: tuple[Reference, Path], model: Share4V, tmp_path: Path) -> None:
    source = {name: tensor for name, tensor in load_file(stored[1] / "model.safetensors").items() if tensor.ndim > 1}
    model.save_pretrained(tmp_path / "saved")
    converted = convert(stored[1], tmp_path / "converted", dtype="bfloat16", progress=False)
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in load_file(converted / "model.safetensors").items():
        if tensor.ndim > 1 and "position" not in name:
            assert saved[name].dtype == tensor.dtype == torch.bfloat16
            assert torch.equal(saved[name].view(torch.int16), tensor.view(torch.int16)), name
    bits = sorted(tensor.view(torch.int16).flatten()[:100].tolist() for tensor in source.values())
    kept = [tensor for name, tensor in saved.items() if tensor.dtype == torch.bfloat16]
    ours = sorted(tensor.view(torch.int16).flatten()[:100].tolist() for tensor in kept)
    assert all(one in bits for one in ours)
    prompt, images = [1, IMAGE, *stored[0].text(5)], stored[0].images(1)
    wanted = logits_of(model, prompt, images)
    for directory in (tmp_path / "saved", converted):
        again = Share4V.from_pretrained(directory, dtype="bfloat16")
        np.testing.assert_array_equal(logits_of(again, prompt, images), wanted)


def test_a_model_in_memory_becomes_bfloat16_and_back(stored: tuple[Reference, Path], model: Share4V) -> None:
    prompt, images = [1, IMAGE, *stored[0].text(5)], stored[0].images(1)
    wide = Share4V.from_pretrained(stored[1])
    before, wanted = logits_of(wide, prompt, images), logits_of(model, prompt, images)
    assert wide.bfloat16() is wide and wide.dtype == "bfloat16"
    np.testing.assert_array_equal(logits_of(wide, prompt, images), wanted)
    wide.float()
    np.testing.assert_array_equal(logits_of(wide, prompt, images), before)
    assert np.abs(before - wanted).max() > 0


def test_an_adapter_is_merged_before_weights_are_rounded(
    stored: tuple[Reference, Path], model: Share4V, tmp_path: Path
) -> None:
    reference, path = stored
    modules = ("mlp.down_proj", "self_attn.q_proj")
    adapter = write_adapter(tmp_path / "lora", model.config.text_config, modules=modules)
    merged = Share4V.from_pretrained(path, dtype="bfloat16", adapter=adapter)
    changes, base, ours = load_file(adapter / "adapter_model.safetensors"), matrices(model), matrices(merged)
    for name, weight in ours.items():
        module = name.removeprefix("language_model.model.").removesuffix(".weight")
        prefix, wanted = f"base_model.model.model.{module}.lora_", torch.from_numpy(base[name])
        if name.removesuffix(".weight").endswith(modules) and name.startswith("language_model"):
            a, b = changes[f"{prefix}A.weight"], changes[f"{prefix}B.weight"]
            assert len(a) == RANK
            wanted = (wanted + b @ a).bfloat16().float()
            assert not np.array_equal(weight, base[name])
        # A sum beside a tie of bfloat16 may round to its other side.
        np.testing.assert_allclose(weight, wanted.numpy(), rtol=2.0**-7, atol=0)
        assert np.mean(weight != wanted.numpy()) < 0.01
    prompt, images = [1, IMAGE, *reference.text(5)], reference.images(1)
    assert np.abs(logits_of(merged, prompt, images) - logits_of(model, prompt, images)).max() > 0.1
    converted = convert(path, tmp_path / "converted", dtype="bfloat16", adapter=adapter, progress=False)
    again = Share4V.from_pretrained(converted, dtype="bfloat16")
    np.testing.assert_array_equal(logits_of(again, prompt, images), logits_of(merged, prompt, images))


def test_cells_beside_the_kernels_stay_float32(stored: tuple[Reference, Path], model: Share4V) -> None:
    """A CPU's cells do not compute in bfloat16. As with int8, a tower of cells has the checkpoint's numbers."""
    reference, path = stored
    mixed = Share4V.from_pretrained(path, dtype="bfloat16", vision_backend="mindspore")
    assert {str(one.dtype) for one in mixed.vision_tower.get_parameters()} == {"Float32"}
    images = reference.images(1)
    exact = Share4V.from_pretrained(path, vision_backend="mindspore").vision_tower
    np.testing.assert_array_equal(mixed.vision_tower(Tensor(images)).asnumpy(), exact(Tensor(images)).asnumpy())
    with pytest.raises(ValueError, match="dtype 'bfloat16' needs the CPU kernels"):
        Share4V.from_pretrained(path, dtype="bfloat16", **CELLS)


def test_the_caption_of_the_embedded_model() -> None:
    """Its logits are so far apart that bfloat16 changes no word."""
    captions = [pipeline("image-to-text", "sharegpt4v-tiny", dtype=dtype)(SCENE) for dtype in ("float32", "bfloat16")]
    assert captions[0] == captions[1] and captions[0][0]["generated_text"]
