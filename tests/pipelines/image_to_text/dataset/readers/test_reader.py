"""Reader: from several threads, with a limit on open files, in another process; and videos."""

from __future__ import annotations

import base64
import gzip
import json
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.jobs import listed, png, read, write_tar

from mindone.pipelines.image_to_text.dataset.readers import ItemError, Reader, read_item
from mindone.pipelines.image_to_text.dataset.state.records import item_from_line, to_line


@pytest.mark.parametrize("kind", ["tar", "jsonl"])
def test_inputs_that_are_listed_again_are_read_from_the_files_of_now(tmp_path: Path, kind: str) -> None:
    """A program that captions twice: the table or archive was appended to, or another one was renamed over it."""
    path = tmp_path / f"s.{kind}"

    def write(names: str) -> None:
        new = tmp_path / "new"
        if kind == "tar":
            write_tar(new, [(f"{name}.png", f"\x89PNG picture {name}".encode("latin-1")) for name in names])
        else:
            texts = [base64.b64encode(f"\x89PNG picture {name}".encode("latin-1")).decode() for name in names]
            new.write_text("".join(json.dumps({"image": f"data:image/png;base64,{one}"}) + "\n" for one in texts))
        new.replace(path)

    def pictures() -> str:
        return "".join(chr(read_item(item).frames[0][-1]) for item in listed(path))

    for names in ("ab", "xy", "xyz"):
        write(names)
        assert pictures() == names
    if kind == "tar":
        more = [(f"{number}.png", f"picture {number}".encode()) for number in range(16)]
        write_tar(path, more, "a")
        assert pictures() == "xyz" + "".join(str(number)[-1] for number in range(16))


def test_threads_read_from_many_kinds_of_files(tmp_path: Path) -> None:
    """With more files than may stay open, files are dropped while other threads read from them."""
    for number in range(4):
        base = number * 100
        pictures = [png(base + index) for index in range(40)]
        write_tar(tmp_path / f"a{number}.tar", [(f"{index}.png", data) for index, data in enumerate(pictures)])
        (tmp_path / f"b{number}.tar.gz").write_bytes(gzip.compress((tmp_path / f"a{number}.tar").read_bytes(), 1))
        table = pa.table({"image": [{"bytes": data, "path": None} for data in pictures]})
        pq.write_table(table, tmp_path / f"c{number}.parquet", row_group_size=16)
        with pa.OSFile(str(tmp_path / f"d{number}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table, max_chunksize=7)
    items = listed(*sorted(tmp_path.iterdir()))
    assert len(items) == 16 * 40
    reader, rng = Reader(open_files=3), random.Random(4)
    order = sorted(items, key=lambda item: item.number + rng.uniform(0, 12))
    with ThreadPoolExecutor(6) as pool:
        found = dict(zip((item.number for item in order), pool.map(reader.data, order), strict=True))
    for item in items:
        source = Path(item.source.partition("::")[0]).name
        base, index = int(source[1]) * 100, int(item.key.rpartition("/")[2])
        assert found[item.number] == png(base + index), item


def test_an_item_is_read_from_its_line_in_the_listing(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.png").write_bytes(png(1))
    [item] = listed(tmp_path)
    again = item_from_line(to_line(item).encode())
    picture = read_item(again)
    assert picture.frames == (png(1),) and picture.sha256 == sha256(png(1)).hexdigest()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A two-second video of twenty frames that get lighter."""
    path = tmp_path / "clips" / "a b.MP4"
    path.parent.mkdir()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.width, stream.height = 32, 16
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((16, 32, 3), 10 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_of_a_video(clip: Path) -> None:
    (clip.parent / "a b.txt").write_text("Mine.")
    [item] = listed(clip.parent, frames=4, frame_mode="even")
    assert item.key == "a b" and item.path == str(clip) and item.caption == "Mine."
    picture = read_item(item)
    assert len(picture.frames) == 4 and picture.sha256 == sha256(clip.read_bytes()).hexdigest()
    assert picture.columns == {"num_frames": 20, "width": 32, "height": 16, "fps": 10.0, "duration": 2.0}
    lightness = [np.asarray(frame).mean() for frame in picture.frames]
    assert lightness == sorted(lightness) and lightness[-1] - lightness[0] > 100
    assert len(read_item(listed(clip.parent)[0]).frames) == 1  # the middle one
    assert json.loads(to_line(item))["locator"]["frames"] == 4
    assert Reader().data(item) == clip.read_bytes()


def test_unreadable_videos(clip: Path) -> None:
    [item] = listed(clip)
    clip.write_bytes(clip.read_bytes()[:400])
    with pytest.raises(ItemError) as caught:
        read_item(item)
    assert str(clip) not in str(caught.value)
    clip.unlink()
    assert read(item) == "there is no such file"
    with pytest.raises(ItemError, match="No such file"):
        read_item(item)
