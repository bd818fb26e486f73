"""The pipelines of mindone.transformers' pipeline() for a Share4V: its interface on top of this project's pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mindone.transformers.models.auto.image_processing_auto import AutoImageProcessor
from mindone.transformers.models.auto.processing_auto import AutoProcessor
from mindone.transformers.pipelines.base import Pipeline as ZooPipeline
from mindone.transformers.pipelines.image_text_to_text import Chat as ZooChat
from mindone.transformers.pipelines.image_text_to_text import ImageTextToTextPipeline, ReturnType
from mindone.transformers.pipelines.image_to_text import ImageToTextPipeline
from transformers import AutoTokenizer

from mindone.models.share4v.integrations.mindone_transformers.modeling import (
    Share4VForConditionalGeneration,
    merged_settings,
)
from mindone.models.share4v.integrations.mindone_transformers.processing import Share4VProcessor
from mindone.models.share4v.processing.prompts import Chat

from .base import Answer, Pipeline, batches, downloaded, group_answers, iterate
from .settings import check_settings

Record = dict[str, Any]


class Batches:
    """Mixin that runs the three steps of a pipeline on lists of inputs.

    mindone 0.5.0 passes every list through a MindSpore data set, which converts the items to types that the steps do
    not expect, and fails if batch_size is more than 1.
    """

    task: str
    model: Share4VForConditionalGeneration
    own: Pipeline
    processor: Any

    def set_up(self, processor: Any) -> None:
        """Create this project's pipeline, which does the work."""
        if processor is None:
            processor = self.model.processor
        if not isinstance(processor, Share4VProcessor):
            raise ValueError(
                f"processor is a {type(processor).__name__}, expected the processor that mindone.transformers' "
                "AutoProcessor loads for this checkpoint"
            )
        self.own, self.processor = Pipeline(self.model.share4v, processor), processor

    def with_defaults(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a call, completed by the model's generation_config."""
        return {**merged_settings(self.model.generation_config, {}), **settings}

    def run_single(self, inputs: Any, preprocess_params: Any, forward_params: Any, postprocess_params: Any) -> Any:
        """Answer one input."""
        return next(self.get_iterator([inputs], 1, 1, preprocess_params, forward_params, postprocess_params))

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Answer a list, a generator or a data set in batches; num_workers is ignored."""
        for batch in batches(iterate(inputs), batch_size):
            prepared = self.preprocess(batch, **preprocess_params)  # type: ignore[attr-defined]
            answered = self._construct(prepared, **forward_params)  # type: ignore[attr-defined]
            yield from self.postprocess(answered, **postprocess_params)  # type: ignore[attr-defined]

    def save_pretrained(self, save_directory: str, safe_serialization: bool = True) -> None:
        """Write the model and its processor; the directory is a complete checkpoint."""
        self.model.save_pretrained(save_directory, safe_serialization=safe_serialization)
        self.own.processor.save_pretrained(save_directory)


class Share4VImageToTextPipeline(Batches, ImageToTextPipeline):
    """mindone.transformers' "image-to-text" for a Share4V: captions, without the prompt.

    A call accepts the arguments of mindone's pipeline (`prompt`, `max_new_tokens`, `generate_kwargs`, `timeout`,
    `batch_size`) and `conversation`, the name of the chat template. `prompt` is a question, or a complete prompt that
    ends with the start of the assistant's answer.
    """

    def __init__(self, model: Share4VForConditionalGeneration, processor: Any = None, **options: Any) -> None:
        super().__init__(model=model, **options)
        self.set_up(processor)

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
        conversation: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before = {"prompt": prompt, "timeout": timeout, "conversation": conversation}
        settings = read_settings(max_new_tokens, generate_kwargs)
        return {name: value for name, value in before.items() if value is not None}, settings, {}

    def preprocess(
        self,
        images: list[Any],
        prompt: str | None = None,
        timeout: float | None = None,
        conversation: str | None = None,
    ) -> dict[str, Any]:
        """Pair each image with the question."""
        template = self.own.template(conversation)
        question = template.question if prompt is None else prompt
        if not isinstance(question, str):
            raise ValueError(f"prompt is a {type(question).__name__}, expected one question for all images")
        image_lists = [[downloaded(image, timeout)] for image in images]
        return {"texts": [question] * len(images), "images": image_lists, "conversation": template.name}

    def _forward(self, prepared: dict[str, Any], **settings: Any) -> list[list[Answer]]:
        return group_answers(self.own.answer(settings=self.with_defaults(settings), **prepared), len(prepared["texts"]))

    def postprocess(self, answers: list[list[Answer]]) -> list[list[Record]]:
        """Return a list of records for each image, with one record for each answer."""
        return [[{"generated_text": answer.text} for answer in found] for found in answers]


class Share4VImageTextToTextPipeline(Batches, ImageTextToTextPipeline):
    """mindone.transformers' "image-text-to-text" for a Share4V: questions and chats about images.

    A call accepts the arguments of mindone's pipeline, except the options of other processors, and `conversation`, the
    name of the chat template. A text is a question, to which the template is applied, or a complete prompt that ends
    with the start of the assistant's answer.
    """

    def __init__(self, model: Share4VForConditionalGeneration, processor: Any = None, **options: Any) -> None:
        super().__init__(model=model, processor=processor, **options)
        self.set_up(processor)

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Answer; unlike in mindone, a list of `{"images": ..., "text": ...}` is not taken for a chat."""
        if text is None and isinstance(images, (list, tuple)) and all(map(_is_request, images)):
            return ZooPipeline.__call__(self, list(images), **options)
        return super().__call__(images, text, **options)

    def _sanitize_parameters(
        self,
        max_new_tokens: int | None = None,
        generate_kwargs: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        return_type: Any = None,
        clean_up_tokenization_spaces: bool | None = None,
        stop_sequence: str | None = None,
        continue_final_message: bool | None = None,
        skip_special_tokens: bool | None = None,
        conversation: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces would change the answer and is not supported: leave it out")
        if return_type is None and return_full_text is not None:
            if return_tensors is not None:
                raise ValueError("`return_full_text` is mutually exclusive with `return_tensors`")
            return_type = ReturnType.FULL_TEXT if return_full_text else ReturnType.NEW_TEXT
        if return_type is None and return_tensors:
            return_type = ReturnType.TENSORS
        before = {"timeout": timeout, "continue_final_message": continue_final_message, "conversation": conversation}
        after = {"return_type": return_type, "skip_special_tokens": skip_special_tokens}
        settings = read_settings(max_new_tokens, generate_kwargs)
        if stop_sequence is not None:
            settings["stop"] = stop_sequence
        return _given(before), settings, _given(after)

    def preprocess(
        self,
        inputs: list[Any],
        timeout: float | None = None,
        continue_final_message: bool | None = None,
        conversation: str | None = None,
    ) -> dict[str, Any]:
        """Convert each input to texts with their images."""
        groups = [read_input(one, timeout, continue_final_message) for one in inputs]
        return {"groups": groups, "conversation": self.own.template(conversation).name}

    def _forward(self, prepared: dict[str, Any], **settings: Any) -> list[tuple[Any, list[list[Answer]]]]:
        groups = prepared["groups"]
        pairs = [pair for group in groups for pair in group]
        texts, images = [text for text, _ in pairs], [images for _, images in pairs]
        found = self.own.answer(texts, images, self.with_defaults(settings), prepared["conversation"])
        answers = iter(group_answers(found, len(texts)))
        return [(group, [next(answers) for _ in group]) for group in groups]

    def postprocess(
        self,
        answered: list[tuple[Any, list[list[Answer]]]],
        return_type: Any = ReturnType.FULL_TEXT,
        skip_special_tokens: bool = True,
    ) -> list[list[Record]]:
        """Return a list of records for each input, with one record for each answer to each of its texts."""
        return [
            [
                self._record(text, answer, ReturnType(return_type), skip_special_tokens)
                for (text, _), found in zip(group, answers, strict=True)
                for answer in found
            ]
            for group, answers in answered
        ]

    def _record(self, text: Any, answer: Answer, return_type: ReturnType, skip_special_tokens: bool) -> Record:
        shown = text.given if isinstance(text, Chat) else text
        if return_type is ReturnType.TENSORS:
            return {"input_text": shown, "generated_token_ids": list(answer.token_ids)}
        processor = self.own.processor
        new = answer.text if skip_special_tokens else processor.decode(answer.token_ids, skip_special_tokens=False)
        if isinstance(text, Chat) and text.ending == "continue":
            new = self._separator(answer, shown) + new
        if return_type is ReturnType.NEW_TEXT:
            return {"input_text": shown, "generated_text": new}
        if isinstance(text, str):
            return {"input_text": shown, "generated_text": f"{text} {new}"}
        return {"input_text": shown, "generated_text": _with_answer(shown, new, text.ending)}

    def _separator(self, answer: Answer, chat: list[Any]) -> str:
        """Return the separator between a message and its continuation: a space if the continuation starts a word."""
        tokenizer = self.own.processor.tokenizer
        known = [one for one in answer.token_ids[:1] if one < len(tokenizer)]
        starts_word = any(tokenizer.token_of(one).startswith("▁") for one in known)
        return " " if starts_word and not _text_of(chat[-1]).endswith(" ") else ""


class ImageToText(ImageToTextPipeline):
    """The registered class for "image-to-text": creates a Share4V's pipeline, or mindone's own for other models."""

    # None means optional: original checkpoints have no image processor file, and a Share4V needs neither of the two.
    _load_tokenizer = None
    _load_image_processor = None

    def __new__(cls, model: Any, dtype: Any = None, **options: Any) -> Any:
        if isinstance(model, Share4VForConditionalGeneration):
            return Share4VImageToTextPipeline(model, **options)
        _require(options, model, {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor})
        return ImageToTextPipeline(model=model, **_given({"dtype": dtype}), **options)


class ImageTextToText(ImageTextToTextPipeline):
    """The registered class for "image-text-to-text"; see ImageToText."""

    # None means optional: a Share4V has its own processor, and AutoProcessor contacts the hub even for cached files.
    _load_processor = None

    def __new__(cls, model: Any, dtype: Any = None, **options: Any) -> Any:
        if isinstance(model, Share4VForConditionalGeneration):
            return Share4VImageTextToTextPipeline(model, **options)
        _require(options, model, {"processor": AutoProcessor})
        return ImageTextToTextPipeline(model=model, **_given({"dtype": dtype}), **options)


def _require(options: dict[str, Any], model: Any, needed: Mapping[str, Any]) -> None:
    """Load what mindone could not load, to raise the error that mindone would have raised."""
    for name, auto in needed.items():
        if options.get(name) is None:
            options[name] = auto.from_pretrained(model.config.name_or_path)


def read_settings(max_new_tokens: int | None, generate_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge a call's settings; generate_kwargs may contain a generation_config and Hugging Face's stop_strings.

    Raises:
        ValueError: a name is unknown, a value is out of range, or max_new_tokens is given twice.
    """
    settings = dict(generate_kwargs or {})
    if max_new_tokens is not None and "max_new_tokens" in settings:
        raise ValueError("max_new_tokens is given twice, as an argument and in generate_kwargs: remove one of them")
    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    return check_settings(None, merged_settings(settings.pop("generation_config", None), settings))


def read_input(
    one: Any, timeout: float | None, continue_final_message: bool | None
) -> list[tuple[str | Chat, list[Any]]]:
    """Read one input of "image-text-to-text" as pairs of a text or chat and its images.

    Raises:
        ValueError: the format is unknown, or the numbers of texts and images differ.
    """
    if isinstance(one, ZooChat):
        messages = one.messages
        continues = messages[-1]["role"] == "assistant" if continue_final_message is None else continue_final_message
        return [(Chat(messages, "continue" if continues else "open"), [])]
    images = None
    if isinstance(one, Mapping):
        images, one = one.get("images", one.get("image")), one.get("text")
    if isinstance(one, str):
        own = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
        return [(one, [downloaded(image, timeout) for image in own])]
    if not isinstance(one, (list, tuple)) or not all(isinstance(text, str) for text in one):
        raise ValueError(f'got {one!r:.80}, expected a question, a chat, or {{"images": ..., "text": ...}}')
    own = [None] * len(one) if images is None else images
    if not isinstance(own, (list, tuple)) or len(own) != len(one):
        raise ValueError(
            f"there are {len(one)} texts: images must have one entry for each, an image or a list of images"
        )
    return [
        pair
        for text, image in zip(one, own, strict=True)
        for pair in read_input({"images": image, "text": text}, timeout, None)
    ]


def _is_request(one: Any) -> bool:
    return isinstance(one, Mapping) and "text" in one and "role" not in one


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _text_of(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _with_answer(chat: list[Any], new: str, ending: str) -> list[Any]:
    """Return the chat with the answer as a new message, or appended to the last one."""
    if ending != "continue":
        return [*chat, {"role": "assistant", "content": new}]
    last = chat[-1]
    if isinstance(last["content"], str):
        return [*chat[:-1], {**last, "content": last["content"] + new}]
    *parts, text = last["content"]
    return [*chat[:-1], {**last, "content": [*parts, {**text, "text": text["text"] + new}]}]
