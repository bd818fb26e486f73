"""The task "image-text-to-text": questions and conversations about pictures become answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .base import Pipeline, batches
from .requests import Request, read_requests
from .settings import check_settings

Record = dict[str, Any]


class ImageTextToTextPipeline(Pipeline):
    """Answers about pictures; arguments and results are those of Hugging Face's pipeline of this task.

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

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        batch_size: int = 1,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_full_text: bool = True,
        conversation: str | None = None,
    ) -> list[Record] | list[list[Record]] | Iterator[list[Record]]:
        """Answer one question or conversation, or many.

        Args:
            images: the pictures of `text`: with one text a picture or a list of pictures, with a list of texts a list
                that has one entry a text. Without `text`: what `text` may hold, or `{"images": ..., "text": ...}`, a
                list or a stream of these.
            text: a question; a chat, which is a list of `{"role", "content"}` messages; a list of questions or of
                chats; or a generator of either. A chat's image parts hold their picture (`{"type": "image", "image":
                ...}`, or "url", "path", "base64"; `{"type": "image_url", "image_url": {"url": ...}}` too) or take
                them from `images` in order.
            batch_size: how many texts go through the model at once; answers do not depend on it.
            max_new_tokens: most tokens of an answer, 256 by default.
            generate_kwargs: further settings by the names of `Share4V.generate`.
            return_full_text: True puts the question and a space in front of the answer, and the chat in front of the
                assistant's new message; False returns the answer alone.
            conversation: name of the template, by default the pipeline's.

        Returns:
            `[{"input_text": ..., "generated_text": ...}]` for one text or chat; one such record a text for a list of
            texts with their `images`; a list of such lists for any other list; a generator of them for a stream.

        Raises:
            ImageLoadError: a picture cannot be loaded; the message names it.
            ValueError: pictures and texts disagree in number, a chat is malformed, or a setting or the template is
                not known.
        """
        settings = check_settings(max_new_tokens, generate_kwargs)
        self.template(conversation)
        asked = read_requests(images, text)
        records = self._records(asked.requests, batch_size, settings, return_full_text, conversation)
        if asked.shape == "stream":
            return ([record] for record in records)
        if asked.shape == "nested":
            return [[record] for record in records]
        return list(records)

    def _records(
        self,
        requests: Iterable[Request],
        batch_size: int,
        settings: Mapping[str, Any],
        return_full_text: bool,
        conversation: str | None,
    ) -> Iterator[Record]:
        return (
            {
                "input_text": request.text,
                "generated_text": request.full(answer.text) if return_full_text else answer.text,
            }
            for batch in batches(requests, batch_size)
            for request, answer in zip(
                batch,
                self.answer(
                    [request.text for request in batch], [request.images for request in batch], settings, conversation
                ),
                strict=True,
            )
        )
