"""Which weights go into which block: the plan by which a model's weights are packed for the kernels, and unpacked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..configuration import Share4VConfig
from ..kernels.packing import LANES, BlockSpec, BlockWriter, MatrixSpec, NormSpec, read_vector, unpack_matrix
from ..quantization import kernel_precision_of
from .errors import CheckpointError
from .weights import LANGUAGE_MODEL, LM_HEAD, MM_PROJECTOR, VISION_MODEL

STORED_SUFFIX = ".packed"


@dataclass(frozen=True)
class Piece:
    """Where one weight goes: rows first .. of matrix `number`, or a vector of matrix or norm `number`."""

    weight: str
    kind: str
    number: int
    field: str
    size: int
    first: int = 0


@dataclass(frozen=True)
class BlockPlan:
    """A block, and the weights that fill it.

    Attributes:
        name: what the block is called, a prefix of its weights' names.
    """

    name: str
    spec: BlockSpec
    pieces: tuple[Piece, ...]

    @property
    def stored_name(self) -> str:
        """The block's name in a file."""
        return self.name + STORED_SUFFIX


def _linear(number: int, bias: bool, *parts: tuple[str, int]) -> Iterator[Piece]:
    """Yield the pieces of a matrix that is several layers' weights (name, rows) on top of each other."""
    first = 0
    for name, rows in parts:
        yield Piece(f"{name}.weight", "matrices", number, "weight", rows, first)
        if bias:
            yield Piece(f"{name}.bias", "matrices", number, "bias", rows, first)
        first += rows


def _norm(number: int, name: str, size: int, bias: bool) -> Iterator[Piece]:
    yield Piece(f"{name}.weight", "norms", number, "weight", size)
    if bias:
        yield Piece(f"{name}.bias", "norms", number, "bias", size)


def language_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of the language model: embedding, layers, head (which begins with the last norm)."""
    text, types = config.text_config, kernel_precision_of(dtype)
    hidden, inner, head_dim = text.hidden_size, text.intermediate_size, text.head_size
    queries, keys = text.num_attention_heads * head_dim, text.kv_heads * head_dim
    norm = NormSpec("rms", hidden, text.rms_norm_eps)
    table = BlockSpec((MatrixSpec(text.vocab_size, hidden, types.embedding),), is_table=True)
    embedding = f"{LANGUAGE_MODEL}embed_tokens"
    plans = [BlockPlan(embedding, table, tuple(_linear(0, False, (embedding, text.vocab_size))))]
    for layer in range(text.num_hidden_layers):
        name = f"{LANGUAGE_MODEL}layers.{layer}"
        spec = BlockSpec(
            (
                MatrixSpec(queries + 2 * keys, hidden, types.layers, text.attention_bias),
                MatrixSpec(hidden, queries, types.layers, text.attention_bias),
                MatrixSpec(2 * inner, hidden, types.layers, text.mlp_bias),
                MatrixSpec(hidden, inner, types.layers, text.mlp_bias),
            ),
            (norm, norm),
            activation="gated_silu",
            heads=text.num_attention_heads,
            kv_heads=text.kv_heads,
            head_dim=head_dim,
            is_rotary=True,
            cache_layer=layer,
        )
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        qkv = (f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)
        pieces = (
            *_norm(0, f"{name}.input_layernorm", hidden, False),
            *_norm(1, f"{name}.post_attention_layernorm", hidden, False),
            *_linear(0, text.attention_bias, *qkv),
            *_linear(1, text.attention_bias, (f"{attention}.o_proj", hidden)),
            *_linear(2, text.mlp_bias, (f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)),
            *_linear(3, text.mlp_bias, (f"{mlp}.down_proj", hidden)),
        )
        plans.append(BlockPlan(name, spec, pieces))
    head = BlockSpec((MatrixSpec(text.vocab_size, hidden, types.head),), (norm,))
    source = embedding if text.tie_word_embeddings else LM_HEAD[:-1]
    pieces = (*_norm(0, f"{LANGUAGE_MODEL}norm", hidden, False), *_linear(0, False, (source, text.vocab_size)))
    return (*plans, BlockPlan(LM_HEAD[:-1], head, pieces))


def vision_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of CLIP: the patch embedding, and every layer, also those behind the selected one."""
    vision, types = config.vision_config, kernel_precision_of(dtype)
    hidden, inner, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads
    patches = f"{VISION_MODEL}embeddings.patch_embedding"
    inputs = vision.num_channels * vision.patch_size**2
    spec = BlockSpec((MatrixSpec(hidden, inputs, types.patches),))
    plans = [BlockPlan(patches, spec, tuple(_linear(0, False, (patches, hidden))))]
    norm = NormSpec("layer", hidden, vision.layer_norm_eps, bias=True)
    sizes = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    spec = BlockSpec(
        tuple(MatrixSpec(rows, columns, types.vision, bias=True) for rows, columns in sizes),
        (norm, norm),
        activation=vision.hidden_act,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
    )
    for layer in range(vision.num_hidden_layers):
        name = f"{VISION_MODEL}encoder.layers.{layer}"
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        pieces = (
            *_norm(0, f"{name}.layer_norm1", hidden, True),
            *_norm(1, f"{name}.layer_norm2", hidden, True),
            *_linear(0, True, *((f"{attention}.{part}_proj", hidden) for part in "qkv")),
            *_linear(1, True, (f"{attention}.out_proj", hidden)),
            *_linear(2, True, (f"{mlp}.fc1", inner)),
            *_linear(3, True, (f"{mlp}.fc2", hidden)),
        )
        plans.append(BlockPlan(name, spec, pieces))
    return tuple(plans)


