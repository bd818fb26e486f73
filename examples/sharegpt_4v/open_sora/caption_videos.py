"""Caption the images and videos of a folder, and write what mindone's Open-Sora and Open-Sora-Plan train on.

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

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130


class NothingWritten(Exception):
    """No caption came of any file, so no annotation file must take the place of an earlier one."""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--vision-tower", help="directory or name, where config.json's is not to be used")
    parser.add_argument("--dtype", help="type of the weights in memory: float32, float16, int8, int4")
    parser.add_argument("--video-folder", required=True, help="holds the images and videos, in subfolders too")
    parser.add_argument("--output", required=True, help="folder for open_sora_plan.json and open_sora.csv")
    parser.add_argument("--query", default="Describe this image", help="asked about every image and video")
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's, else vicuna_v1)")
    parser.add_argument("--frames", default="middle", help="of a video: middle, even (several pictures), grid (in one)")
    parser.add_argument("--count", type=int, help="how many frames (default: 1 for middle, else 4)")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=256)
    parser.add_argument("--batch_size", "--batch-size", type=int, default=1, help="images and videos at once")
    return parser


class Captions:
    """One run: asks about files in groups, and counts what came of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        # What can be wrong with the command line shows before gigabytes are loaded.
        self.arguments, self.folder = arguments, Path(arguments.video_folder)
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
        self.written = self.failed = 0

    def run(self, plan: Write, table: Write) -> None:
        readable = self.read_all()
        while group := list(islice(readable, self.arguments.batch_size)):
            for (path, media), caption in zip(group, self.ask(group), strict=True):
                if caption is not None:
                    self.write(path, media, caption, plan, table)
        if not self.written:
            raise NothingWritten

    def read_all(self) -> Iterator[tuple[Path, Media]]:
        for path in tqdm(self.paths, unit="file", leave=False, disable=not sys.stderr.isatty()):
            try:
                yield path, read_media(path, self.sampling)
            except ValueError as error:
                self.fail(error)

    def ask(self, group: list[tuple[Path, Media]]) -> list[str | None]:
        """Return a caption for each; None for one that is refused, such as a line a million pixels long."""
        try:
            records = self.answerer(
                images=[media.frames for _, media in group],
                text=[self.arguments.query] * len(group),
                batch_size=len(group),
                generate_kwargs=self.settings,
                return_full_text=False,
            )
        except ValueError as error:
            if len(group) > 1:
                return [caption for one in group for caption in self.ask([one])]
            self.fail(f"{group[0][0]}: {error}")
            return [None]
        return [record["generated_text"] for record in records]

    def write(self, path: Path, media: Media, caption: str, plan: Write, table: Write) -> None:
        place = path.relative_to(self.folder).as_posix()
        try:
            annotation = Annotation(place, [caption], media.width, media.height, media.num_frames, media.fps)
            table(annotation)
            self.written += 1
        except ValueError as error:
            self.fail(error)
            return
        try:
            plan(annotation)
        except ValueError as error:
            self.fail(f"{error}; open_sora.csv has it")

    def fail(self, error: object) -> None:
        self.failed += 1
        tqdm.write(f"caption_videos.py: {error}", file=sys.stderr)


def main() -> int:
    parser = make_parser()
    arguments = parser.parse_args()
    output = Path(arguments.output)
    try:
        captions = Captions(arguments)
        plan_file, table_file = output / "open_sora_plan.json", output / "open_sora.csv"
        with open_sora_plan_writer(plan_file) as plan, open_sora_writer(table_file, captions.folder) as table:
            captions.run(plan, table)
    except NothingWritten:
        if not captions.failed:
            parser.error(f"there are no images or videos in {captions.folder}")
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted, nothing was written to {output}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f"{output}: {captions.written} captions, {captions.failed} failures")
    return SOME_FAILED if captions.failed else DONE


if __name__ == "__main__":
    sys.exit(main())
