"""The two implementations that a checkpoint is loaded onto, as arguments of `from_pretrained`."""

from __future__ import annotations

# MindSpore's operators, whose weights are Parameters.
CELLS = {"language_backend": "llama", "vision_backend": "clip"}
# The CPU kernels are the default.
BACKENDS: dict[str, dict[str, str]] = {"kernels": {}, "cells": CELLS}
