"""Jobs without a model, whose captions are reviewed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.jobs import write_photos


@pytest.fixture(autouse=True)
def no_model(echo_executor: None) -> None:
    """Jobs answer a question with itself."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six images."""
    return write_photos(tmp_path / "photos", 6)
