"""Existing captions: reading caption files, and merging with new captions."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from mindone.pipelines.image_to_text.dataset.state.existing_captions import (
    MAX_CAPTION_BYTES,
    MODES,
    decode_caption,
    merge_captions,
    needs_caption,
    read_caption,
)


def test_merging_captions() -> None:
    merged = {mode: merge_captions(mode, "old.", "new.") for mode in MODES}
    assert merged == {"skip": "old.", "overwrite": "new.", "append": "old. new.", "prepend": "new. old."}
    for mode in MODES:
        assert merge_captions(mode, None, " new. ") == "new." == merge_captions(mode, " \n", "new.")
        assert merge_captions(mode, "old.\n", "") == "old."
        assert needs_caption(mode, None) and needs_caption(mode, " \n")
    assert merge_captions("append", "a", "b", ", ") == "a, b"
    assert [needs_caption(mode, "old.") for mode in MODES] == [False, True, True, True]
    with pytest.raises(ValueError, match="skip, overwrite, append, prepend; got 'replace'"):
        needs_caption("replace", None)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"A cat.\n", "A cat."),
        (b"\r\n A cat.\r\nIt sleeps.\r\n", "A cat.\r\nIt sleeps."),
        (codecs.BOM_UTF8 + "Une chatte à lunettes\n".encode(), "Une chatte à lunettes"),
        (codecs.BOM_UTF16_LE + "猫".encode("utf-16-le"), "猫"),
        (codecs.BOM_UTF16_BE + "猫".encode("utf-16-be"), "猫"),
        (b"", None),
        (b" \n\n", None),
        (codecs.BOM_UTF8, None),
        (b"caf\xe9", "caf\udce9"),
    ],
)
def test_reading_existing_captions(tmp_path: Path, data: bytes, text: str | None) -> None:
    (tmp_path / "1.txt").write_bytes(data)
    assert read_caption(tmp_path / "1.txt") == text == decode_caption(data)


def test_missing_and_invalid_caption_files(tmp_path: Path) -> None:
    assert read_caption(tmp_path / "1.txt") is None
    (tmp_path / "2.txt").write_bytes(b"x" * (MAX_CAPTION_BYTES + 1))
    with pytest.raises(OSError, match=r"2\.txt is larger than a caption"):
        read_caption(tmp_path / "2.txt")
    (tmp_path / "3.txt").mkdir()
    with pytest.raises(IsADirectoryError):
        read_caption(tmp_path / "3.txt")
