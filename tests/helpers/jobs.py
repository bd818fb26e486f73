"""Helpers for tests of readers and writers: small images, archives, and jobs that need no model."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, ReaderOptions, list_inputs
from mindone.pipelines.image_to_text.dataset.state.existing_captions import KEPT_EXISTING
from mindone.pipelines.image_to_text.dataset.state.journal import Journal
from mindone.pipelines.image_to_text.dataset.state.listing import Listing, write_listing
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record
from mindone.pipelines.image_to_text.dataset.writers import WriterOptions, open_writer


def png(number: int) -> bytes:
    """Return a small PNG image, different for every number below 2 ** 24."""
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (number >> 16, number >> 8 & 255, number & 255)).save(file, "PNG")
    return file.getvalue()


def write_photos(folder: Path, names: int | Sequence[str]) -> Path:
    """Write a folder of PNG images, different from each other: a number of them, 0.png first, or of these names."""
    folder.mkdir(parents=True)
    for number, name in enumerate(map(str, range(names)) if isinstance(names, int) else names):
        (folder / f"{name}.png").write_bytes(png(number))
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w", **header: Any) -> None:
    """Write an archive."""
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))


def listed(*inputs: Path | str, **options: Any) -> list[Item]:
    """List inputs."""
    return list(list_inputs([str(one) for one in inputs], ReaderOptions(**options)))


def read(item: Item) -> bytes | str:
    """Return an item's bytes, or the error message."""
    try:
        return Reader().data(item)
    except ItemError as error:
        return str(error)


def caption_of(item: Item, reader: Reader) -> Record:
    """Return the record of an item; its caption depends only on the image, in place of a model."""
    common = {"model": "none", "dtype": "float32", "prompts": ("Describe",), "settings": {"max_new_tokens": 8}}
    if item.caption is not None:
        return Record(item.number, item.key, item.source, (item.caption,), notes=(KEPT_EXISTING,), columns=item.columns)
    try:
        digest = sha256(reader.data(item)).hexdigest()
    except ItemError as error:
        return Record(item.number, item.key, item.source, error=str(error), columns=item.columns, **common)
    return Record(
        item.number,
        item.key,
        item.source,
        (f"A picture that begins with {digest[:6]}.",),
        sha256=digest,
        tokens=(7,),
        finish_reasons=("eos",),
        width=6,
        height=4,
        columns=item.columns,
        **common,
    )


def run(
    state: Path,
    inputs: Sequence[Path | str],
    outputs: Sequence[tuple[str, Path | None]],
    options: WriterOptions | None = None,
    readers: ReaderOptions | None = None,
    group: int = 5,
) -> list[Any]:
    """Run a job as `CaptionJob` does, the journal first and then the outputs; return the writers."""
    state.mkdir(parents=True, exist_ok=True)
    if not (state / "inputs.jsonl").exists():
        write_listing(state / "inputs.jsonl", list_inputs([str(one) for one in inputs], readers))
    listing, reader = Listing(state / "inputs.jsonl"), Reader()
    writers = [
        open_writer(name, None if out is None else str(out), options or WriterOptions(), state) for name, out in outputs
    ]
    with Journal(state / "journal.jsonl") as journal:
        waiting: list[Record] = []
        for item in listing.items(journal.count):
            waiting.append(caption_of(item, reader))
            journal.append(waiting[-1])
            if len(waiting) == group or item.number == len(listing) - 1:
                journal.flush()
                for writer in writers:
                    for record in waiting:
                        writer.write(record)
                    writer.flush()
                waiting.clear()
    for writer in writers:
        writer.finish()
    return writers


def tree(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder: relative path -> content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
