"""Writers of the annotation files that mindone's Open-Sora-Plan and Open-Sora examples train on.

The loaders of mindone 0.5.0 read the following:

- Open-Sora-Plan (`examples/opensora_pku/opensora/dataset/t2v_datasets.py`, v1.3): a JSON list. `path` is relative to
  the folder that the data list names, and ends in ".mp4" or ".jpg"; any other suffix stops the loader with an error.
  `cap` is a string, or a list of strings from which one is drawn each time. A video without `fps`, `duration` or
  `resolution` (`{"height", "width"}`) is skipped silently. The loader computes the number of frames as
  int(fps * duration), and skips a video whose actual number of frames differs.
- Open-Sora (`examples/opensora_hpcai/opensora/datasets/video_dataset_refactored.py`): a CSV with a header. `video` is
  relative to `--video_folder` and to the folder of text embeddings; `caption` is the text. The loader reads videos
  only: for an image, which its reader cannot open, it repeats the previous sample. mindone's own preparation
  (`tools/t2v_curation/pipeline/datasets/datautil.py`), like the original Open-Sora, uses the names `path` (used as it
  is) and `text` instead, and also `num_frames`, `fps`, `height`, `width`, `aspect_ratio` (height / width) and
  `resolution` (height * width). Both ignore unknown columns, so one file works for both.
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
    """An annotation that a trainer cannot use; the message says why and what to do. It was not written."""


@dataclass(frozen=True)
class Annotation:
    """One image or video with its captions.

    Attributes:
        path: path of the file, relative to the data folder, with "/" as the separator.
        captions: one or more captions.
        width, height: size in pixels as it is shown: with square pixels, after rotation.
        num_frames: number of frames; 1 for an image.
        fps: average frames per second; None for an image.
        text_lens: for each caption, its tokens as the trainer's text encoder counts them; None if they are not known.

    Raises:
        AnnotationError: a value cannot be used by any trainer.
    """

    path: str
    captions: Sequence[str]
    width: int
    height: int
    num_frames: int = 1
    fps: float | None = None
    text_lens: Sequence[int] | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if not self.path or path.is_absolute() or ".." in path.parts:
            raise AnnotationError(f"{self.path!r} is not a relative path inside the data folder")
        try:
            self.path.encode()
        except UnicodeEncodeError:
            raise AnnotationError(f"{self.path!a}: the name is not valid UTF-8: rename the file") from None
        if isinstance(self.captions, str) or not self.captions or not all(map(_printable, self.captions)):
            raise AnnotationError(
                f"{self.path}: captions are {self.captions!r:.60}, expected one or more texts that are not empty"
            )
        if min(self.width, self.height, self.num_frames) < 1:
            raise AnnotationError(
                f"{self.path}: {self.num_frames} frames of {self.width} x {self.height}, all of them must be at least 1"
            )
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise AnnotationError(f"{self.path}: fps is {self.fps}, expected a number greater than 0")

    @property
    def duration(self) -> float | None:
        """Length in seconds, chosen so that int(fps * duration) == num_frames, as trainers compute it; None for images.

        Example:
            >>> from mindone.pipelines.image_to_text.open_sora import Annotation
            >>> clip = Annotation("a.mp4", ["..."], 640, 360, num_frames=49, fps=9.8)
            >>> int(9.8 * (49 / 9.8)), int(9.8 * clip.duration)
            (49, 49)
        """
        if self.fps is None:
            return None
        seconds = self.num_frames / self.fps
        while self.fps * seconds < self.num_frames:  # the quotient was rounded down in the last bit
            seconds = math.nextafter(seconds, math.inf)
        return seconds


@contextmanager
def open_sora_plan_writer(file: str | os.PathLike[str]) -> Iterator[Write]:
    """Write Open-Sora-Plan's JSON list, one object per line; the context is a function that adds an `Annotation`.

    The file is replaced when the context ends, and left unchanged after an exception. Annotations are written one by
    one. Non-ASCII characters are escaped, because the loader reads the file in the system's default encoding.

    Args:
        file: path of the .json file; its folder is created if necessary.

    Raises:
        AnnotationError: (from the function, before it writes anything) the suffix of the path is not .mp4 or .jpg, or a
            video has no fps.
        OSError: the folder is not writable, or the disk is full.

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
    with _replaced_on_success(file) as text:
        before = "[\n"

        def write(annotation: Annotation) -> None:
            nonlocal before
            text.write(before + json.dumps(_plan_record(annotation)))
            before = ",\n"

        yield write
        text.write("\n]\n" if before.startswith(",") else "[]\n")


@contextmanager
def open_sora_writer(
    file: str | os.PathLike[str], folder: str | os.PathLike[str], text_len: bool = False
) -> Iterator[Write]:
    """Write Open-Sora's CSV; the context is a function that adds an `Annotation`, with one row per caption.

    The file is replaced when the context ends, and left unchanged after an exception.

    Args:
        file: path of the .csv file; its folder is created if necessary.
        folder: the data folder, to which the paths are relative; the column `path` contains it.
        text_len: whether there is a column `text_len`, the number of tokens of a caption, by which `datautil.py` of
            Open-Sora and of mindone's `tools/t2v_curation` filters.

    Raises:
        OSError: the folder of `file` is not writable, or the disk is full.

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
    with _replaced_on_success(file) as text:
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow([*COLUMNS, TEXT_LEN] if text_len else COLUMNS)

        def write(annotation: Annotation) -> None:
            for index, caption in enumerate(annotation.captions):
                row = [column(annotation, _printable(caption), root) for column in COLUMNS.values()]
                length = [] if not text_len else [annotation.text_lens[index] if annotation.text_lens else None]
                rows.writerow([*row, *length])

        yield write


TEXT_LEN = "text_len"
# Column name -> its value; None becomes an empty field.
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
            f"{annotation.path}: Open-Sora-Plan's loader fails on suffixes other than {' and '.join(PLAN_SUFFIXES)} "
            "(in lower case): convert the file, or leave it out"
        )
    if suffix == ".mp4" and annotation.fps is None:
        raise AnnotationError(f"{annotation.path}: Open-Sora-Plan's loader skips videos without fps: set fps")
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
    """Remove NUL characters, at which CSV readers stop, and surrounding white space."""
    return caption.replace("\0", "").strip()


@contextmanager
def _replaced_on_success(file: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a temporary file that replaces `file` when the context ends without an exception."""
    path = Path(file)
    # newline="": the csv module writes its own line ends, and those inside a caption must not be changed.
    with staged(path.parent) as folder, (folder / path.name).open("w", encoding="utf-8", newline="") as text:
        yield text