def projector_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...] | None:
    """Return the blocks of the projector, one a linear layer; None where another package registered it."""
    projector, types = config.projector_config, kernel_precision_of(dtype)
    inputs, outputs = config.vision_config.hidden_size, config.text_config.hidden_size
    depth = re.fullmatch(r"mlp([1-9][0-9]*)x_gelu", projector.projector_type)
    if projector.projector_type == "identity":
        return ()
    if projector.projector_type != "linear" and depth is None:
        return None
    names = [MM_PROJECTOR[:-1]] if depth is None else [f"{MM_PROJECTOR}{2 * number}" for number in range(int(depth[1]))]
    plans = []
    for number, name in enumerate(names):
        matrix = MatrixSpec(outputs, outputs if number else inputs, types.projector, projector.bias)
        spec = BlockSpec((matrix,), activation=None if name == names[-1] else "gelu")
        plans.append(BlockPlan(name, spec, tuple(_linear(0, projector.bias, (name, outputs)))))
    return tuple(plans)


def all_plans(config: Share4VConfig, dtype: str) -> tuple[BlockPlan, ...]:
    """Return the blocks of a whole model."""
    return language_plans(config, dtype) + vision_plans(config, dtype) + (projector_plans(config, dtype) or ())


def pack(plan: BlockPlan, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Fill a block from its weights, uint8 [bytes]; `read` gives one by its name, and one is held at a time.

    Raises:
        CheckpointError: a value is not finite, or is too large for its type.
    """
    writer = BlockWriter(plan.spec)
    for piece in plan.pieces:
        if piece.kind == "norms" or piece.field == "bias":
            values = finite_vector(read(piece.weight), piece.weight)
            writer.vector(piece.kind, piece.number, piece.field, values, piece.first)
    for number in range(len(plan.spec.matrices)):
        parts = [p for p in plan.pieces if (p.kind, p.number, p.field) == ("matrices", number, "weight")]
        weights: Iterable[tuple[int, np.ndarray]]
        if any(part.first % LANES for part in parts):  # such layers are small: panels of 16 rows go across them
            weights = [(0, np.concatenate([_rows(read(part.weight), part) for part in parts]))]
        else:
            weights = ((part.first, _rows(read(part.weight), part)) for part in parts)
        for first, weight in weights:
            try:
                writer.matrix(number, weight, first)
            except OverflowError as error:
                names = ", ".join(part.weight for part in parts)
                raise CheckpointError(f"{names}: {error}; use dtype='float32', or check the file") from error
    return writer.block


def finite_vector(weight: np.ndarray, name: str) -> np.ndarray:
    """Return a weight that is kept as float32.

    Raises:
        CheckpointError: a value is not finite.
    """
    with np.errstate(over="ignore"):
        values = np.array(weight, np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{name}: values are not finite: the file is damaged, download it again")
    return values


def _rows(weight: np.ndarray, piece: Piece) -> np.ndarray:
    kept = weight if weight.dtype in (np.float32, np.float16) else weight.astype(np.float32)
    return kept.reshape(piece.size, -1)  # a convolution's kernel [D, C, P, P] is a matrix too


def unpack(plan: BlockPlan, block: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, float32 array) of each weight in a block; matrices are [rows, columns]."""
    for number in range(len(plan.spec.matrices)):
        whole = unpack_matrix(block, plan.spec, number)
        for piece in plan.pieces:
            if (piece.kind, piece.number, piece.field) == ("matrices", number, "weight"):
                yield piece.weight, whole[piece.first : piece.first + piece.size]
    for piece in plan.pieces:
        if piece.kind == "norms" or piece.field == "bias":
            whole = read_vector(block, piece.kind, piece.number, piece.field, piece.first + piece.size)
            yield piece.weight, whole[piece.first :]
