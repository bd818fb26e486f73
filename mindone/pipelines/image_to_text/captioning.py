"""The task "image-to-text": captions for images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast, overload

from .base import Answer, Pipeline, is_stream, logprob_records
from .settings import check_settings

if TYPE_CHECKING:
    from mindone.models.share4v.processing.image_loading import ImageSource

Records = list[dict[str, Any]]


class ImageToTextPipeline(Pipeline):
    """Captions images, with the arguments and results of Hugging Face's pipeline for this task.

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
        """Caption one image, a list of images, or a stream.

        Args:
            inputs: an image (anything that `load_image` accepts: path, URL, data URI, bytes, array, PIL image); a list
                or tuple of images; or a generator, an iterator or a data set of images, which is read `batch_size`
                images at a time.
            prompt: the question to ask; by default the template's own ("Describe this image").
            batch_size: number of images that go through the model together; the captions do not depend on it.
            max_new_tokens: maximum number of tokens of a caption, 256 by default.
            generate_kwargs: further settings, under their names in `Share4V.generate`.
            conversation: name of the chat template; by default the pipeline's.

        Returns:
            `[{"generated_text": ...}]` for one image, with num_return_sequences one record for each; a list of these
            for a list; a generator of these for a stream. With the setting `logprobs`, a record also has "logprobs":
            for each token its "token_id", "token", "logprob" and "top_logprobs".

        Raises:
            ImageLoadError: an image cannot be loaded; the message names it.
            ValueError: a setting is unknown or out of range, or the template is unknown.
        """
        settings = check_settings(max_new_tokens, generate_kwargs)
        question = self.template(conversation).question if prompt is None else prompt
        if not isinstance(question, str):
            raise ValueError(f"prompt is a {type(prompt).__name__}, expected one question for all images")
        is_one = not is_stream(inputs) and not isinstance(inputs, (list, tuple))
        images = cast("Iterable[ImageSource]", [inputs] if is_one else inputs)
        answers = self.answer_all(((question, [image]) for image in images), batch_size, settings, conversation)
        records = ([self._record(answer) for answer in found] for _, found in answers)
        if is_one:
            return next(records)
        return records if is_stream(inputs) else list(records)

    def _record(self, answer: Answer) -> dict[str, Any]:
        record: dict[str, Any] = {"generated_text": answer.text}
        return {**record, "logprobs": logprob_records(answer, self.processor)} if answer.logprobs else record
