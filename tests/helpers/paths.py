"""Where the repository's folders are, for tests in folders of any depth."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
HELPERS = TESTS / "helpers"
EXAMPLES = ROOT / "examples" / "sharegpt_4v"
TINY_SCRIPTS = EXAMPLES / "tiny"
TINY_CHECKPOINT = ROOT / "mindone" / "models" / "share4v" / "assets" / "sharegpt4v-tiny"
SCENE = EXAMPLES / "scene.png"
