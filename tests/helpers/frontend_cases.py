"""What helpers/ascend_frontend.py compiles: graphs, and mistakes with which they must not compile."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from .changed_sources import Change

IS_OLDEST = version("mindspore").startswith("2.7.")
SIMULATION = {"MS_SIMULATION_LEVEL": "0"}
GRAPHS = ("vision", "projector", "prefill", "decode", "sequences", "reorder", "train")
DTYPES = ("float32", "float16", "bfloat16")
# The recipe's selections of trained weights.
STAGES = ("all", "language-and-projector", "upper-vision")
# Hidden size, inner size and heads of the language models of 7B and 13B.
REAL = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40)}


@dataclass(frozen=True)
class Case:
    """One graph.

    Attributes:
        graph: a key of `GRAPHS`.
        dtype: dtype of the weights and, on Ascend, of the activations; for `train`, of the activations.
        batch: number of sequences.
        heads, kv_heads, head_size: of the language model; the vision tower has `heads` heads of the same size.
        operators: value of SHARE4V_FUSED_OPERATORS.
        left_padded: whether the prompts' padding comes first.
        stage: for `train`, one of the recipe's selections of weights.
        accumulated: for `train`, number of batches per step.
        activations: the checkpoint's dtype, in which a model of integer weights computes.
        real: "" for a small model of one layer; or a key of REAL, for that model with two layers and its CLIP.
    """

    graph: str
    dtype: str = "float16"
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    head_size: int = 64
    operators: str = "all"
    left_padded: bool = False
    stage: str = "all"
    accumulated: int = 1
    activations: str = "float16"
    real: str = ""

    @property
    def is_fused(self) -> list[bool]:
        """Whether attention of many queries and of one query must be Ascend's; the latter does not take float32."""
        flash, one_query = (
            self.operators == "all" or name in self.operators
            for name in ("flash_attention_score", "incre_flash_attention")
        )
        return [flash, one_query and self.dtype != "float32" and self.graph != "train"]


def _cases() -> dict[str, Case]:
    cases = {f"{graph}-{dtype}": Case(graph, dtype) for graph in GRAPHS[:-1] for dtype in DTYPES}
    # Each of these has several properties; what fails is told by the others.
    for graph in ("prefill", "decode", "sequences"):
        cases[f"{graph}-grouped-batch-heads-of-80"] = Case(graph, "bfloat16", batch=3, heads=4, head_size=80)
        cases[f"{graph}-one-key-head-of-96"] = Case(graph, batch=2, kv_heads=1, head_size=96, left_padded=True)
        cases[f"{graph}-bfloat16-none"] = Case(
            graph, "bfloat16", 2, 4, head_size=128, operators="none", left_padded=True
        )
        for integers, dtype in (("int8", "float16"), ("int4", "bfloat16")):
            cases[f"{graph}-{integers}-{dtype}"] = Case(graph, integers, batch=2, activations=dtype)
    cases["decode-int4-float16"] = Case("decode", "int4", batch=2)
    cases["decode-int8-bfloat16"] = Case("decode", "int8", batch=2, activations="bfloat16")
    cases["decode-one-operator"] = Case("decode", operators="incre_flash_attention")
    cases["vision-heads-of-128"] = Case("vision", "bfloat16", batch=2, head_size=128)
    cases["vision-bfloat16-none"] = Case("vision", "bfloat16", batch=2, operators="none")
    cases["decode-float16-none"] = Case("decode", batch=2, operators="none")
    cases["prefill-bfloat16-left-padded"] = Case("prefill", "bfloat16", batch=2, left_padded=True)
    # Every stage and every dtype; the stages differ only in the weights whose gradients are computed.
    for stage, dtype in zip(STAGES, DTYPES, strict=True):
        cases[f"train-{stage}-{dtype}"] = Case("train", dtype, batch=2, stage=stage)
    cases["train-accumulated-float16"] = Case("train", "float16", batch=2, operators="none", accumulated=2)
    for size in REAL:
        for graph in ("prefill", "decode"):
            cases[f"{graph}-{size}"] = Case(graph, "bfloat16", batch=2, real=size)
    for graph in ("vision", "train"):
        cases[f"{graph}-13b"] = Case(graph, "bfloat16", batch=2, real="13b")
    return cases


