"""A checkpoint is opened once between pipeline() and the first caption."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.llava import SMALL, Reference
from helpers.published_formats import TOWER, write_original

from mindone.models.share4v import hub
from mindone.models.share4v.checkpoint import layout
from mindone.pipelines import pipeline

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], (str, os.PathLike)):
        _opened.append(os.fspath(arguments[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Collect the path of every file that Python opens."""
    global _opened
    if _opened is None:
        sys.addaudithook(_note)  # hooks cannot be removed; this one does nothing outside this function
    _opened = []
    try:
        yield _opened
    finally:
        _opened = []


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are resolved during the test."""
    names: list[str] = []

    def resolve(name_or_path: str | Path, *arguments: object, **options: object) -> Path:
        names.append(str(name_or_path))
        return hub.resolve(name_or_path, *arguments, **options)

    monkeypatch.setattr(layout, "resolve", resolve)
    return names


def configs(paths: list[str]) -> dict[str, int]:
    """How often each config.json was opened."""
    return dict(Counter(str(Path(path).resolve()) for path in paths if Path(path).name == "config.json"))


def test_a_directory(checkpoint: Path, pictures: list[str], resolved: list[str]) -> None:
    with opened_files() as paths:
        captioner = pipeline("image-to-text", model=str(checkpoint))
        captioner(pictures[0], max_new_tokens=2)
    assert resolved == [str(checkpoint)]
    assert configs(paths) == {str((checkpoint / "config.json").resolve()): 1}


def test_the_original_format_with_a_separate_vision_tower(
    vocabulary: Path, pictures: list[str], resolved: list[str], tmp_path: Path
) -> None:
    shape = replace(SMALL, text={**SMALL.text, "vocab_size": 401, "max_position_embeddings": 512})
    main = write_original(Reference(shape), tmp_path)
    (main / "tokenizer.model").write_bytes(vocabulary.read_bytes())
    with opened_files() as paths:
        captioner = pipeline("image-to-text", model=main, dtype="float16")
        captioner(pictures[0], max_new_tokens=2)
    assert resolved == [str(main)]
    assert configs(paths) == {str((part / "config.json").resolve()): 1 for part in (main, tmp_path / TOWER)}
