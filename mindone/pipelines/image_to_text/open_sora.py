"""Writers of the annotation files that mindone's Open-Sora-Plan and Open-Sora examples train on.

What their loaders in mindone 0.5.0 read:

- Open-Sora-Plan (`examples/opensora_pku/opensora/dataset/t2v_datasets.py`, v1.3): a JSON list. `path` is put behind the
  folder that the data list names, and ends in ".mp4" or ".jpg": any other ending stops the loader with an error. `cap`
  is a string or a list of strings, of which one is drawn at a time. Of a video without `fps`, `duration` and
  `resolution` (`{"height", "width"}`) nothing is read, and no word is said. The number of frames is taken to be
  int(fps * duration), and a video in which another one is found is passed over.
- Open-Sora (`examples/opensora_hpcai/opensora/datasets/video_dataset_refactored.py`): a CSV with a header. `video` is
  put behind `--video_folder`, and behind the folder of text embeddings too; `caption` is the text. The loader opens
  videos alone: in place of an image, which its reader does not open, it repeats the sample before. mindone's own
  preparation (`tools/t2v_curation/pipeline/datasets/datautil.py`), as the original Open-Sora, has other names for
  them, `path` (as it stands) and `text`, beside `num_frames`, `fps`, `height`, `width`, `aspect_ratio` (height by
  width) and `resolution` (height times width). Further columns disturb neither, so one file serves both.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from mindone.models.share4v.checkpoint.atomic import staged

PLAN_SUFFIXES = (".mp4", ".jpg")
Write = Callable[["Annotation"], None]


class AnnotationError(ValueError):
    """A line that a trainer could not use; the message says why and what to do. Nothing of it was written."""


@dataclass(frozen=True)
class Annotation:
    """One image or video with its captions.

    Attributes:
        path: of the file, relative to the folder of the data, with "/" between folders.
        captions: one or more.
        width: in pixels, as it is shown.
        height: as `width`.
        num_frames: 1 for an image.
        fps: frames a second, on average; None for an image.

    Raises:
        AnnotationError: a value is none that any trainer could use.
    """

    path: str
    captions: Sequence[str]
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts:
            raise AnnotationError(f"{self.path!r} is no path inside the folder of the data")
        try:
            self.path.encode()
        except UnicodeEncodeError:
            raise AnnotationError(f"{self.path!a}: the name is no UTF-8 text: rename the file") from None
        if isinstance(self.captions, str) or not self.captions or not all(map(_printable, self.captions)):
            raise AnnotationError(f"{self.path}: captions are {self.captions!r:.60}, expected texts, none empty")
        if min(self.width, self.height, self.num_frames) < 1:
            raise AnnotationError(
                f"{self.path}: {self.num_frames} frames of {self.width} x {self.height}, expected 1 or more of each"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise AnnotationError(f"{self.path}: fps is {self.fps}, expected more than 0")

    @property
    def duration(self) -> float | None:
        """Seconds, such that int(fps * duration) is num_frames, as the trainers count; None for an image.

        Example:
            >>> from mindone.pipelines.image_to_text.open_sora import Annotation
            >>> clip = Annotation("a.mp4", ["..."], 640, 360, num_frames=49, fps=9.8)
            >>> int(9.8 * (49 / 9.8)), int(9.8 * clip.duration)
            (49, 49)
        """
        if self.fps is None:
            return None
        seconds = self.num_frames / self.fps
        while self.fps * seconds < self.num_frames:  # by the last bit, where the quotient was rounded down
            seconds = math.nextafter(seconds, math.inf)
        return seconds


@contextmanager
def open_sora_plan_writer(file: str | os.PathLike[str]) -> Iterator[Write]:
    """Write the JSON list of Open-Sora-Plan, one object a line: give a function that adds an `Annotation`.

    The file appears under its name when all is written, in place of what was there before; after an exception it is as
    it was. One annotation is held at a time. Letters beyond ASCII are escaped, since the loader reads the file in
    whatever encoding the machine has.

    Args:
        file: the .json file; its folder is made if need be.

    Raises:
        AnnotationError: (by the function; nothing is written then) the file is no .mp4 or .jpg, or a video has no fps.
        OSError: the folder cannot be written to, or the disk is full.

    Example:
        >>> import json, pathlib, tempfile
        >>> from mindone.pipelines.image_to_text.open_sora import Annotation, open_sora_plan_writer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "plan.json")
        ...     with open_sora_plan_writer(file) as write:
        ...         write(Annotation("a/clip.mp4", ["A ball rolls."], 640, 360, num_frames=49, fps=24.5))
        ...     record = json.loads(file.read_text())[0]
        >>> record["path"], record["cap"], record["num_frames"], record["resolution"], record["duration"]
        ('a/clip.mp4', ['A ball rolls.'], 49, {'height': 360, 'width': 640}, 2.0)
    """
    with _published(file) as text:
        before = "[\n"

        def write(annotation: Annotation) -> None:
            nonlocal before
            text.write(before + json.dumps(_plan_record(annotation)))
            before = ",\n"

        yield write
        text.write("\n]\n" if before.startswith(",") else "[]\n")


@contextmanager
def open_sora_writer(file: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Iterator[Write]:
    """Write the CSV of Open-Sora: give a function that adds an `Annotation`, as one line a caption.

    As `open_sora_plan_writer` in all else.

    Args:
        file: the .csv file; its folder is made if need be.
        folder: what the paths are relative to; the column `path` has it in front.

    Raises:
        OSError: the folder of `file` cannot be written to, or the disk is full.

    Example:
        >>> import csv, pathlib, tempfile
        >>> from mindone.pipelines.image_to_text.open_sora import Annotation, open_sora_writer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "data.csv")
        ...     with open_sora_writer(file, "/data") as write:
        ...         write(Annotation("a/photo.jpg", ['A sign: "Stop", in red.'], 640, 360))
        ...     row = list(csv.DictReader(file.open()))[0]
        >>> row["video"], row["caption"], row["path"], row["fps"]
        ('a/photo.jpg', 'A sign: "Stop", in red.', '/data/a/photo.jpg', '')
    """
    root = Path(folder).absolute()
    with _published(file) as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(COLUMNS)

        def write(annotation: Annotation) -> None:
            for caption in annotation.captions:
                rows.writerow([column(annotation, _printable(caption), root) for column in COLUMNS.values()])

        yield write


# Header -> what stands below it; an empty field where there is nothing to say.
COLUMNS: Mapping[str, Callable[[Annotation, str, Path], Any]] = {
    "video": lambda annotation, caption, root: annotation.path,
    "caption": lambda annotation, caption, root: caption,
    "path": lambda annotation, caption, root: str(root / annotation.path),
    "text": lambda annotation, caption, root: caption,
    "num_frames": lambda annotation, caption, root: annotation.num_frames,
    "fps": lambda annotation, caption, root: annotation.fps,
    "height": lambda annotation, caption, root: annotation.height,
    "width": lambda annotation, caption, root: annotation.width,
    "aspect_ratio": lambda annotation, caption, root: annotation.height / annotation.width,
    "resolution": lambda annotation, caption, root: annotation.height * annotation.width,
}


def _plan_record(annotation: Annotation) -> dict[str, Any]:
    suffix = PurePosixPath(annotation.path).suffix
    if suffix not in PLAN_SUFFIXES:
        raise AnnotationError(
            f"{annotation.path}: Open-Sora-Plan's loader stops at anything but {' and '.join(PLAN_SUFFIXES)} (in small "
            "letters): convert the file, or leave it out"
        )
    if suffix == ".mp4" and annotation.fps is None:
        raise AnnotationError(f"{annotation.path}: Open-Sora-Plan's loader passes over a video without fps")
    record: dict[str, Any] = {
        "path": annotation.path,
        "cap": [_printable(caption) for caption in annotation.captions],
        "num_frames": annotation.num_frames,
        "resolution": {"height": annotation.height, "width": annotation.width},
    }
    if annotation.fps is not None:
        record |= {"fps": annotation.fps, "duration": annotation.duration}
    return record


def _printable(caption: str) -> str:
    """Leave out NUL, at which readers of CSV stop, and white space around the text."""
    return caption.replace("\0", "").strip()


@contextmanager
def _published(file: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a file that appears under its name when it is closed, and not at all after an exception."""
    place = Path(file)
    # newline="": line ends are the csv module's affair, and a caption's own are kept.
    with staged(place.parent) as folder, (folder / place.name).open("w", encoding="utf-8", newline="") as text:
        yield text
