"""What `share4v convert --dtype int4` costs for one layer of a shape with random weights: CPU time and peak memory.

    python benchmarks/conversion.py --shape 7b

One layer is rounded twice, on one calibration sequence and on three, and the time for all sequences and all layers is
extrapolated: a part that does not depend on the sequences (GPTQ) and one that grows with them (the layer in NumPy, its
second moments, and the rounded layer on the kernels). CPU seconds of all threads are reported, because they hold on a
busy machine too; on N idle cores the conversion takes about 1/N of them.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import asdict, replace

import numpy as np
from shapes import SHAPES

from mindone.models.share4v import Share4VConfig, TextConfig
from mindone.models.share4v.calibration import PICTURES, SEQUENCE, TOKENS
from mindone.models.share4v.checkpoint.packed import write_vectors
from mindone.models.share4v.kernels.packing import BlockWriter
from mindone.models.share4v.language.weights import language_plans, language_shapes
from mindone.models.share4v.rounding.gptq_layers import LayerRounder
from mindone.models.share4v.rounding.rotation import RotatedWeights, Rotation

PROMPT = 50  # tokens around a picture
PATTERN = 1_000_003  # random values that are repeated; a prime, so that no two rows of a matrix are equal


def cpu_seconds(config: Share4VConfig, sequences: int) -> float:
    """Return the CPU seconds, of all threads, in which the first layer is rounded."""
    text, generator = config.text_config, np.random.default_rng(0)
    pattern = (generator.standard_normal(PATTERN, np.float32) * 0.02).astype(np.float16)
    shapes = language_shapes(text)

    def read(name: str) -> np.ndarray:
        shape = shapes[name]
        return np.ones(shape, np.float16) if len(shape) == 1 else np.resize(pattern, shape)

    plan = next(plan for plan in language_plans(config, "int4") if plan.spec.heads)
    weights = RotatedWeights(read, text, Rotation.random(text.hidden_size))
    inputs = [generator.standard_normal((SEQUENCE, text.hidden_size), np.float32) for _ in range(sequences)]
    rounder = LayerRounder(text, weights.layer, weights.rotation, inputs)
    start = time.process_time()
    writer = BlockWriter(plan.spec)
    write_vectors(writer, plan, weights.layer)
    rounder.block(plan, writer)
    return time.process_time() - start


def main() -> None:
    """Measure one shape and print a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="7b")
    arguments = parser.parse_args()
    text = TextConfig(**asdict(SHAPES[arguments.shape].language))
    config = replace(Share4VConfig(), text_config=text, quantization="int4", quantization_layout="rotated")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    one, three = (cpu_seconds(config, count) for count in (1, 3))
    each, count = (three - one) / 2, -(-TOKENS // SEQUENCE)
    layer = one + (count - 1) * each
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sequence = SEQUENCE * text.hidden_size * 4 / 2**30  # of which two were in memory at the peak
    picture = (config.vision_config.num_patches + PROMPT) / SEQUENCE  # in sequences
    more = PICTURES * picture
    print(
        f"{arguments.shape}: {one - each:.0f} + {count} x {each:.1f} = {layer:.0f} CPU seconds for a layer, "
        f"{layer * text.num_hidden_layers / 3600:.1f} CPU hours for {text.num_hidden_layers}; with {PICTURES} pictures "
        f"{(layer + more * each) * text.num_hidden_layers / 3600:.1f}. Peak {peak:.2f} GiB ({before:.2f} before), "
        f"{peak + count * sequence:.2f} GiB with all sequences, {peak + (count + more) * sequence:.2f} with pictures"
    )


if __name__ == "__main__":
    main()
