"""`share4v caption`: pictures in, captions out as they are made."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .common import (
    DONE,
    SOME_FAILED,
    failure,
    image_name,
    model_options,
    one_line,
    print_error,
    print_json,
    read_image,
    read_settings,
    usage_error,
    visible,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.base import Answer
    from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline


@dataclass(frozen=True)
class Source:
    """A picture of the command line: loaded, or the reason why not."""

    given: str
    image: PILImage | None = None
    error: str | None = None


def run(arguments: Namespace) -> int:
    """Caption the pictures and return the exit status."""
    from tqdm import tqdm

    from mindone.pipelines import pipeline

    try:
        settings = read_settings(arguments)
        if arguments.batch_size < 1:
            raise ValueError(f"--batch-size must be 1 or more, got {arguments.batch_size}")
        captioner = pipeline("image-to-text", **model_options(arguments))
    except (ValueError, OSError) as error:
        return usage_error(error)
    hidden = len(arguments.images) < 2 or not sys.stderr.isatty()
    # miniters keeps tqdm from drawing by itself in the middle of a caption.
    with tqdm(total=len(arguments.images), unit="image", leave=False, miniters=1, disable=hidden) as progress:
        return _Captions(captioner, arguments, settings, progress).run()


class _Captions:
    """One run of the command."""

    def __init__(
        self, captioner: ImageToTextPipeline, arguments: Namespace, settings: dict[str, Any], progress: tqdm[Any]
    ) -> None:
        self.captioner, self.arguments, self.settings, self.progress = captioner, arguments, settings, progress
        self.question = captioner.template().question if arguments.prompt is None else arguments.prompt
        self.names_needed = len(arguments.images) > 1
        self.to_terminal = sys.stdout.isatty() and not arguments.json
        self.streams = self.to_terminal and arguments.batch_size == 1 and arguments.num_beams == 1

    def run(self) -> int:
        failed = 0
        for group in _groups(map(_load, self.arguments.images), self.arguments.batch_size):
            try:
                failed += self._caption(group)
            except ValueError as error:  # pictures have errors of their own: the prompt is at fault
                return usage_error(error)
        return SOME_FAILED if failed else DONE

    def _caption(self, group: list[Source]) -> int:
        """Show the group's captions or failures in order; return how many failed."""
        from mindone.models.share4v.processing.image_loading import ImageLoadError

        images = [source.image for source in group if source.image is not None]
        try:
            answers = iter([] if self.streams or not images else self._answers(images))
            for source in group:
                self.progress.clear()
                if source.image is None:
                    self._show_failure(source)
                elif self.streams:
                    self._stream(source)
                else:
                    self._show(source, next(answers))
                self.progress.update()
        except ImageLoadError as error:  # loads, but cannot be made square: a line of a million pixels
            if len(group) > 1:
                return sum(self._caption([source]) for source in group)
            return self._caption([Source(group[0].given, error=str(error))])
        return sum(source.image is None for source in group)

    def _answers(self, images: list[PILImage]) -> list[Answer]:
        return self.captioner.answer([self.question] * len(images), [[image] for image in images], self.settings)

    def _stream(self, source: Source) -> None:
        pieces = self.captioner.stream(self.question, [source.image] if source.image is not None else [], self.settings)
        if self.names_needed:
            print(f"{image_name(source.given)}:")
        for piece in pieces:
            print(visible(piece.text), end="", flush=True)
        print("\n" if self.names_needed else "", flush=True)

    def _show(self, source: Source, answer: Answer) -> None:
        if self.arguments.json:
            print_json(
                {
                    "image": source.given,
                    "caption": answer.text,
                    "tokens": len(answer.token_ids),
                    "seconds": round(answer.seconds, 3),
                    "finish_reason": answer.finish_reason,
                }
            )
        elif self.to_terminal:
            print((f"{image_name(source.given)}:\n" if self.names_needed else "") + visible(answer.text), flush=True)
        else:
            name = f"{image_name(source.given)}\t" if self.names_needed else ""
            print(name + one_line(answer.text), flush=True)

    def _show_failure(self, source: Source) -> None:
        print_error(f"{image_name(source.given)}: {source.error}")
        if self.arguments.json:
            print_json({"image": source.given, "error": source.error})


def _load(given: str) -> Source:
    from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

    source = read_image(given)
    try:
        return Source(given, load_image(source))
    except ImageLoadError as error:
        return Source(given, error=failure(source, error))


def _groups(sources: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Yield sources in their order, with `size` loaded pictures at a time."""
    group: list[Source] = []
    for source in sources:
        group.append(source)
        if sum(one.image is not None for one in group) in (0, size):
            yield group
            group = []
    if group:
        yield group
