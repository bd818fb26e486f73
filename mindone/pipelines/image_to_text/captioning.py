"""The task "image-to-text": captions for images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

from mindone.models.share4v.generation.arguments import CallArguments, explicit_settings
from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.models.share4v.processing.image_sources import EXPECTED_IMAGE, describe_type, image_batch, is_image

from .base import Answer, Pipeline, Request, downloaded, is_stream, iterate, logprob_records

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mindone.models.share4v.generation.streaming import Streamer
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
    needs_vision = True

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: ImageSource,
        prompt: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
        timeout: float | None = None,
        max_image_pixels: int | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[CallArguments],
    ) -> Records: ...

    @overload
    def __call__(
        self,
        inputs: list[Any] | tuple[Any, ...],
        prompt: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
        timeout: float | None = None,
        max_image_pixels: int | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[CallArguments],
    ) -> list[Records]: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[ImageSource],
        prompt: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
        timeout: float | None = None,
        max_image_pixels: int | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[CallArguments],
    ) -> Iterator[Records]: ...

    @explicit_settings(CallArguments)
    def __call__(
        self,
        inputs: ImageSource | Iterable[ImageSource] | None = None,  # None is refused, after other names were explained
        prompt: str | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        conversation: str | None = None,
        timeout: float | None = None,
        max_image_pixels: int | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[CallArguments],
    ) -> Records | list[Records] | Iterator[Records]:
        """Caption one image, a list of images, or a stream.

        Args:
            inputs: an image (anything that `load_image` accepts: path, URL, data URI, base64, bytes, open file, array,
                tensor, PIL image), or `{"image": ..., "text": ...}`, whose text is its prompt; a list or tuple of
                these, or a batch of images as one array; or a generator, an iterator or a data set, which is read
                `batch_size` inputs at a time.
            prompt: the question to ask; by default the template's own ("Describe this image"). A prompt that is
                complete for the template, such as "USER: <image>\\nDescribe this image\\nASSISTANT:", is not put
                into it again; see `Template.complete`.
            batch_size: number of images that go through the model together, 1 by default; the captions do not depend on
                it.
            max_new_tokens: maximum number of tokens of a caption, 256 by default.
            generate_kwargs: further settings, under their names in `Share4V.generate`.
            conversation: name of the chat template; by default the pipeline's.
            timeout: of the download of an image from a URL, in seconds.
            max_image_pixels: maximum number of pixels of an image file, as in `load_image`.
            streamer: receives the ids of the caption while it is generated, as in `Share4V.generate`; for one image.
            settings: settings of `Share4V.generate` without generate_kwargs around them.

        Returns:
            `[{"generated_text": ...}]` for one image, with num_return_sequences one record for each; a list of these
            for a list; a generator of these for a stream. With the setting `logprobs`, a record also has "logprobs":
            for each token its "token_id", "token", "logprob" and "top_logprobs".

        Raises:
            ImageLoadError: an image cannot be loaded; the message names it.
            ValueError: a setting is unknown or out of range, or the template is unknown.
        """
        chosen = self.defaults.settings(max_new_tokens, generate_kwargs, settings)
        question = self.template(conversation).question if prompt is None else prompt
        if not isinstance(question, str):
            raise ValueError(f"prompt is a {type(prompt).__name__}, expected one question for all images")
        batch = image_batch(inputs)
        images: Any = inputs if batch is None else batch
        is_one = not is_stream(images) and not isinstance(images, (list, tuple))
        if is_one:
            images = [images]
        if isinstance(images, (list, tuple)):  # before anything is computed
            for index, image in enumerate(images):
                _check_input(image, "inputs is" if is_one else f"image {index} is")
        requests = (_request(image, question, self.timeout(timeout)) for image in iterate(images))
        size = self.batch_size(batch_size)
        answers = self.answer_all(requests, size, chosen, conversation, streamer, max_image_pixels)
        records = ([self._record(answer) for answer in found] for _, found in answers)
        if is_one:
            return next(records)
        return records if is_stream(inputs) else list(records)

    def _record(self, answer: Answer) -> dict[str, Any]:
        record: dict[str, Any] = {"generated_text": answer.text}
        return {**record, "logprobs": logprob_records(answer, self.processor)} if answer.logprobs else record


def _check_input(given: Any, which: str) -> None:
    """Check that an input can be an image, or an image with its text.

    Raises:
        ImageLoadError: it cannot; the message begins with `which`.
    """
    is_request = isinstance(given, Mapping) and {"image", "images"} & set(given)
    if not is_request and not is_image(given):
        raise ImageLoadError(f"{which} {describe_type(given)}, expected {EXPECTED_IMAGE}")


def _request(given: Any, question: str, timeout: float | None) -> Request:
    """Return the question about one input, and its image."""
    _check_input(given, "an input is")
    if isinstance(given, Mapping) and ("text" in given or "images" in given):
        images = given.get("image", given.get("images"))
        listed = list(images) if isinstance(images, (list, tuple)) else [images]
        text = given.get("text") or question
        if not isinstance(text, str):
            raise ValueError(f'the "text" of an input is {describe_type(text)}, expected a question')
        return text, [downloaded(image, timeout) for image in listed]
    return question, [downloaded(given, timeout)]
