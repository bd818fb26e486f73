"""Readers of weight files: safetensors, torch's zip format, MindSpore's .ckpt; none needs torch or MindSpore."""

from __future__ import annotations

from .directory import WeightFiles, find_weights, stored_tensors
from .tensor import StoredTensor

__all__ = ["StoredTensor", "WeightFiles", "find_weights", "stored_tensors"]
