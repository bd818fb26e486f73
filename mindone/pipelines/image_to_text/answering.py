"""The task "image-text-to-text": answers to questions and chats about images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.generation.arguments import CallArguments, explicit_settings
from mindone.models.share4v.processing.processor import Text

from .base import Answer, Pipeline, downloaded, logprob_records
from .requests import read_requests

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mindone.models.share4v.generation.streaming import Streamer

Record = dict[str, Any]


class ImageTextToTextPipeline(Pipeline):
    """Answers questions about images, with the arguments and results of Hugging Face's pipeline for this task.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> answerer = pipeline("image-text-to-text")
        >>> answerer(images="photo.jpg", text="What is this?", return_full_text=False)
        [{'input_text': 'What is this?', 'generated_text': '...'}]
        >>> part = {"type": "image", "path": "photo.jpg"}
        >>> chat = [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}]
        >>> answerer(text=chat)[0]["generated_text"][-1]
        {'role': 'assistant', 'content': '...'}
    """

    task = "image-text-to-text"

    @explicit_settings(CallArguments)
    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_full_text: bool | None = None,
        conversation: str | None = None,
        timeout: float | None = None,
        max_image_pixels: int | None = None,
        streamer: Streamer | None = None,
        **settings: Unpack[CallArguments],
    ) -> list[Record] | list[list[Record]] | Iterator[list[Record]]:
        """Answer one question or chat, a list of them, or a stream.

        Args:
            images: the images of `text`: with one text, an image or a list of images; with a list of texts, one entry
                for each text. Without `text`: the values that `text` may have, or `{"images": ..., "text": ...}`, or a
                list or a stream of these.
            text: a question; a chat, which is a list of `{"role", "content"}` messages; a list of questions or of
                chats; or a generator of either. Image parts of a chat contain their image (`{"type": "image", "image":
                ...}`, or "url", "path" or "base64"; or `{"type": "image_url", "image_url": {"url": ...}}`), or take it
                from `images`, in order.
            batch_size: number of texts that go through the model together, 1 by default; the answers do not depend on
                it.
            max_new_tokens: maximum number of tokens of an answer, 256 by default.
            generate_kwargs: further settings, under their names in `Share4V.generate`.
            return_full_text: True, the default, returns the question, a space and the answer, or the chat with the
                answer as a new message; False returns the answer only.
            conversation: name of the chat template; by default the pipeline's.
            timeout, max_image_pixels, streamer, settings: as in "image-to-text".

        Returns:
            `[{"input_text": ..., "generated_text": ...}]` for one text or chat; one such record for each text of a list
            with `images`; a list of such lists for any other list; a generator of them for a stream. With
            num_return_sequences, one record for each answer; with `logprobs`, a record has "logprobs", as in
            "image-to-text".

        Raises:
            ImageLoadError: an image cannot be loaded; the message names it.
            ValueError: the numbers of images and texts differ, a chat is malformed, or a setting or the template is
                unknown.
        """
        chosen = self.defaults.settings(max_new_tokens, generate_kwargs, settings)
        self.template(conversation)  # raises now, rather than at the first item of a stream
        requests, shape = read_requests(images, text)
        seconds = self.timeout(timeout)
        requests = ((one, [downloaded(image, seconds) for image in own]) for one, own in requests)
        size = self.batch_size(batch_size)
        answers = self.answer_all(requests, size, chosen, conversation, streamer, max_image_pixels)
        full = self.defaults.return_full_text if return_full_text is None else return_full_text
        shown = _answer_only if full is False else _with_answer
        groups = (
            [self._record(given, shown(given, answer.text), answer) for answer in found] for given, found in answers
        )
        if shape == "stream":
            return groups
        if shape == "nested":
            return list(groups)
        return [record for group in groups for record in group]

    def _record(self, given: Text, text: Text, answer: Answer) -> Record:
        record = {"input_text": given, "generated_text": text}
        return {**record, "logprobs": logprob_records(answer, self.processor)} if answer.logprobs else record


def _answer_only(text: Text, answer: str) -> Text:
    return answer


def _with_answer(text: Text, answer: str) -> Text:
    """Return a question and its answer as one string, or a chat with the answer as a new message."""
    if isinstance(text, str):
        return f"{text} {answer}"
    return [*text, {"role": "assistant", "content": answer}]