def _long_cases() -> dict[str, Case]:
    """Training of every stage in every dtype, and every graph of the shapes of the 7B and 13B."""
    cases = {f"train-{stage}-{dtype}": Case("train", dtype, 2, stage=stage) for stage in STAGES for dtype in DTYPES}
    graphs = [graph for graph in GRAPHS if graph != "reorder"]
    cases |= {f"{graph}-{size}": Case(graph, "bfloat16", 2, real=size) for size in REAL for graph in graphs}
    return {name: case for name, case in cases.items() if name not in CASES}


CASES = _cases()
LONG_CASES = _long_cases()  # not in CI: see helpers/ascend_frontend.py


@dataclass(frozen=True)
class Mistake:
    """A wrong line, and the case that must not compile with it.

    Attributes:
        change: the line.
        case: name of the case whose graph has the line.
        oldest_only: whether MindSpore 2.10 compiles it and 2.7.0 does not; tests/ascend/test_controls.py
            has it too, unless it changes no value there (a concatenation that promotes dtypes).
    """

    change: Change
    case: str
    oldest_only: bool = False


FUSED, LLAMA, LAYERS, ROPE = "nn/fused.py", "language/llama.py", "nn/layers.py", "language/rope.py"
LOSS = "training/loss.py"
_FLASH_LAYOUT = 'input_layout="BNSD",\n            sparse_mode=0'
_ONE_LAYOUT = 'input_layout="BNSD",\n            scale_value'
_PREFILL, _DECODE, _TRAIN = "prefill-float16", "decode-float16", "train-upper-vision-bfloat16"
_INT4, INTEGERS = "decode-int4-float16", "nn/integer_linear.py"
MISTAKES = {
    "flash-layout": Mistake(Change(FUSED, _FLASH_LAYOUT, _FLASH_LAYOUT.replace("BNSD", "BNDS")), _PREFILL),
    "flash-layout-of-other-axes": Mistake(Change(FUSED, _FLASH_LAYOUT, _FLASH_LAYOUT.replace("BNSD", "BSH")), _PREFILL),
    "flash-head-count": Mistake(
        Change(FUSED, "value,\n            self.heads,", "value,\n            self.heads + 1,"), _PREFILL
    ),
    "flash-keyword": Mistake(Change(FUSED, "scalar_value=", "scale_value="), _PREFILL),
    "flash-mask-of-floats": Mistake(
        Change(FUSED, "attn_mask=mask,", "attn_mask=None if mask is None else mask.astype(query.dtype),"),
        _PREFILL,
        True,
    ),
    "one-query-layout": Mistake(Change(FUSED, _ONE_LAYOUT, _ONE_LAYOUT.replace("BNSD", "BNDS")), _DECODE),
    "one-query-keys-no-tuple": Mistake(Change(FUSED, "(key,),", "key,"), _DECODE),
    "one-query-values-no-tuple": Mistake(Change(FUSED, "(value,),", "value,"), _DECODE),
    "one-query-keyword": Mistake(
        Change(FUSED, "num_key_value_heads=self.kv_heads,", "num_kv_heads=self.kv_heads,"), _DECODE
    ),
    "one-query-head-count": Mistake(Change(FUSED, "num_heads=self.heads,", "num_heads=self.heads + 1,"), _DECODE),
    "one-query-scale-no-number": Mistake(
        Change(FUSED, "scale_value=self.scale", "scale_value=str(self.scale)"), _DECODE
    ),
    "cache-dtype": Mistake(
        Change(LLAMA, "LayerCache(*shape, llama.activations)", "LayerCache(*shape, ms.float32)"), "decode-one-operator"
    ),
    "scatter-cache-dtype": Mistake(Change(LLAMA, "llama.activations, scatter)", "ms.float32, scatter)"), _DECODE),
    "scatter-mode": Mistake(
        Change(
            LLAMA,
            'self.operator(self.key, rows, key, -2, "update")',
            'self.operator(self.key, rows, key, -2, "put")',
        ),
        _DECODE,
    ),
    "integer-type": Mistake(
        Change(
            INTEGERS,
            "(in_features, out_features // 2), operators.int4_pair)",
            "(in_features, out_features // 2), activations)",
        ),
        _INT4,
    ),
    "integer-pairs": Mistake(
        Change(INTEGERS, "(in_features, out_features // 2), operators", "(in_features, out_features), operators"), _INT4
    ),
    "integer-transposed": Mistake(Change(INTEGERS, "make(False, not self.is_int4,", "make(False, True,"), _INT4),
    "integer-scale-type": Mistake(
        Change(INTEGERS, "self.scale = _parameter(scales, activations)", "self.scale = _parameter(scales, ms.float32)"),
        _INT4,
    ),
    "layer-norm-axes": Mistake(
        Change(LAYERS, "(self.dim,), self.weight, self.bias", "self.weight, self.bias"), "vision-float16"
    ),
    "rows-of-two-axes": Mistake(
        Change(LAYERS, "self.operator(matrix, 0, indices.reshape(-1))", "self.operator(matrix, 0, indices)"), _DECODE
    ),
    "value-head-count": Mistake(
        Change(LLAMA, "split_heads(self.v_proj(x), self.kv_heads,", "split_heads(self.v_proj(x), self.heads,"),
        "prefill-grouped-batch-heads-of-80",
    ),
    "rotary-not-cast-back": Mistake(
        Change(ROPE, "rotated.astype(x.dtype).reshape(x.shape)", "rotated.reshape(x.shape)"), _PREFILL
    ),
    "rotary-mode": Mistake(Change(ROPE, "sin.reshape(table), 0)", 'sin.reshape(table), "half")'), _PREFILL),
    "rms-norm-tuple": Mistake(Change(LAYERS, "epsilon=self.eps)[0].astype", "epsilon=self.eps).astype"), _PREFILL),
    "rms-norm-keyword": Mistake(Change(LAYERS, "epsilon=self.eps)[0]", "eps=self.eps)[0]"), _PREFILL),
    "rms-norm-not-cast-back": Mistake(
        Change(LAYERS, "epsilon=self.eps)[0].astype(x.dtype)", "epsilon=self.eps)[0]"), _PREFILL
    ),
    "softmax-not-cast-back": Mistake(
        Change(LAYERS, "ops.Softmax(-1)(scores).astype(value.dtype)", "ops.Softmax(-1)(scores)"),
        "prefill-bfloat16-none",
    ),
    "trained-weight-not-cast": Mistake(
        Change(LAYERS, "self.matmul(rows, widened(self.weight, rows))", "self.matmul(rows, self.weight)"), _TRAIN
    ),
    "trained-features-not-cast": Mistake(
        Change(LOSS, "features.astype(ms.float32), index", "features, index"), _TRAIN, oldest_only=True
    ),
    "trained-patches-not-cast": Mistake(
        Change("vision/clip.py", "kernel = widened(self.weight, tiles)", "kernel = self.weight"), _TRAIN
    ),
    "trained-sums-of-another-dtype": Mistake(
        Change(
            "training/step.py", "ops.assign_add(sums[number], gradient)", "ops.assign_add(sums[number], gradient.sum())"
        ),
        "train-accumulated-float16",
    ),
}
REFUSED = [name for name, mistake in MISTAKES.items() if IS_OLDEST or not mistake.oldest_only]
