"""Share4VProcessor: pictures and a question become the model's inputs, generated ids become text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration import IMAGE_TOKEN_INDEX, Share4VConfig, read_json
from .chat_templates import DEFAULT_TEMPLATE, IMAGE_TOKEN, Message, Template, get_template, read_messages
from .image_loading import ImageSource
from .image_processor import ImageProcessor
from .tokenizer import Tokenizer

PROCESSOR_NAME = "processor_config.json"
IM_START, IM_END = "<im_start>", "<im_end>"

Messages = Sequence[Mapping[str, Any]]
Text = str | Messages
Images = ImageSource | Sequence[ImageSource]


class Inputs(dict[str, np.ndarray]):
    """The model's arguments: a dict, so `model(**inputs)` works, whose entries are attributes too.

    Entries:
        input_ids: [B, T] int64, prompts padded on the left; one image_token_id stands for a whole image.
        attention_mask: [B, T] int64, 0 where padded.
        pixel_values: [N, 3, S, S] float32, every image of the batch in the order of the prompts; absent when N is 0.
    """

    def __getattr__(self, name: str) -> np.ndarray:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} among the inputs; there are {', '.join(self)}") from None


class Share4VProcessor:
    """Everything between a user's pictures and words and the model's numbers.

    Args:
        image_processor: makes pixel_values of a picture.
        tokenizer: makes ids of text.
        conversation: the template that is used where a call names none.
        image_token_id: what stands for an image in input_ids (-200; 32000 in LLaVA's form).
        use_im_start_end: put every placeholder between `<im_start>` and `<im_end>`, as some checkpoints were trained.

    Raises:
        ValueError: the template is not known, or the tokenizer lacks `<im_start>` or `<im_end>` where they are used.

    Example:
        >>> from mindone.models.share4v import Share4VProcessor
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> inputs = processor(images="photo.jpg", text="What is in the picture?")
        >>> inputs.pixel_values.shape, inputs.input_ids.dtype
        ((1, 3, 96, 96), dtype('int64'))
        >>> processor.decode(processor.tokenizer.encode("A red circle."))
        'A red circle.'
    """

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        conversation: str = DEFAULT_TEMPLATE,
        image_token_id: int = IMAGE_TOKEN_INDEX,
        use_im_start_end: bool = False,
    ) -> None:
        get_template(conversation)
        missing = [token for token in (IM_START, IM_END) if token not in tokenizer.added_tokens]
        if use_im_start_end and missing:
            raise ValueError(
                f"use_im_start_end needs the added tokens {' and '.join(missing)}, which the tokenizer lacks: copy "
                "added_tokens.json beside tokenizer.model"
            )
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.image_token_id = image_token_id
        self.use_im_start_end = use_im_start_end

    def __call__(
        self,
        images: Images | Sequence[Images | None] | None = None,
        text: Text | Sequence[Text] | None = None,
        conversation: str | None = None,
    ) -> Inputs:
        """Make the model's inputs of one prompt or of a batch.

        Args:
            images: with one `text`, its picture or a list of its pictures; with a list of texts, one entry a text,
                each a picture, a list of pictures or None. A picture is whatever `load_image` takes. None: the
                prompts have no pictures, or the messages' image parts hold them
                (`{"type": "image", "image": picture}`, also under `url` or `path`).
            text: a question, a conversation (a list of `{"role", "content"}` messages), or a list of either. None asks
                the template's own question, "Describe this image". Each `<image>` in it stands for one picture, also
                when a user typed it; a text that names none gets `<image>` and a line end in front for each picture.
            conversation: name of the template, by default the processor's.

        Raises:
            ImageLoadError: a picture cannot be loaded.
            ValueError: pictures and `<image>` differ in number, texts and entries of `images` do, the template is not
                known, or a conversation is malformed.
        """
        template = self._template(conversation)
        texts, pictures = _pair(text, images)
        prompts: list[list[int]] = []
        shown: list[ImageSource] = []
        for place, (one, own) in enumerate(zip(texts, pictures, strict=True)):
            held = _held_images(one)
            if held and own:
                raise ValueError(
                    f"text {place} holds {len(held)} images in its messages and {len(own)} more came as images; "
                    "give them in one place"
                )
            own = held or own
            prompt = self._render(one, len(own), template)
            found = prompt.count(IMAGE_TOKEN)
            if found != len(own):
                raise ValueError(
                    f"text {place} names {found} {IMAGE_TOKEN} but comes with {len(own)} images: give one image for "
                    f"each {IMAGE_TOKEN}, or name none to have them put in front"
                )
            prompts.append(self.encode_prompt(prompt))
            shown += own
        inputs = self._padded(prompts)
        if shown:
            inputs["pixel_values"] = np.stack([self.image_processor(image) for image in shown])
        return inputs

    def prompt(self, text: Text | None = None, num_images: int = 0, conversation: str | None = None) -> str:
        """Return the prompt text that a call would tokenize, to look at it or to count.

        Raises:
            ValueError: the template is not known, or the conversation is malformed.

        Example:
            >>> from mindone.models.share4v import Share4VProcessor
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> processor.prompt("Why?", 1, "share4v_v0")[-32:]
            'Human: <image>\\nWhy?###Assistant:'
        """
        return self._render(text, num_images, self._template(conversation))

    def encode_prompt(self, prompt: str) -> list[int]:
        """Tokenize a rendered prompt: each text between `<image>`s by itself, one BOS, a placeholder id an image.

        So the text after an image starts a sentencepiece run of its own, as in training.
        """
        if self.use_im_start_end:
            prompt = prompt.replace(IMAGE_TOKEN, f"{IM_START}{IMAGE_TOKEN}{IM_END}")
        first, *others = prompt.split(IMAGE_TOKEN)
        ids = self.tokenizer.encode(first)
        for piece in others:
            ids.append(self.image_token_id)
            ids += self.tokenizer.encode(piece, add_bos=False)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turn one answer's ids into text, without white space around it, as the original's scripts print it.

        Ids beyond the tokenizer's, which a model with a padded vocabulary can give, are left out.

        Raises:
            ValueError: an id is negative, such as the placeholder of an image.
        """
        known = len(self.tokenizer)
        return self.tokenizer.decode((item for item in ids if item < known), skip_special_tokens).strip()

    def batch_decode(self, ids: Iterable[Iterable[int]], skip_special_tokens: bool = True) -> list[str]:
        """Turn the ids of several answers into their texts; see `decode`."""
        return [self.decode(answer, skip_special_tokens) for answer in ids]

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        vision_tower: str | Path | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Share4VProcessor:
        """Read a checkpoint's tokenizer, image processor and default template; its weights are left alone.

        Args:
            name_or_path: a known name ("sharegpt4v-tiny"), a directory, or owner/name on a hub.
            vision_tower: directory or name; by default what the checkpoint's config says.
            cache_dir: where downloads are kept.
            local_files_only: never download.

        Raises:
            FileNotFoundError: a file is missing; the message names it.
            ValueError: a file contradicts another one, or is damaged.
        """
        from ..checkpoint.layout import locate

        layout = locate(name_or_path, vision_tower, cache_dir, local_files_only, weights=False)
        config: Share4VConfig = layout.config
        stated_path = layout.directory / PROCESSOR_NAME
        stated = read_json(stated_path) if stated_path.is_file() else {}
        return cls(
            ImageProcessor.from_pretrained(layout.directory, config, layout.vision_directory),
            Tokenizer.from_pretrained(layout.directory),
            conversation=stated.get("conversation", DEFAULT_TEMPLATE),
            image_token_id=config.image_token_id,
            use_im_start_end=config.use_im_start_end,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the tokenizer's, the image processor's and this processor's files; config.json is the model's."""
        place = Path(directory)
        self.tokenizer.save_pretrained(place)
        self.image_processor.save_pretrained(place)
        stated = {"processor_class": type(self).__name__, "conversation": self.conversation}
        (place / PROCESSOR_NAME).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")

    def _template(self, name: str | None) -> Template:
        return get_template(self.conversation if name is None else name)

    def _render(self, text: Text | None, num_images: int, template: Template) -> str:
        """Apply the template; `<image>` goes in front of the first question where no message names one."""
        turns = read_messages([Message("user", template.question)] if text is None else _as_messages(text))
        if num_images and not any(IMAGE_TOKEN in turn.text for turn in turns):
            first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
            if first is not None:
                turns[first] = Message("user", f"{IMAGE_TOKEN}\n" * num_images + turns[first].text)
        empty = next((turn for turn in turns if turn.role == "user" and not turn.text.strip()), None)
        if empty is not None:
            raise ValueError("a question is empty and shows no image: write what to ask, or give an image")
        return template.render(turns)

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Inputs:
        """Pad on the left, so that every prompt ends where its answer starts."""
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        input_ids = np.full((len(prompts), longest), self.tokenizer.eos_token_id if pad is None else pad, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            input_ids[row, longest - len(ids) :] = ids
            attention_mask[row, longest - len(ids) :] = 1
        return Inputs(input_ids=input_ids, attention_mask=attention_mask)


def _as_messages(text: Text) -> Sequence[Mapping[str, Any] | Message]:
    return [Message("user", text)] if isinstance(text, str) else text


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _is_conversation(text: Any) -> bool:
    return _is_list(text) and bool(text) and isinstance(text[0], (Mapping, Message))


def _pair(text: Any, images: Any) -> tuple[list[Any], list[list[ImageSource]]]:
    """Return the batch's texts, and for each the list of its images."""
    if text is None and images is None:
        raise ValueError("neither text nor images are given: give a question, an image, or both")
    if text is None or isinstance(text, str) or _is_conversation(text):
        own = list(images) if _is_list(images) else [] if images is None else [images]
        nested = next((item for item in own if item is None or _is_list(item)), own)
        if nested is not own:
            raise ValueError(
                f"images holds {nested!r:.60}, but there is one text: give it a flat list of images, or a list of texts"
            )
        if text is None and not own:
            raise ValueError("images is an empty list and no text is given: give an image or a question")
        return [text], [own]
    if not _is_list(text):
        raise ValueError(
            f"text is a {type(text).__name__}: expected a question, a list of messages, or a list of either"
        )
    if not text:
        raise ValueError("text is an empty list: give at least one question")
    for place, one in enumerate(text):
        if not isinstance(one, str) and not _is_conversation(one):
            raise ValueError(f"text {place} is {one!r:.60}: expected a question or a list of messages")
    if images is None:
        return list(text), [[] for _ in text]
    if not _is_list(images) or len(images) != len(text):
        count = f"{len(images)} entries" if _is_list(images) else "one image"
        raise ValueError(
            f"there are {len(text)} texts but images has {count}: give one entry a text, each an image, a list of "
            "images or None"
        )
    return list(text), [list(one) if _is_list(one) else [] if one is None else [one] for one in images]


def _held_images(text: Any) -> list[ImageSource]:
    """Collect the pictures that a conversation's image parts hold, in order."""
    held: list[ImageSource] = []
    for message in text if _is_conversation(text) else ():
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "image":
                held += [part[key] for key in ("image", "url", "path") if part.get(key) is not None][:1]
            elif kind == "image_url":
                address = part.get("image_url")
                held.append(address["url"] if isinstance(address, Mapping) and "url" in address else address)
    return held
