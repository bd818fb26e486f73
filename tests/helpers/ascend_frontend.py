"""Compiles the graphs of the Ascend path with MindSpore's own front end, on a CPU: a program that prints JSON lines.

With MS_SIMULATION_LEVEL=0, set before MindSpore is imported, MindSpore parses a graph, infers its shapes and dtypes
with the real operators' signatures, and compiles it, but runs nothing: a graph returns 0. So this shows that a call is
well-formed, never what it computes. Neither CANN nor a card is used.

    python -m helpers.ascend_frontend WORK_DIRECTORY

First every case of `CASES` is compiled, then every mistake of `MISTAKES` in a copy of the package's sources.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIMULATION = {"MS_SIMULATION_LEVEL": "0"}
PACKAGE = "mindone.models.share4v"
# Raised by a `mindspore.jit` function of MindSpore 2.10 once it is compiled, because level 0 builds nothing to run.
COMPILED = "Can't find run graph func"
DTYPES = ("float32", "float16", "bfloat16")
CHUNK = 64  # CachedLlama.chunk
HIDDEN = 32


@dataclass(frozen=True)
class Case:
    """One graph of a model of one layer.

    Attributes:
        graph: a key of `GRAPHS`.
        dtype: dtype of the weights and, on Ascend, of the activations.
        batch: number of sequences.
        heads, kv_heads, head_size: of the language model; the vision tower has `heads` heads of the same size.
        operators: value of SHARE4V_FUSED_OPERATORS.
        left_padded: whether the prompts' padding comes first.
        stage: for `train`, one of the recipe's selections of weights.
        activations: the checkpoint's dtype, in which a model of integer weights computes.
    """

    graph: str
    dtype: str = "float16"
    batch: int = 1
    heads: int = 2
    kv_heads: int = 2
    head_size: int = 64
    operators: str = "all"
    left_padded: bool = False
    stage: str = ""
    activations: str = "float16"

    @property
    def is_fused(self) -> bool:
        """Whether attention must be that of Ascend: its operators do not take float32."""
        return self.operators == "all" and self.dtype != "float32"


def _cases() -> dict[str, Case]:
    everywhere = ("vision", "projector", "prefill", "decode", "sequences", "reorder")
    cases = {f"{graph}-{dtype}": Case(graph, dtype) for graph in everywhere for dtype in DTYPES}
    for graph in ("prefill", "decode", "sequences"):
        for dtype in ("float16", "bfloat16"):
            cases[f"{graph}-{dtype}-batch"] = Case(graph, dtype, batch=3)
        cases[f"{graph}-grouped"] = Case(graph, "bfloat16", batch=2, heads=4)
        for size in (80, 96, 128):
            cases[f"{graph}-heads-of-{size}"] = Case(graph, head_size=size)
    for dtype in ("float16", "bfloat16"):
        for graph in ("vision", "prefill", "decode", "sequences"):
            cases[f"{graph}-{dtype}-none"] = Case(graph, dtype, batch=2, operators="none")
        cases[f"prefill-{dtype}-left-padded"] = Case("prefill", dtype, batch=2, left_padded=True)
        for graph in ("prefill", "decode", "sequences"):
            for integers in ("int8", "int4"):
                cases[f"{graph}-{integers}-{dtype}"] = Case(graph, integers, batch=2, activations=dtype)
    cases["prefill-one-key-head"] = Case("prefill", kv_heads=1)
    cases["decode-one-key-head"] = Case("decode", kv_heads=1)
    for stage in ("all", "language-and-projector", "upper-vision"):
        cases[f"train-float32-{stage}"] = Case("train", "float32", batch=2, stage=stage)
    return cases


CASES = _cases()


@dataclass(frozen=True)
class Mistake:
    """One wrong line, and the case that must not compile with it.

    Attributes:
        file: within the package.
        old, new: `old` occurs once in the file and is replaced by `new`.
        case: the case whose graph has the line.
    """

    file: str
    old: str
    new: str
    case: Case


FUSED, LLAMA, LAYERS, ROPE = "nn/fused.py", "language/llama.py", "nn/layers.py", "language/rope.py"
_FLASH_LAYOUT = 'input_layout="BNSD",\n            sparse_mode=0'
_ONE_LAYOUT = 'input_layout="BNSD",\n            scale_value'
INTEGERS = "nn/integer_linear.py"
_PREFILL, _DECODE, _INT4 = Case("prefill"), Case("decode"), Case("decode", "int4")
MISTAKES = {
    "flash-layout": Mistake(FUSED, _FLASH_LAYOUT, _FLASH_LAYOUT.replace("BNSD", "BNDS"), _PREFILL),
    "flash-layout-of-other-axes": Mistake(FUSED, _FLASH_LAYOUT, _FLASH_LAYOUT.replace("BNSD", "BSH"), _PREFILL),
    "flash-head-count": Mistake(
        FUSED, "value,\n            self.heads,", "value,\n            self.heads + 1,", _PREFILL
    ),
    "flash-keyword": Mistake(FUSED, "scalar_value=", "scale_value=", _PREFILL),
    "one-query-layout": Mistake(FUSED, _ONE_LAYOUT, _ONE_LAYOUT.replace("BNSD", "BNDS"), _DECODE),
    "one-query-keys-no-tuple": Mistake(FUSED, "(key,),", "key,", _DECODE),
    "one-query-values-no-tuple": Mistake(FUSED, "(value,),", "value,", _DECODE),
    "one-query-keyword": Mistake(FUSED, "num_key_value_heads=self.kv_heads,", "num_kv_heads=self.kv_heads,", _DECODE),
    "one-query-head-count": Mistake(FUSED, "num_heads=self.heads,", "num_heads=self.heads + 1,", _DECODE),
    "one-query-scale-no-number": Mistake(FUSED, "scale_value=self.scale", "scale_value=str(self.scale)", _DECODE),
    "cache-dtype": Mistake(
        LLAMA,
        "LayerCache(*shape, llama.activations)",
        "LayerCache(*shape, ms.float32)",
        Case("decode", operators="incre_flash_attention"),
    ),
    "scatter-cache-dtype": Mistake(LLAMA, "llama.activations, scatter)", "ms.float32, scatter)", _DECODE),
    "scatter-mode": Mistake(
        LLAMA,
        'self.operator(self.key, rows, key, -2, "update")',
        'self.operator(self.key, rows, key, -2, "put")',
        _DECODE,
    ),
    "integer-type": Mistake(
        INTEGERS,
        "(in_features, out_features // 2), operators.int4_pair)",
        "(in_features, out_features // 2), activations)",
        _INT4,
    ),
    "integer-pairs": Mistake(
        INTEGERS, "(in_features, out_features // 2), operators", "(in_features, out_features), operators", _INT4
    ),
    "integer-transposed": Mistake(INTEGERS, "make(False, not self.is_int4,", "make(False, True,", _INT4),
    "integer-scale-type": Mistake(
        INTEGERS, "self.scale = _parameter(scales, activations)", "self.scale = _parameter(scales, ms.float32)", _INT4
    ),
    "layer-norm-axes": Mistake(LAYERS, "(self.dim,), self.weight, self.bias", "self.weight, self.bias", Case("vision")),
    "rows-of-two-axes": Mistake(
        LAYERS, "self.operator(matrix, 0, indices.reshape(-1))", "self.operator(matrix, 0, indices)", _DECODE
    ),
    "value-head-count": Mistake(
        LLAMA,
        "self.split(self.v_proj(x), self.kv_heads)",
        "self.split(self.v_proj(x), self.heads)",
        Case("prefill", heads=4),
    ),
    "rotary-not-cast-back": Mistake(ROPE, "rotated.astype(x.dtype).reshape(split)", "rotated.reshape(split)", _PREFILL),
    "rotary-mode": Mistake(ROPE, "sin.reshape(table), 0)", 'sin.reshape(table), "half")', _PREFILL),
    "rms-norm-tuple": Mistake(LAYERS, "epsilon=self.eps)[0].astype", "epsilon=self.eps).astype", _PREFILL),
    "rms-norm-keyword": Mistake(LAYERS, "epsilon=self.eps)[0]", "eps=self.eps)[0]", _PREFILL),
    "rms-norm-not-cast-back": Mistake(LAYERS, "epsilon=self.eps)[0].astype(x.dtype)", "epsilon=self.eps)[0]", _PREFILL),
    "softmax-not-cast-back": Mistake(
        LAYERS,
        "ops.softmax(scores, -1).astype(value.dtype)",
        "ops.softmax(scores, -1)",
        Case("prefill", operators="none"),
    ),
}


def build(case: Case) -> Any:
    """Return the model of a case, on the Ascend row of the table of devices."""
    from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
    from mindone.models.share4v.nn.device_operators import DEVICES, SWITCH

    DEVICES["CPU"] = DEVICES["Ascend"]  # this process is for nothing else
    os.environ[SWITCH] = case.operators
    text = TextConfig(50, HIDDEN, 48, 1, case.heads, case.kv_heads, case.head_size, max_position_embeddings=256)
    vision = VisionConfig(2 * case.head_size, 48, 2, 2, image_size=28, patch_size=14)
    config = Share4VConfig(vision, ProjectorConfig("mlp2x_gelu"), text, torch_dtype=case.activations)
    return Share4V(config, case.dtype, language_backend="llama", vision_backend="clip")


def _vision(model: Any, case: Case) -> None:
    import numpy as np
    from mindspore import Tensor

    from mindone.models.share4v.vision.features import ImageEncoder

    pixels = np.zeros((case.batch, 3, 28, 28), np.float32)
    ImageEncoder(model.vision_tower, model.mm_projector).compile_and_run(Tensor(pixels))


def _projector(model: Any, case: Case) -> None:
    import numpy as np
    from mindspore import Tensor

    features = Tensor(np.zeros((case.batch, 4, 2 * case.head_size), np.float32), model.vision_tower.activations)
    model.mm_projector.compile_and_run(features)


def _prefill(model: Any, case: Case) -> None:
    import numpy as np
    from mindspore import Tensor

    cached = model.language_model.new_cached(case.batch, 2 * CHUNK)
    embeds = Tensor(np.zeros((case.batch, CHUNK, HIDDEN), np.float32), model.language_model.activations)
    positions = np.arange(CHUNK)[None].repeat(case.batch, 0)
    if case.left_padded:
        positions = np.maximum(positions - 7 * np.arange(case.batch)[:, None], -1)
    totals = positions.max(1) + 1
    cached.prefill(embeds, positions, totals, np.full(case.batch, CHUNK - 1))


def _decode(model: Any, case: Case) -> None:
    import numpy as np

    cached = model.language_model.new_cached(case.batch, 2 * CHUNK)
    positions = np.arange(case.batch) * 9 - 1  # -1: the first sequence is finished
    cached.decode(np.full(case.batch, 5), positions)


def _sequences(model: Any, case: Case) -> None:
    import numpy as np
    from mindspore import Tensor, nn

    language = model.language_model

    class Sequences(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.language = language
            self.cos, self.sin, self.mask = language.tables(case.batch, 24)

        def construct(self, embeds: Tensor) -> Tensor:
            return self.language.forward(embeds, self.cos, self.sin, self.mask)

    Sequences().compile_and_run(Tensor(np.zeros((case.batch, 24, HIDDEN), np.float32), language.activations))


def _reorder(model: Any, case: Case) -> None:
    """Beam search: every sequence of a cache becomes a copy of another one, here of the same cache."""
    import numpy as np
    from mindspore import Tensor, nn

    cache = model.language_model.new_cached(4, CHUNK).caches[0]

    class Reorder(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.cache = cache

        def construct(self, indices: Tensor) -> Tensor:
            self.cache.copy_sequences(self.cache, indices)
            return indices

    Reorder().compile_and_run(Tensor(np.array([2, 2, 0, 1], np.int32)))


def _train(model: Any, case: Case) -> None:
    """The first step of `train`, through its public interface; it cannot return a loss."""
    import numpy as np

    from mindone.models.share4v import IGNORE_INDEX
    from mindone.models.share4v.training import trainer
    from mindone.models.share4v.training.loss import make_batch

    selections = {
        "all": trainer.train_all,
        "language-and-projector": trainer.train_language_and_projector,
        "upper-vision": trainer.train_upper_vision(0),
    }
    ids = np.array([[1, -200, *range(5, 13)], [1, *range(5, 13), -200]])
    labels = np.where((np.arange(10) > 3) & (ids >= 0), ids, IGNORE_INDEX)
    batch = make_batch(model, np.zeros((2, 3, 28, 28), np.float32), ids, np.ones_like(ids), labels, 16)
    stage = trainer.Stage(trainer.Schedule(1e-3, 1, 0), 16, selections[case.stage])
    try:
        next(trainer.train(model, stage, [batch]))
    except AttributeError as problem:  # 2.7: the loss is the number 0
        if "asnumpy" not in str(problem):
            raise


GRAPHS: dict[str, Callable[[Any, Case], None]] = {
    "vision": _vision,
    "projector": _projector,
    "prefill": _prefill,
    "decode": _decode,
    "sequences": _sequences,
    "reorder": _reorder,
    "train": _train,
}


def compile_case(case: Case) -> dict[str, Any]:
    """Compile a case; return its error, None if there was none, and whether both attentions are fused."""
    error, fused = None, None
    try:
        model = build(case)
        attention = model.language_model.model.layers[0].self_attn
        fused = [type(attention.attend).__name__ == "FlashAttention", attention.attend_one is not None]
        GRAPHS[case.graph](model, case)
    except Exception as problem:
        if COMPILED not in str(problem):
            error = f"{type(problem).__name__}: {str(problem).strip()[:500]}"
    return {"error": error, "fused": fused}


def use_sources(directory: Path) -> None:
    """Import the package from `directory` from now on, whatever was imported before."""
    for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
        del sys.modules[name]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def changed_copy(mistake: Mistake, directory: Path) -> Path:
    """Make links to the package's Python files in `directory`, and a copy with the mistake."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).parent
    shutil.copytree(source, directory, ignore=lambda at, names: _other_files(Path(at), names), copy_function=os.symlink)
    file = directory / mistake.file
    text = file.read_text(encoding="utf-8")
    file.unlink()
    if text.count(mistake.old) != 1:
        raise ValueError(f"{mistake.file} has {text.count(mistake.old)} times {mistake.old!r}, expected once")
    file.write_text(text.replace(mistake.old, mistake.new), encoding="utf-8")
    return directory


def _other_files(at: Path, names: list[str]) -> list[str]:
    skipped = {"__pycache__", "assets", "csrc"}
    return [name for name in names if name in skipped or ((at / name).is_file() and not name.endswith(".py"))]


def report(name: str, case: Case) -> None:
    """Compile a case and write a line of JSON."""
    sys.stdout.write(json.dumps({"name": name, **compile_case(case)}) + "\n")
    sys.stdout.flush()


def main(work: Path, only: Sequence[str] = ()) -> None:
    """Compile all cases and mistakes, or those named; `work` is an empty directory."""
    import mindspore as ms

    ms.set_device("CPU")
    names = only or (*CASES, *MISTAKES)
    copies = {name: changed_copy(MISTAKES[name], work / name) for name in names if name in MISTAKES}
    for name in names:
        if name in CASES:
            report(name, CASES[name])
    for name, directory in copies.items():
        use_sources(directory)
        report(name, MISTAKES[name].case)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
