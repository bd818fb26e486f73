"""choose_components: a backend's name becomes the classes of a model."""

from __future__ import annotations

import pytest

from mindone.models.share4v.backends import choose_components
from mindone.models.share4v.kernels.library import kernels_available
from mindone.models.share4v.language.llama import LlamaForCausalLM
from mindone.models.share4v.registry import LANGUAGE_MODELS, VISION_TOWERS
from mindone.models.share4v.vision.clip import CLIPVisionTower

CELLS = (CLIPVisionTower, LlamaForCausalLM)
KERNELS = (VISION_TOWERS.resolve("packed-clip"), LANGUAGE_MODELS.resolve("packed-llama"))


def classes(language: str, vision: str, dtype: str = "float32") -> tuple[type, type]:
    chosen = choose_components(dtype, language, vision)
    return chosen.vision_tower, chosen.language_model


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_each_backend(dtype: str) -> None:
    assert classes("mindspore", "mindspore", dtype) == CELLS
    assert classes("kernels", "kernels", dtype) == KERNELS
    fastest = KERNELS if kernels_available() else CELLS
    assert classes("auto", "auto", dtype) == classes("native", "native", dtype) == fastest


def test_backends_and_registered_names_can_be_mixed() -> None:
    assert classes("mindspore", "kernels") == (KERNELS[0], CELLS[1])
    assert classes("packed-llama", "clip") == (CELLS[0], KERNELS[1])


def test_integer_weights_run_on_the_kernels_only() -> None:
    assert classes("auto", "auto", "int4") == KERNELS
    with pytest.raises(ValueError, match="dtype 'int4' needs the CPU kernels, but the language model is 'llama'"):
        classes("mindspore", "auto", "int4")
    with pytest.raises(ValueError, match="kv_cache_dtype 'int8' needs the CPU kernels"):
        choose_components("float32", "mindspore", kv_cache_dtype="int8")
