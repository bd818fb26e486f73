"""Jobs without a model, whose captions are reviewed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.jobs import png

from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXECUTORS, "local", "helpers.echo_executor:EchoExecutor")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of six images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder
