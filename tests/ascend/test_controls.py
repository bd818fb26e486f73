"""Mistakes that MindSpore's front end compiles, put into the package's sources: the checks of this folder notice them.

They change values (an inverted mask, a scale, lengths, tables), or an argument that only the operator itself checks;
stand-ins refuse the latter, as the documentation does. nn/test_ascend_frontend.py has what the front end refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import operator_checks as checks
from helpers.ascend import fused, portable, stand_ins
from helpers.changed_sources import Change, put_into_this_process
from mindspore import Tensor

from mindone.models.share4v import Share4VConfig, TextConfig
from mindone.models.share4v.language import llama
from mindone.models.share4v.nn.device_operators import DeviceOperators
from mindone.models.share4v.nn.graph import Graph

# Two key/value heads for four query heads.
CONFIG = Share4VConfig(text_config=TextConfig(97, 64, 48, 1, 4, 2, 16, max_position_embeddings=128))
CHUNK = 64


def language_model(operators: DeviceOperators) -> llama.LlamaForCausalLM:
    """A LLaMA with random weights, equal for all operators, large enough for every key to matter."""
    model, rng = llama.LlamaForCausalLM(CONFIG, "float32", operators), np.random.default_rng(0)
    for _, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(rng.normal(0, 0.4, parameter.shape).astype(np.float32)))
    return model


def cached_logits(operators: DeviceOperators) -> np.ndarray:
    """A prefill of two texts of unequal length, and two steps of decoding."""
    cached = language_model(operators).new_cached(2, CHUNK)
    embeds = np.random.default_rng(1).standard_normal((2, CHUNK, 64)).astype(np.float32)
    lengths = np.array([40, 3])
    positions = np.arange(CHUNK)[None].repeat(2, 0)
    positions = np.where(positions < lengths[:, None], positions, -1)
    logits = [cached.prefill(Tensor(embeds), positions, lengths, lengths - 1)]
    logits += [cached.decode(np.array([5, 6 + step]), lengths + step) for step in range(2)]
    return np.stack([value.asnumpy() for value in logits])


@pytest.fixture(scope="module")
def portable_logits() -> np.ndarray:
    return cached_logits(portable(fused("float32")))


def rms_norm() -> None:
    checks.check_rms_norm(stand_ins(), "float16")


def rotary() -> None:
    checks.check_rotary(4, 3, 2, stand_ins(), "float16")


def prefill() -> None:
    checks.check_prefill_attention_over_a_cache(4, 2, 32, stand_ins(), "float16")


def whole_texts() -> None:
    checks.check_attention_with_one_mask_for_all_texts(4, 2, 32, stand_ins(), "float16")


def decode() -> None:
    checks.check_decode_attention_over_a_cache(4, 2, 32, stand_ins(), "float16")


FUSED, LLAMA, LAYERS = "nn/fused.py", "language/llama.py", "nn/layers.py"
ROPE, TABLES = "language/rope.py", "language/rope_tables.py"
VALUES = r"Not equal to tolerance"
# Name: the change, the check that notices it, and what it says. None: the cached logits, against the portable cells'.
CONTROLS: dict[str, tuple[Change, Callable[[], None] | None, str]] = {
    "inverted-mask": (
        Change(FUSED, "attn_mask=mask,", "attn_mask=None if mask is None else mask.logical_not(),"),
        prefill,
        VALUES,
    ),
    "inverted-mask-of-whole-texts": (
        Change(FUSED, "attn_mask=mask,", "attn_mask=None if mask is None else mask.logical_not(),"),
        whole_texts,
        VALUES,
    ),
    "no-mask": (Change(FUSED, "attn_mask=mask,", "attn_mask=None,"), prefill, VALUES),
    "mask-of-floats": (
        Change(FUSED, "attn_mask=mask,", "attn_mask=None if mask is None else mask.astype(query.dtype),"),
        prefill,
        "attn_mask is not bool or uint8",
    ),
    "mask-shared-by-all-with-four-axes": (
        Change(FUSED, "return hidden.reshape(hidden.shape[2:]) if hidden.shape[0] == 1 else hidden", "return hidden"),
        whole_texts,
        "attn_mask is not",
    ),
    "flash-no-scale": (Change(FUSED, "            scalar_value=self.scale,\n", ""), prefill, VALUES),
    "flash-scale-without-root": (
        Change(FUSED, "scalar_value=self.scale", "scalar_value=self.scale * self.scale"),
        prefill,
        VALUES,
    ),
    "flash-sparse-mode": (Change(FUSED, "sparse_mode=0", "sparse_mode=2"), prefill, "sparse_mode 0"),
    "one-query-no-scale": (Change(FUSED, "            scale_value=self.scale,\n", ""), decode, VALUES),
    "one-query-no-lengths": (
        Change(FUSED, "            actual_seq_lengths=lengths,\n", ""),
        decode,
        VALUES,
    ),
    "one-query-key-head-count": (
        Change(FUSED, "num_key_value_heads=self.kv_heads", "num_key_value_heads=self.heads"),
        decode,
        "key's heads are not num_key_value_heads",
    ),
    "one-query-precision": (Change(FUSED, "inner_precise=0", "inner_precise=2"), decode, "inner_precise is 0 or 1"),
    "lengths-one-too-small": (
        Change(LLAMA, ".astype(np.int64) + 1", ".astype(np.int64)"),
        None,
        VALUES,
    ),
    "lengths-one-too-large": (Change(LLAMA, ".astype(np.int64) + 1", ".astype(np.int64) + 2"), None, VALUES),
    "lengths-int32": (
        Change(LLAMA, ".astype(np.int64) + 1", ".astype(np.int32) + 1"),
        None,
        "actual_seq_lengths is not int64",
    ),
    "causal-mask-one-too-small": (
        Change(LLAMA, "self.slot_ids > slots)", "self.slot_ids >= slots)"),
        None,
        VALUES,
    ),
    "causal-mask-one-too-large": (
        Change(LLAMA, "self.slot_ids > slots)", "self.slot_ids > 1 + slots)"),
        None,
        VALUES,
    ),
    "rms-norm-input-not-upcast": (
        Change(LAYERS, "self.operator(x.astype(ms.float32), self.weight,", "self.operator(x, self.weight,"),
        rms_norm,
        "x and gamma have different types",
    ),
    "rms-norm-no-weight": (
        Change(LAYERS, "ms.float32), self.weight, epsilon", "ms.float32), self.weight * 0 + 1, epsilon"),
        rms_norm,
        VALUES,
    ),
    "rms-norm-epsilon": (Change(LAYERS, "epsilon=self.eps", "epsilon=0.0"), rms_norm, "epsilon is not in"),
    "rotary-input-not-upcast": (
        Change(ROPE, "wide = x.astype(ms.float32).reshape(tokens)", "wide = x.reshape(tokens)"),
        rotary,
        "x, cos and sin have different types",
    ),
    "rotary-tables-exchanged": (
        Change(ROPE, "cos.reshape(table), sin.reshape(table)", "sin.reshape(table), cos.reshape(table)"),
        rotary,
        VALUES,
    ),
    "rotary-tables-of-another-shape": (
        Change(ROPE, "else (1, rows, 1, size)", "else (rows, 1, 1, size)"),
        rotary,
        "cos fits no layout of x",
    ),
    "rotary-mode": (Change(ROPE, "sin.reshape(table), 0)", "sin.reshape(table), 1)"), rotary, "implements mode 0"),
    "tables-of-interleaved-pairs": (
        Change(TABLES, "np.concatenate((angles, angles), -1)", "np.repeat(angles, 2, -1)"),
        rotary,
        VALUES,
    ),
    "tables-of-negative-angles": (
        Change(TABLES, "np.cos(angles), np.sin(angles)", "np.cos(angles), np.sin(-angles)"),
        rotary,
        VALUES,
    ),
}  # fmt: skip


def test_decoding_equals_the_portable_cells(portable_logits: np.ndarray) -> None:
    assert np.abs(portable_logits).max() > 1
    np.testing.assert_allclose(cached_logits(fused("float32")), portable_logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_mistake_is_noticed(
    name: str, portable_logits: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same checks pass on the sources as they are (test_operators.py, and above).

    Without compilation, which takes seconds and changes no value: the unchanged cells are compiled above.
    """
    change, check, message = CONTROLS[name]
    put_into_this_process(change, tmp_path, monkeypatch)
    monkeypatch.setattr(Graph, "compile_and_run", Graph.__call__)
    with pytest.raises((AssertionError, TypeError, ValueError), match=message):
        if check is None:
            np.testing.assert_allclose(cached_logits(fused("float32")), portable_logits, rtol=0, atol=1e-4)
        else:
            check()
