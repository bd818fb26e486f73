"""`share4v caption`: caption images and print each caption as soon as it is generated."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.display import redacted

from ..printing import one_line, print_error, print_json, print_text
from ..status_line import STATUS
from .common import (
    check_max_pixels,
    count_of,
    failure,
    generation_settings,
    image_name,
    model_options,
    read_image,
    usage_error,
    with_flags,
)
from .exit_status import DONE, SOME_FAILED

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from tqdm import tqdm

    from mindone.pipelines.image_to_text.base import Answer
    from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline
    from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules


@dataclass(frozen=True)
class LoadedImage:
    """An IMAGE argument with its image, or with the reason why it could not be loaded."""

    name: str
    image: PILImage | None = None
    error: str | None = None


def run(arguments: Namespace) -> int:
    """Caption the images and return the exit status."""
    from tqdm import tqdm

    from mindone.pipelines import pipeline

    try:
        question, rules = _question(arguments)
        settings = generation_settings(arguments)
        if arguments.batch_size < 1:
            raise ValueError(f"--batch-size must be 1 or more, got {arguments.batch_size}")
        check_max_pixels(arguments)
        STATUS.show(f"loading {arguments.model}")
        captioner = pipeline("image-to-text", **model_options(arguments))
    except (ValueError, OSError) as error:
        return usage_error(arguments, error)
    STATUS.show(f"captioning {count_of(len(arguments.images), 'image')}")
    no_bar = len(arguments.images) < 2 or not sys.stderr.isatty()
    # miniters=1 stops tqdm's monitor thread from drawing the bar in the middle of a caption.
    with tqdm(total=len(arguments.images), unit="image", leave=False, miniters=1, disable=no_bar) as progress:
        return _CaptionRun(captioner, arguments, settings, progress, question, rules).run()


def _question(arguments: Namespace) -> tuple[str | None, TextRules]:
    """Return the question and the rules for the captions; None for the template's own question.

    The style also sets the maximum number of tokens, unless the command line does.

    Raises:
        ValueError: the style is unknown, or a question is given too.
    """
    from mindone.pipelines.image_to_text.dataset.prompts.styles import get_style
    from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules

    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("--prompt is empty: write what to ask of the picture, or leave it out for the usual question")
    if arguments.style is None:
        return arguments.prompt, TextRules()
    if arguments.prompt is not None:
        raise ValueError("--style and --prompt cannot be combined: a style is a question with rules; leave one out")
    style = get_style(arguments.style)
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = style.max_new_tokens
    return style.prompt, style.rules


class _CaptionRun:
    """One run of the command."""

    def __init__(
        self,
        captioner: ImageToTextPipeline,
        arguments: Namespace,
        settings: dict[str, Any],
        progress: tqdm[Any],
        question: str | None,
        rules: TextRules,
    ) -> None:
        self.captioner = captioner
        self.arguments = arguments
        self.settings = settings
        self.progress = progress
        self.question = captioner.template().question if question is None else question
        self.rules = rules
        self.shows_names = len(arguments.images) > 1
        self.to_terminal = sys.stdout.isatty() and not arguments.json
        # The rules of a style apply to a complete caption.
        has_rules = rules != type(rules)()
        is_single = arguments.batch_size == 1 and arguments.num_beams == 1
        self.streams = self.to_terminal and is_single and not has_rules

    def run(self) -> int:
        failed = 0
        for group in batches(self._loaded(), self.arguments.batch_size):
            try:
                failed += self._caption(group)
            except ValueError as error:  # images fail with ImageLoadError, so the cause is the prompt
                return usage_error(self.arguments, error)
        return SOME_FAILED if failed else DONE

    def _loaded(self) -> Iterator[LoadedImage]:
        return (_load(name, self.arguments) for name in self.arguments.images)

    def _caption(self, group: list[LoadedImage]) -> int:
        """Print the captions and failures of a group in order, and return the number of failures."""
        from mindone.models.share4v.processing.image_loading import ImageLoadError

        images = [loaded.image for loaded in group if loaded.image is not None]
        try:
            answers = iter([] if self.streams or not images else self._answers(images))
            for loaded in group:
                self.progress.clear()
                if loaded.image is None:
                    self._print_failure(loaded)
                elif self.streams:
                    self._stream(loaded.name, loaded.image)
                else:
                    self._print(loaded.name, next(answers))
                self.progress.update()
        except ImageLoadError as error:  # loaded but cannot be padded to a square, such as a line of a million pixels
            if len(group) > 1:
                return sum(self._caption([loaded]) for loaded in group)
            return self._caption([LoadedImage(group[0].name, error=str(error))])
        return sum(loaded.image is None for loaded in group)

    def _answers(self, images: list[PILImage]) -> list[Answer]:
        return self.captioner.answer([self.question] * len(images), [[image] for image in images], self.settings)

    def _stream(self, name: str, image: PILImage) -> None:
        pieces = self.captioner.stream(self.question, [image], self.settings)
        if self.shows_names:
            print_text(f"{image_name(name)}:")
        for piece in pieces:
            print_text(piece.text, end="")
        print_text("\n" if self.shows_names else "")

    def _print(self, name: str, answer: Answer) -> None:
        from mindone.pipelines.image_to_text.dataset.rules.text_rules import clean

        text = clean(answer.text, self.rules)
        if self.arguments.json:
            print_json(
                {
                    "image": redacted(name),
                    "caption": text,
                    "tokens": len(answer.token_ids),
                    "seconds": round(answer.seconds, 3),
                    "finish_reason": answer.finish_reason,
                }
            )
        elif self.to_terminal:
            heading = f"{image_name(name)}:\n" if self.shows_names else ""
            print_text(heading + text)
        else:
            column = f"{image_name(name)}\t" if self.shows_names else ""
            print_text(column + one_line(text))

    def _print_failure(self, loaded: LoadedImage) -> None:
        print_error(f"{image_name(loaded.name)}: {loaded.error}")
        if self.arguments.json:
            print_json({"image": redacted(loaded.name), "error": loaded.error})


def _load(name: str, arguments: Namespace) -> LoadedImage:
    from mindone.models.share4v.processing.image_loading import ImageLoadError, load_image

    source = read_image(name)
    try:
        return LoadedImage(name, load_image(source, arguments.max_image_pixels))
    except ImageLoadError as error:
        return LoadedImage(name, error=with_flags(arguments, failure(source, error)))


def batches(images: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Yield the images in order, in groups with `size` loaded images each.

    Images that failed to load join the group of the images before them; one with no loaded image before it forms a
    group of its own, so that its error is reported without waiting for a batch.
    """
    group: list[LoadedImage] = []
    for loaded in images:
        group.append(loaded)
        if sum(one.image is not None for one in group) in (0, size):
            yield group
            group = []
    if group:
        yield group
