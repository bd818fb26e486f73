"""Which operators and types a device gets, and where a model lies outside what an operator takes."""

from __future__ import annotations

import inspect
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindone.models.share4v import Share4V, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.language.rope import Rotary
from mindone.models.share4v.nn import layers
from mindone.models.share4v.nn.device_operators import FUSED, SWITCH, AttentionLimits, DeviceOperators, device_operators
from mindone.models.share4v.nn.fused import Arithmetic, Attention, FlashAttention

SIZES = (32, 8, 128, 4097)
# What the cells pass to each operator: names that are positional there, and names that are keywords.
CALLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "rms_norm": (2, ("epsilon",)),
    "layer_norm": (5, ()),
    "kv_cache_scatter_update": (5, ()),
    "index_select": (3, ()),
    "narrow": (4, ()),
    "weight_quant_batch_matmul": (3, ()),
    "rotary_position_embedding": (4, ()),
    "flash_attention_score": (4, ("attn_mask", "scalar_value", "input_layout", "sparse_mode")),
    "incre_flash_attention": (
        3,
        (
            "actual_seq_lengths",
            "num_heads",
            "input_layout",
            "scale_value",
            "num_key_value_heads",
            "inner_precise",
        ),
    ),
}
FIRST = {
    "rms_norm": ["x", "gamma"],
    "layer_norm": ["input", "normalized_shape", "weight", "bias", "eps"],
    "kv_cache_scatter_update": ["var", "indices", "updates", "axis", "reduce"],
    "index_select": ["input", "dim", "index"],
    "narrow": ["input", "dim", "start", "length"],
    "weight_quant_batch_matmul": ["transpose_x", "transpose_weight", "antiquant_group_size"],
    "rotary_position_embedding": ["x", "cos", "sin", "mode"],
    "flash_attention_score": ["query", "key", "value", "head_num"],
    "incre_flash_attention": ["query", "key", "value"],
}


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("an operator was called")


ASCEND = replace(device_operators("Ascend"), **dict.fromkeys(FUSED, never))


def test_a_cpu_has_no_fused_operators_and_no_bfloat16() -> None:
    assert ms.get_context("device_target") == "CPU"
    assert device_operators() == device_operators("CPU") == device_operators("GPU") == DeviceOperators()
    assert [getattr(device_operators(), name) for name in FUSED] == [None] * len(FUSED)


def test_an_ascend_has_those_of_mindspore() -> None:
    operators = device_operators("Ascend")
    for name in ("rms_norm", "rotary_position_embedding", "flash_attention_score", "incre_flash_attention"):
        assert getattr(operators, name) is getattr(ops, name)
    assert type(operators.kv_cache_scatter_update) is ops.auto_generate.KVCacheScatterUpdate
    assert operators.weight_quant_batch_matmul is ops.auto_generate.WeightQuantBatchMatmul
    assert None not in [getattr(operators, name) for name in FUSED]
    assert operators.dtypes == ("float32", "float16", "bfloat16")


@pytest.mark.parametrize("name", FUSED)
def test_this_mindspore_takes_the_arguments_that_the_cells_pass(name: str) -> None:
    """MindSpore announces another signature of rms_norm for after 2.9.0; 2.10.0 still has the old one."""
    signature, (count, keywords) = inspect.signature(getattr(device_operators("Ascend"), name)), CALLS[name]
    signature.bind(*range(count), **dict.fromkeys(keywords))
    assert list(signature.parameters)[:count] == FIRST[name]


@pytest.mark.parametrize(
    "setting, wanted",
    [
        ("all", FUSED),
        ("", FUSED),
        ("none", ()),
        ("rms_norm", ("rms_norm",)),
        (" rms_norm , incre_flash_attention ", ("rms_norm", "incre_flash_attention")),
    ],
)
def test_operators_can_be_switched_off(setting: str, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, setting)
    operators = device_operators("Ascend")
    assert tuple(name for name in FUSED if getattr(operators, name) is not None) == wanted


@pytest.mark.parametrize("setting", ["flash", "all,rms_norm", "none,rms_norm"])
def test_an_unknown_operator_is_an_error(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, setting)
    with pytest.raises(ValueError, match=r"SHARE4V_FUSED_OPERATORS names (flash|all|none): expected all, none, or"):
        device_operators("Ascend")


