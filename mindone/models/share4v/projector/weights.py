"""Weights of the projector: their names in every published format, their shapes, and the blocks of the kernels."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..configuration import Share4VConfig
from ..kernels.blocks import BlockPlan, Shapes, linear_pieces, linear_shapes
from ..kernels.packing import BlockSpec, MatrixSpec
from ..quantization import kernel_precision_of

MM_PROJECTOR = "mm_projector."

# Published name -> our name, where {n} is the layer's number.
PROJECTOR: Mapping[str, str | None] = {
    f"{layer}{kind}": f"{layer}{kind}" for layer in ("", "{n}.") for kind in ("weight", "bias")
}
# LLaVA counts the two linear layers; we count the modules of the MLP, where module 1 is the GELU.
PROJECTOR_OF_LLAVA: Mapping[str, str | None] = {
    f"linear_{number}.{kind}": f"{index}.{kind}" for number, index in ((1, 0), (2, 2)) for kind in ("weight", "bias")
}
# llama.cpp counts the modules of the MLP, as we do, also of one with a single layer.
PROJECTOR_OF_GGUF: Mapping[str, str | None] = {f"{{n}}.{kind}": f"{{n}}.{kind}" for kind in ("weight", "bias")}


def _layers(config: Share4VConfig) -> list[tuple[str, int, int]] | None:
    """Return (name, inputs, outputs) of each linear layer; None if another package registered the projector."""
    kind = config.projector_config.projector_type
    inputs, outputs = config.vision_config.hidden_size, config.text_config.hidden_size
    if kind == "identity":
        return []
    if kind == "linear":
        return [(MM_PROJECTOR[:-1], inputs, outputs)]
    depth = re.fullmatch(r"mlp([1-9][0-9]*)x_gelu", kind)
    if depth is None:
        return None
    return [(f"{MM_PROJECTOR}{2 * number}", outputs if number else inputs, outputs) for number in range(int(depth[1]))]


def projector_shapes(config: Share4VConfig) -> Shapes | None:
    """Return the shape of every weight of the projector, under our names.

    None if another package registered the projector: then only that package knows its weights.
    """
    layers = _layers(config)
    if layers is None:
        return None
    shapes: Shapes = {}
    for name, inputs, outputs in layers:
        shapes |= linear_shapes(name, inputs, outputs, config.projector_config.bias)
    return shapes


def projector_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...] | None:
    """Return the blocks of the projector, one per linear layer; None if another package registered the projector."""
    bias, types = config.projector_config.bias, kernel_precision_of(dtype, config.stored_layout)
    layers = _layers(config)
    if layers is None:
        return None
    plans = []
    for number, (name, inputs, outputs) in enumerate(layers):
        is_last = number == len(layers) - 1
        matrix = MatrixSpec(outputs, inputs, types.projector, bias)
        spec = BlockSpec((matrix,), activation=None if is_last else "gelu")
        plans.append(BlockPlan(name, spec, tuple(linear_pieces(0, bias, (name, outputs)))))
    return tuple(plans)
