"""What limits a phase, and how close it comes: the roofline of a measurement, with the limits of the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MULTIPLIED_AS = {"int8": "int8", "int4": "int8", "bfloat16": "bfloat16"}  # dtype -> arithmetic; others: float32


def multiplied_as(dtype: str, peaks: Mapping[str, float]) -> str:
    """Return the arithmetic in which weights of a dtype are multiplied on a CPU with these peaks, 0 if it has none."""
    kind = MULTIPLIED_AS.get(dtype, "float32")
    return kind if peaks[kind] else "float32"


def roofline(
    row: str, dtype: str, speed: float, batch: int, facts: Mapping[str, Any], limits: Mapping[str, float]
) -> dict[str, Any]:
    """Return what limits our side of a row of compare.py, the limit's peak, and the share that was reached.

    Decoding reads all weights for each step; prefill and image encoding multiply. Attention, and everything else that
    is no matrix product, does not count as work, so 1 cannot be reached.

    Args:
        row: "decode", "prefill", "encode" or "batch".
        dtype: of the weights.
        speed: tokens or images per second.
        batch: number of sequences of the row "batch".
        facts: of our worker.
        limits: of the machine; see limits.py.
    """
    if row in ("decode", "batch"):
        limit = "memory"
        used = facts["decode_bytes"] * speed / (batch if row == "batch" else 1)
    else:
        limit = multiplied_as(dtype, limits)
        used = speed * facts["encode_operations" if row == "encode" else "prefill_operations_per_token"]
    found = {"limit": limit, "peak": limits[limit], "share": round(used / limits[limit], 3)}
    return {**found, "instruction_set": facts["instruction_set"]}
