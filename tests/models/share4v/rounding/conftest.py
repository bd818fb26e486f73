"""Makes the benchmarks importable: the tests measure with the same code as `benchmarks/quantization.py`."""

from __future__ import annotations

import sys

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
