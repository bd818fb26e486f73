"""The key/value cache of the kernels: one buffer for all layers and sequences, in the layout of csrc/format.h."""

from __future__ import annotations

import numpy as np

from .packing import ALIGNMENT, HEADER_BYTES, LANES, TYPES, anonymous_memory

CACHE_MAGIC = b"sh4vkvc1"
KV_CACHE_DTYPES = ("float32", "float16", "int8")

_HEADER = np.dtype(
    [("magic", "S8"), ("bytes", "<i8")]
    + [(name, "<i4") for name in ("type", "layers", "sequences", "kv_heads", "head_dim", "slots")]
    + [(name, "<i8") for name in ("keys", "values", "scales")]
)


class CacheMemory:
    """Keys and values of a batch of sequences of up to `capacity` tokens each.

    The OS allocates memory page by page as tokens are written, so capacity for the model's full context costs nothing
    until it is used.

    Attributes:
        memory: uint8 [bytes], the operators' input.
        keys: view [layers, batch, kv_heads, slots / 16, head_dim, 16].
        values: view [layers, batch, kv_heads, slots, head_dim rounded up to 16].
        scales: view float32 [2, layers, batch, kv_heads, slots], of the keys and of the values; None unless int8.

    Raises:
        ValueError: the dtype is not one of KV_CACHE_DTYPES.
    """

    def __init__(self, layers: int, batch_size: int, kv_heads: int, head_dim: int, capacity: int, dtype: str) -> None:
        if dtype not in KV_CACHE_DTYPES:
            raise ValueError(f"kv_cache_dtype {dtype!r} is not supported: expected one of {', '.join(KV_CACHE_DTYPES)}")
        slots, width = -(-capacity // LANES) * LANES, -(-head_dim // LANES) * LANES
        heads = (layers, batch_size, kv_heads)
        shapes = {"keys": (*heads, slots // LANES, head_dim, LANES), "values": (*heads, slots, width)}
        dtypes = {"keys": dtype, "values": dtype}
        if dtype == "int8":
            shapes["scales"], dtypes["scales"] = (2, *heads, slots), "float32"
        header, offset = np.zeros((), _HEADER), HEADER_BYTES
        spans = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * np.dtype(dtypes[name]).itemsize
            header[name], spans[name] = offset, slice(offset, offset + size)
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        header["magic"], header["bytes"], header["type"] = CACHE_MAGIC, offset, TYPES[dtype]
        header["layers"], header["sequences"], header["kv_heads"] = heads
        header["head_dim"], header["slots"] = head_dim, slots
        self.memory = anonymous_memory(offset, huge_pages=False)
        self.memory[: _HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
        views = {name: self.memory[span].view(dtypes[name]).reshape(shapes[name]) for name, span in spans.items()}
        self.keys, self.values, self.scales = views["keys"], views["values"], views.get("scales")

    def copy_sequences(self, source: CacheMemory, indices: np.ndarray, length: int) -> None:
        """Copy the first `length` tokens of sequence `indices[i]` of `source` to sequence i, for every i.

        `source` has the same shape and dtype, and may be this cache, of which sequences that stay are not touched.
        """
        panels = -(-length // LANES)
        rows = np.arange(len(indices)) if source is not self else np.flatnonzero(indices != np.arange(len(indices)))
        origins = indices[rows]
        # Layer by layer: NumPy copies all sequences to other memory first, since one may be the origin of another.
        for layer in range(len(self.keys)):
            self.keys[layer, rows, :, :panels] = source.keys[layer, origins, :, :panels]
            self.values[layer, rows, :, :length] = source.values[layer, origins, :, :length]
            if self.scales is not None and source.scales is not None:
                self.scales[:, layer, rows, :, :length] = source.scales[:, layer, origins, :, :length]

    def copy_prefix(self, sequence: int, source: CacheMemory, length: int, origin: int = 0) -> None:
        """Copy the first `length` tokens of sequence `origin` of `source`, a cache of the same dtype, to `sequence`.

        `source` may be this cache, if the two sequences differ.
        """
        panels = -(-length // LANES)  # the last panel's slots beyond `length` are overwritten before they are read
        # Layer by layer: of all layers at once, NumPy does not see that the two sequences are apart, and would first
        # copy the prefix to other memory, hundreds of megabytes for a 7B.
        for layer in range(len(self.keys)):
            self.keys[layer, sequence, :, :panels] = source.keys[layer, origin, :, :panels]
            self.values[layer, sequence, :, :length] = source.values[layer, origin, :, :length]
            if self.scales is not None and source.scales is not None:
                self.scales[:, layer, sequence, :, :length] = source.scales[:, layer, origin, :, :length]
