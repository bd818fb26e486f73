"""Caption the images and videos of a folder, and write annotation files for mindone's Open-Sora and Open-Sora-Plan.

python caption_videos.py --video-folder videos --output annotations
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline
from mindone.pipelines.image_to_text.media import Media, find_media, read_media
from mindone.pipelines.image_to_text.open_sora import Annotation, Write, open_sora_plan_writer, open_sora_writer
from mindone.pipelines.image_to_text.settings import check_settings
from mindone.pipelines.image_to_text.video import FrameSampling

# Exit statuses.
DONE = 0
SOME_FAILED = 1
INTERRUPTED = 130


class NothingCaptioned(Exception):
    """No file was captioned, so the annotation files of an earlier run must stay."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--vision-tower", help="directory or name (default: the one named in config.json)")
    parser.add_argument("--dtype", help="type of the weights in memory: float32, float16, int8, int4")
    parser.add_argument("--video-folder", required=True, help="folder of images and videos, including subfolders")
    parser.add_argument("--output", required=True, help="folder to write open_sora_plan.json and open_sora.csv to")
    parser.add_argument("--query", default="Describe this image", help="question to ask about each image and video")
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's, or vicuna_v1)")
    parser.add_argument(
        "--frames",
        default="middle",
        help="frames of a video: middle (one frame), even (several, as separate images), grid (several, in one image)",
    )
    parser.add_argument("--count", type=int, help="number of frames (default: 1 for middle, otherwise 4)")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch_size", "--batch-size", type=int, default=1, help="files to process together")
    return parser


class CaptionRun:
    """One run: captions the files in batches, and counts successes and failures."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        # Check everything on the command line before gigabytes are loaded.
        self.arguments = arguments
        self.folder = Path(arguments.video_folder)
        self.written = 0
        self.failed = 0
        self.paths = find_media(self.folder, on_error=self.fail)
        self.sampling = FrameSampling(arguments.frames, arguments.count)
        self.settings = check_settings(arguments.max_new_tokens, None)
        if arguments.batch_size < 1:
            raise ValueError(f"--batch_size must be 1 or more, got {arguments.batch_size}")
        self.answerer: ImageTextToTextPipeline = pipeline(
            "image-text-to-text",
            model=arguments.model_path,
            vision_tower=arguments.vision_tower,
            dtype=arguments.dtype,
            conversation=arguments.conv_mode,
        )

    def run(self, plan: Write, table: Write) -> None:
        """Caption all files and write each caption with both writers.

        Raises:
            NothingCaptioned: no caption was written.
        """
        readable = self.read_all()
        while batch := list(islice(readable, self.arguments.batch_size)):
            for (path, media), caption in zip(batch, self.caption(batch), strict=True):
                if caption is not None:
                    self.write(path, media, caption, plan, table)
        if not self.written:
            raise NothingCaptioned

    def read_all(self) -> Iterator[tuple[Path, Media]]:
        """Yield each file that can be read, with its image or frames; count the others as failed."""
        for path in tqdm(self.paths, unit="file", leave=False, disable=not sys.stderr.isatty()):
            try:
                yield path, read_media(path, self.sampling)
            except ValueError as error:
                self.fail(error)

    def caption(self, batch: list[tuple[Path, Media]]) -> list[str | None]:
        """Return a caption for each file; None if the model cannot take it, such as an image a million pixels wide."""
        try:
            records = self.answerer(
                images=[media.frames for _, media in batch],
                text=[self.arguments.query] * len(batch),
                batch_size=len(batch),
                generate_kwargs=self.settings,
                return_full_text=False,
            )
        except ValueError as error:
            if len(batch) > 1:  # find the file at fault
                return [caption for one in batch for caption in self.caption([one])]
            self.fail(f"{batch[0][0]}: {error}")
            return [None]
        return [record["generated_text"] for record in records]

    def write(self, path: Path, media: Media, caption: str, plan: Write, table: Write) -> None:
        try:
            annotation = Annotation(
                path=path.relative_to(self.folder).as_posix(),
                captions=[caption],
                width=media.width,
                height=media.height,
                num_frames=media.num_frames,
                fps=media.fps,
            )
            table(annotation)
            self.written += 1
        except ValueError as error:
            self.fail(error)
            return
        try:
            plan(annotation)
        except ValueError as error:
            self.fail(f"{error}; it is only in open_sora.csv")

    def fail(self, error: object) -> None:
        self.failed += 1
        tqdm.write(f"caption_videos.py: {error}", file=sys.stderr)


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    output = Path(arguments.output)
    try:
        run = CaptionRun(arguments)
        plan_file = output / "open_sora_plan.json"
        table_file = output / "open_sora.csv"
        with open_sora_plan_writer(plan_file) as plan, open_sora_writer(table_file, run.folder) as table:
            run.run(plan, table)
    except NothingCaptioned:
        if not run.failed:
            parser.error(f"there are no images or videos in {run.folder}")
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, nothing was written to {output}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f"{output}: {run.written} captions, {run.failed} failures")
    return SOME_FAILED if run.failed else DONE


if __name__ == "__main__":
    sys.exit(main())
