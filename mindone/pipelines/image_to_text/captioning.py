"""The task "image-to-text": pictures become captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast, overload

from .base import Pipeline, batches, is_stream
from .settings import check_settings

if TYPE_CHECKING:
    from mindone.models.share4v.processing.image_loading import ImageSource

Records = list[dict[str, str]]


class ImageToTextPipeline(Pipeline):
    """Captions pictures; arguments and results are those of Hugging Face's pipeline of this task.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> captioner = pipeline("image-to-text")
        >>> captioner("photo.jpg")
        [{'generated_text': 'In the top left there are four small blue stars. ...'}]
        >>> captioner(["a.jpg", "b.jpg"], batch_size=2)
        [[{'generated_text': '...'}], [{'generated_text': '...'}]]
        >>> for result in captioner(path for path in ["a.jpg", "b.jpg"]):
        ...     print(result[0]["generated_text"])
        In the top right you can see a large red circle, ...
        In the top left you can see a large red circle, ...
    """

    task = "image-to-text"

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: ImageSource,
        prompt: str | None = None,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
    ) -> Records: ...

    @overload
    def __call__(
        self,
        inputs: list[Any] | tuple[Any, ...],
        prompt: str | None = None,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
    ) -> list[Records]: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[ImageSource],
        prompt: str | None = None,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
    ) -> Iterator[Records]: ...

    def __call__(
        self,
        inputs: ImageSource | Iterable[ImageSource],
        prompt: str | None = None,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
    ) -> Records | list[Records] | Iterator[Records]:
        """Caption one picture, a list of them, or a stream.

        Args:
            inputs: a picture (whatever `load_image` takes: path, URL, data URI, bytes, array, PIL image); a list or
                tuple of pictures; or a generator, an iterator or a data set of pictures, which is read `batch_size` at
                a time and held no longer.
            prompt: what is asked, by default the template's own question ("Describe this image").
            batch_size: how many pictures go through the model at once; captions do not depend on it.
            max_new_tokens: most tokens of a caption, 256 by default.
            generate_kwargs: further settings by the names of `Share4V.generate`.
            conversation: name of the template, by default the pipeline's.

        Returns:
            `[{"generated_text": ...}]` for one picture; a list of these for a list; a generator of these for a stream.

        Raises:
            ImageLoadError: a picture cannot be loaded; the message names it.
            ValueError: a setting is not known or out of range, or the template is not known.
        """
        settings = check_settings(max_new_tokens, generate_kwargs)
        question = self.template(conversation).question if prompt is None else prompt
        if not isinstance(question, str):
            raise ValueError(f"prompt is a {type(prompt).__name__}: expected one question for every picture")
        if is_stream(inputs):
            return self._caption(cast("Iterable[ImageSource]", inputs), question, batch_size, settings, conversation)
        if isinstance(inputs, (list, tuple)):
            return list(self._caption(inputs, question, batch_size, settings, conversation))
        return next(self._caption([cast("ImageSource", inputs)], question, 1, settings, conversation))

    def _caption(
        self,
        inputs: Iterable[ImageSource],
        question: str,
        batch_size: int,
        settings: Mapping[str, Any],
        conversation: str | None,
    ) -> Iterator[Records]:
        return (
            [{"generated_text": answer.text}]
            for batch in batches(inputs, batch_size)
            for answer in self.answer([question] * len(batch), [[image] for image in batch], settings, conversation)
        )
