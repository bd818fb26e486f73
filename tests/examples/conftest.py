"""Makes the scripts of the tiny example importable by the names they use among themselves."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "sharegpt_4v" / "tiny"))
