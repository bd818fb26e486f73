"""Makes the scripts of the tiny example importable under the names by which they import each other."""

from __future__ import annotations

import sys

from helpers.paths import TINY_SCRIPTS

sys.path.insert(0, str(TINY_SCRIPTS))
