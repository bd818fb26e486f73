"""Readers of weight files: safetensors, torch's zip format, MindSpore's .ckpt; none needs torch or MindSpore."""

from __future__ import annotations

from .tensor import StoredTensor
from .weight_files import WeightFiles, find_weights, stored_tensors

__all__ = ["StoredTensor", "WeightFiles", "find_weights", "stored_tensors"]