@pytest.mark.parametrize(
    "dtype, sizes, flash, incremental",
    [
        ("float16", SIZES, True, True),
        ("bfloat16", SIZES, True, True),
        ("float32", SIZES, True, False),
        ("float16", (32, 8, 120, 4097), False, False),
        ("float16", (32, 8, 512, 4097), True, True),
        ("float16", (32, 8, 528, 4097), False, False),
        ("float16", (256, 8, 64, 4097), True, True),
        ("float16", (272, 8, 64, 4097), False, False),
        ("float16", (64, 1, 64, 4097), True, True),
        ("float16", (65, 1, 64, 4097), True, False),
        ("float16", (32, 8, 128, 512 * 1024), True, True),
        ("float16", (32, 8, 128, 512 * 1024 + 1), False, False),
    ],
)
def test_what_attention_takes(dtype: str, sizes: tuple[int, int, int, int], flash: bool, incremental: bool) -> None:
    arithmetic = Arithmetic.of(dtype, ASCEND)
    assert type(arithmetic.attention(*sizes)) is (FlashAttention if flash else Attention)
    assert (arithmetic.one_query_attention(*sizes) is not None) == incremental


def test_queries_of_other_dtypes_are_left_to_the_portable_cells() -> None:
    """Training in half precision has float32 weights, so the model cannot tell which dtype its queries will have."""
    cell, x = Arithmetic.of("float32", ASCEND).attention(2, 2, 32, 9), Tensor(np.ones((1, 2, 3, 32), np.float32))
    mask = cell.mask(Tensor(np.triu(np.ones((1, 1, 3, 3), bool), 1)))
    assert isinstance(cell, FlashAttention) and mask.dtype == ms.bool_
    np.testing.assert_allclose(cell(x, x, x, mask).asnumpy(), np.ones((1, 3, 64)), rtol=1e-6)
    with pytest.raises(AssertionError, match="an operator was called"):
        cell(x.astype(ms.float16), x.astype(ms.float16), x.astype(ms.float16), mask)


@pytest.mark.parametrize(
    "heads, size, fused", [(32, 128, True), (32, 7, False), (4, 894, True), (4, 896, False), (1000, 64, False)]
)
def test_what_rotary_takes(heads: int, size: int, fused: bool) -> None:
    assert Rotary(heads, size, ASCEND).is_fused == fused


def test_the_product_with_integers_takes_what_the_cells_pass() -> None:
    product = device_operators("Ascend").weight_quant_batch_matmul
    assert product is not None
    names = ["x", "weight", "antiquant_scale", "antiquant_offset", "quant_scale", "quant_offset", "bias"]
    assert list(inspect.signature(product(False, False, 64)).parameters) == names


def test_an_operator_that_this_mindspore_lacks_is_left_to_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ops.auto_generate, "KVCacheScatterUpdate")
    assert device_operators("Ascend").kv_cache_scatter_update is None


def test_an_operator_that_is_missing_is_left_to_the_cells() -> None:
    for name in (
        "rms_norm",
        "rotary_position_embedding",
        "flash_attention_score",
        "incre_flash_attention",
        "layer_norm",
    ):
        arithmetic = Arithmetic.of("float16", replace(ASCEND, **{name: None}))
        made = {
            "layer_norm": arithmetic.layer_norm(8, 1e-6).is_fused,
            "rms_norm": arithmetic.rms_norm(8, 1e-6).is_fused,
            "rotary_position_embedding": Rotary(4, 16, arithmetic.operators).is_fused,
            "flash_attention_score": isinstance(arithmetic.attention(*SIZES), FlashAttention),
            "incre_flash_attention": arithmetic.one_query_attention(*SIZES) is not None,
        }
        assert [other for other, is_fused in made.items() if not is_fused] == [name]


def test_limits_are_data() -> None:
    tight = replace(ASCEND, flash_limits=AttentionLimits(max_head_size=64))
    assert type(Arithmetic.of("float16", tight).attention(*SIZES)) is Attention


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_activations(dtype: str) -> None:
    assert layers.activation_dtype(dtype, ASCEND) == layers.weight_dtype(dtype, ASCEND) == getattr(ms, dtype)
    if dtype != "bfloat16":
        assert layers.activation_dtype(dtype) == ms.float32


def test_cells_of_bfloat16_on_a_cpu_are_an_error_that_helps() -> None:
    message = "dtype 'bfloat16' is not supported by MindSpore's operators on a CPU, only on Ascend: use 'float32' or"
    with pytest.raises(ValueError, match=message):
        layers.weight_dtype("bfloat16")
    config = Share4VConfig(
        VisionConfig(32, 64, 2, 2, image_size=28, patch_size=14), text_config=TextConfig(99, 32, 64, 2, 4)
    )
    for make in (
        lambda: Share4V(config, "bfloat16"),
        lambda: Share4V.from_pretrained("sharegpt4v-tiny", dtype="bfloat16", language_backend="mindspore"),
        lambda: Share4V.from_pretrained("sharegpt4v-tiny", dtype="bfloat16", language_backend="llama"),
    ):
        with pytest.raises(ValueError, match="dtype 'bfloat16' needs the CPU kernels, but the language model is"):
            make()
    assert Share4V(config, "bfloat16", "kernels", "kernels").dtype == "bfloat16"
