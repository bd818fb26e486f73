"""The key/value cache that kernels write in place: one piece of memory for all layers and texts (csrc/format.h)."""

from __future__ import annotations

import numpy as np

from .packing import ALIGNMENT, HEADER_BYTES, LANES, TYPES, anonymous_memory

CACHE_MAGIC = b"sh4vkvc1"
KV_CACHE_DTYPES = ("float32", "float16", "int8")

_HEADER = np.dtype(
    [("magic", "S8"), ("bytes", "<i8")]
    + [(name, "<i4") for name in ("type", "layers", "texts", "kv_heads", "head_dim", "slots")]
    + [(name, "<i8") for name in ("keys", "values", "scales")]
)


class CacheMemory:
    """Keys and values of `texts` texts of up to `capacity` tokens.

    Memory is taken page by page as tokens are written, so that room for the model's whole context costs nothing before
    it is used.

    Attributes:
        memory: uint8 [bytes], what the operators take.
        keys: view [layers, texts, kv_heads, slots / 16, head_dim, 16].
        values: view [layers, texts, kv_heads, slots, head_dim rounded up to 16].
        scales: view float32 [2, layers, texts, kv_heads, slots] of keys and values; None unless they are int8.

    Raises:
        ValueError: the dtype is not one of KV_CACHE_DTYPES.
    """

    def __init__(self, layers: int, texts: int, kv_heads: int, head_dim: int, capacity: int, dtype: str) -> None:
        if dtype not in KV_CACHE_DTYPES:
            raise ValueError(f"kv_cache_dtype {dtype!r} is not supported: expected one of {', '.join(KV_CACHE_DTYPES)}")
        slots, width = -(-capacity // LANES) * LANES, -(-head_dim // LANES) * LANES
        heads = (layers, texts, kv_heads)
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
        header["layers"], header["texts"], header["kv_heads"] = heads
        header["head_dim"], header["slots"] = head_dim, slots
        self.memory = anonymous_memory(offset, huge_pages=False)
        self.memory[: _HEADER.itemsize] = np.frombuffer(header.tobytes(), np.uint8)
        views = {name: self.memory[span].view(dtypes[name]).reshape(shapes[name]) for name, span in spans.items()}
        self.keys, self.values, self.scales = views["keys"], views["values"], views.get("scales")

    def take(self, source: CacheMemory, texts: np.ndarray, used: int) -> None:
        """Let text i hold the first `used` tokens of text `texts`[i] of `source`, a cache of the same shape."""
        panels = -(-used // LANES)
        self.keys[:, :, :, :panels] = source.keys[:, texts, :, :panels]
        self.values[:, :, :, :used] = source.values[:, texts, :, :used]
        if self.scales is not None and source.scales is not None:
            self.scales[..., :used] = source.scales[:, :, texts, :, :used]

    def copy_prefix(self, text: int, source: CacheMemory, length: int) -> None:
        """Let `text` hold the first `length` tokens of the first text of `source`, a cache of the same type."""
        panels = -(-length // LANES)  # what lies behind `length` in the last panel is written before it is read
        self.keys[:, text, :, :panels] = source.keys[:, 0, :, :panels]
        self.values[:, text, :, :length] = source.values[:, 0, :, :length]
        if self.scales is not None and source.scales is not None:
            self.scales[:, :, text, :, :length] = source.scales[:, :, 0, :, :length]
