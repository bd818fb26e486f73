"""`python -m mindone_share4v` is `share4v`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())
