"""Share4VProcessor: images and questions become the model's inputs; generated token ids become text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import configuration_schema as schema
from ..configuration import CONFIG_NAME, IMAGE_TOKEN_INDEX, NO_VISION, read_json, read_optional_json
from ..home_directory import expand_home
from ..hugging_face import FILES, PROCESSOR, check_arguments
from ..load_options import CheckpointOptions, checked_options, explicit_options
from .arrays import NamedArrays, check_tensor_type
from .call_arguments import named_arguments, pair
from .chat_templates import DEFAULT_TEMPLATE, Template, get_template
from .gguf_vocabulary import template_of_gguf
from .image_loading import ImageSource
from .image_processor import ImageProcessor
from .messages import IMAGE_TOKEN, Message, read_messages
from .plain_text import protect
from .prompts import Chat, Prompt, render_chat
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..checkpoint import Checkpoint
    from ..load_options import CheckpointArguments

PROCESSOR_NAME = "processor_config.json"
IM_START, IM_END = "<im_start>", "<im_end>"

Messages = Sequence[Mapping[str, Any] | Message]
Text = str | Messages
Images = ImageSource | Sequence[ImageSource]


class Inputs(NamedArrays):
    """The model's inputs: a dict, so that `model(**inputs)` works; each entry is also an attribute.

    Entries:
        input_ids: [B, T] int64, padded on the left; one image_token_id stands for a whole image.
        attention_mask: [B, T] int64, 0 at padding.
        pixel_values: [N, 3, S, S] float32, all images of the batch in the order of the prompts; absent if there are
            none.
    """


class Share4VProcessor:
    """Tokenizer, image processor and chat template: everything between a user's images and text and the model.

    Args:
        image_processor: turns an image into pixel_values; None for a model without a vision tower.
        tokenizer: turns text into token ids and back.
        conversation: name of the default chat template.
        image_token_id: the id that stands for an image in input_ids (-200; 32000 in LLaVA's checkpoints).
        use_im_start_end: wrap each `<image>` in `<im_start>` and `<im_end>`, as some checkpoints were trained.

    Raises:
        ValueError: the template is unknown, or `use_im_start_end` is set and the tokenizer lacks one of these tokens.

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
        image_processor: ImageProcessor | None,
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
                "added_tokens.json to the folder of tokenizer.model"
            )
        self._image_processor = image_processor
        self.tokenizer = tokenizer
        self.conversation = conversation
        self.image_token_id = image_token_id
        self.use_im_start_end = use_im_start_end

    def __call__(
        self,
        *values: Any,
        images: Images | Sequence[Images | None] | None = None,
        text: Text | Sequence[Text] | None = None,
        conversation: str | None = None,
        special_tokens: bool = True,
        return_tensors: str | None = None,
        max_image_pixels: int | None = None,
        **arguments: Any,
    ) -> Inputs:
        """Prepare the model's inputs for one prompt or a batch of prompts.

        Args:
            values: `images`, `text` and `conversation` without their names; a text in place of the images is the text.
            images: with one `text`, its image or a list of its images; with a list of texts, one entry for each text:
                an image, a list of images or None. An image is anything that `load_image` accepts. None if the prompts
                have no images, or if the messages contain them (`{"type": "image", "path": "photo.jpg"}`; see
                `read_messages` for all formats). Images given here also fill the image parts that have none.
            text: a question, a conversation (a list of `{"role", "content"}` messages), or a list of either. By
                default the template's own question, "Describe this image". Each `<image>` in the text stands for one
                image, including those that a user typed. A text without `<image>` gets one, and a line end, in front
                for each of its images. A question that is a complete prompt of the template already, such as "USER:
                <image>\\nWhat is this? ASSISTANT:", is not put into it again; see `Template.complete`.
            return_tensors: "np" or None for NumPy arrays, "ms" for MindSpore's tensors, "pt" for PyTorch's.
            max_image_pixels: maximum number of pixels of an image file, as in `load_image`.
            arguments: arguments of transformers' processors, such as padding=True; see `hugging_face.ARGUMENTS`.
            conversation: name of the chat template; by default the processor's.
            special_tokens: whether texts may contain `<image>` and the tokenizer's special tokens, such as `</s>`. With
                False they are plain text, as a stranger's texts should be; images then belong in image parts.

        Raises:
            ImageLoadError: an image cannot be loaded.
            TypeError: an argument is unknown, or given twice.
            ValueError: the number of images differs from the number of `<image>`, the number of entries of `images`
                from the number of texts, the template is unknown, or a message is malformed.
        """
        known = ("images", "text", "conversation", "special_tokens", "return_tensors", "max_image_pixels")
        check_arguments(PROCESSOR, arguments, known)
        check_tensor_type(return_tensors)
        images, text, conversation = named_arguments(values, images, text, conversation)
        template = self._template(conversation)
        texts, image_lists = pair(text, images)
        prompts: list[list[int]] = []
        batch_images: list[ImageSource] = []
        for index, (one, given) in enumerate(zip(texts, image_lists, strict=True)):
            messages = self._messages(one, template, special_tokens)
            own = _images_in_order(index, messages, given)
            prompt = render_chat(messages, len(own), template, special_tokens)
            num_placeholders = prompt.count(IMAGE_TOKEN)
            if num_placeholders != len(own):
                raise ValueError(
                    f"text {index} has {num_placeholders} {IMAGE_TOKEN} but {len(own)} images: give one image for each "
                    f"{IMAGE_TOKEN}, or leave {IMAGE_TOKEN} out to have the images put in front of the text"
                )
            prompts.append(self.encode_prompt(prompt, is_protected=not special_tokens))
            batch_images += own
        inputs = self._padded(prompts)
        if batch_images:
            pixels = [self.image_processor(image, max_image_pixels) for image in batch_images]
            inputs["pixel_values"] = np.stack(pixels)  # [N, 3, S, S]
        return inputs.as_tensors(return_tensors)

    @property
    def has_vision(self) -> bool:
        """Whether images can be given."""
        return self._image_processor is not None

    @property
    def image_processor(self) -> ImageProcessor:
        """What turns an image into pixel_values.

        Raises:
            ValueError: the model has no vision tower.
        """
        if self._image_processor is None:
            raise ValueError(NO_VISION)
        return self._image_processor

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
    ) -> Any:
        """Convert chats to prompts or, with `tokenize`, to the model's inputs, including the images of the chats.

        Args:
            conversation: a list of `{"role", "content"}` messages, or a list of such lists.
            chat_template: name of one of this project's templates ("vicuna_v1", ...); by default the processor's.
            add_generation_prompt: end with the start of the assistant's answer.
            continue_final_message: leave the last message, which must be the assistant's, open.
            tokenize: whether to return the model's inputs; False returns the text.
            return_dict: with `tokenize`, False returns the input_ids only.
            return_tensors: as in a call.

        Raises:
            ValueError: a chat is malformed, add_generation_prompt and continue_final_message are combined, or the last
                message cannot be continued.

        Example:
            >>> from mindone.models.share4v import Share4VProcessor
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
            >>> processor.apply_chat_template([question], add_generation_prompt=True)[-38:]
            'USER: <image>\\nWhat is this? ASSISTANT:'
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        ending = "continue" if continue_final_message else "open" if add_generation_prompt else "closed"
        if continue_final_message and add_generation_prompt:
            raise ValueError("add_generation_prompt starts a new message, continue_final_message does not: choose one")
        given: Any = conversation if is_batch else [conversation]
        chats = [Chat(chat, ending) for chat in given]
        template = self._template(chat_template)
        if not tokenize:
            prompts = [Prompt(render_chat(chat, 0, template)) for chat in chats]
            return prompts if is_batch else prompts[0]
        inputs = self(text=chats, conversation=template.name, return_tensors=return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def prompt(self, text: Text | None = None, num_images: int = 0, conversation: str | None = None) -> str:
        """Return the prompt that a call would tokenize, for inspection or counting.

        Raises:
            ValueError: the template is unknown, or a message is malformed.

        Example:
            >>> from mindone.models.share4v import Share4VProcessor
            >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
            >>> processor.prompt("Why?", 1, "share4v_v0")[-32:]
            'Human: <image>\\nWhy?###Assistant:'
        """
        template = self._template(conversation)
        return render_chat(self._messages(text, template), num_images, template)

    def encode_prompt(self, prompt: str, is_protected: bool = False) -> list[int]:
        """Tokenize a prompt: one BOS, then each text between two `<image>` on its own, joined by image_token_id.

        Tokenizing the texts separately is how the model was trained: the text after an image starts a new
        sentencepiece run. `is_protected` is that of `Tokenizer.encode`.
        """
        if self.use_im_start_end:
            prompt = prompt.replace(IMAGE_TOKEN, f"{IM_START}{IMAGE_TOKEN}{IM_END}")
        first, *others = prompt.split(IMAGE_TOKEN)
        ids = self.tokenizer.encode(first, is_protected=is_protected)
        for piece in others:
            ids.append(self.image_token_id)
            ids += self.tokenizer.encode(piece, add_bos=False, is_protected=is_protected)
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Turn the ids of one answer into text, stripped of surrounding white space like the original's scripts do.

        Ids beyond the tokenizer's vocabulary, which a model with a padded vocabulary can generate, are skipped.

        Raises:
            ValueError: an id is negative, such as an image placeholder.
        """
        known = len(self.tokenizer)
        return self.tokenizer.decode((item for item in ids if item < known), skip_special_tokens).strip()

    def batch_decode(
        self,
        ids: Iterable[Iterable[int]],
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """Turn the ids of several answers into their texts; see `decode`. Spaces are never cleaned up.

        Raises:
            ValueError: in addition, clean_up_tokenization_spaces is True.
        """
        if clean_up_tokenization_spaces:
            raise ValueError("clean_up_tokenization_spaces=True would change the answers: leave it out")
        return [self.decode(answer, skip_special_tokens) for answer in ids]

    @classmethod
    @explicit_options(CheckpointOptions)
    def from_pretrained(cls, name_or_path: str | Path, **options: Unpack[CheckpointArguments]) -> Share4VProcessor:
        """Read a checkpoint's tokenizer, image processor and default template; its weights are not downloaded.

        Args:
            name_or_path: a known name such as "sharegpt4v-tiny", a directory, or owner/name on a hub.
            options: the fields of `CheckpointOptions`, which describes them.

        Raises:
            FileNotFoundError, HubError: a file or the checkpoint was not found; the message says what was tried.
            ValueError: a file contradicts another one, or is damaged.
        """
        from ..checkpoint import Checkpoint

        load = CheckpointOptions(**checked_options(FILES, options, CheckpointOptions))
        directory = expand_home(name_or_path)
        if (directory / PROCESSOR_NAME).is_file() and not (directory / CONFIG_NAME).is_file():
            return cls.from_files(directory)
        return cls.from_checkpoint(Checkpoint.open(name_or_path, load, weights=False))

    @classmethod
    def from_files(cls, directory: str | Path) -> Self:
        """Read the processor that `save_pretrained` wrote to a directory without a model.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged.
        """
        path = Path(directory) / PROCESSOR_NAME
        stated = read_json(path)
        errors = {
            "conversation": schema.Text().error(stated.get("conversation", DEFAULT_TEMPLATE)),
            "image_token_id": schema.Integer(-(2**31), 2**31 - 1).error(stated.get("image_token_id", 0)),
        }
        for name, error in errors.items():
            if error is not None:
                raise ValueError(f"{path}: {name} {error}")
        return cls(
            ImageProcessor.from_pretrained(directory) if stated.get("has_images", True) is not False else None,
            Tokenizer.from_pretrained(directory),
            conversation=stated.get("conversation", DEFAULT_TEMPLATE),
            image_token_id=stated.get("image_token_id", IMAGE_TOKEN_INDEX),
            use_im_start_end=stated.get("use_im_start_end") is True,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """Read the processor of an open checkpoint; errors are those of `from_pretrained`."""
        config, directory = checkpoint.config, checkpoint.directory
        if checkpoint.gguf is not None:
            metadata = checkpoint.gguf.language.metadata
            vision = checkpoint.gguf.vision
            return cls(
                None if vision is None else ImageProcessor.from_gguf(vision.metadata, config),
                Tokenizer.from_gguf(metadata),
                conversation=template_of_gguf(metadata)[0],
                image_token_id=config.image_token_id,
            )
        path = directory / PROCESSOR_NAME
        stated = read_optional_json(path)
        error = schema.Text().error(stated.get("conversation", DEFAULT_TEMPLATE))
        if error is not None:
            raise ValueError(f"{path}: conversation {error}")
        return cls(
            ImageProcessor.from_pretrained(directory, config, checkpoint.vision_directory)
            if config.has_vision
            else None,
            Tokenizer.from_pretrained(directory),
            conversation=stated.get("conversation", DEFAULT_TEMPLATE),
            image_token_id=config.image_token_id,
            use_im_start_end=config.use_im_start_end,
        )

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the files of the tokenizer, the image processor and this processor. The model writes config.json."""
        directory = Path(directory)
        self.tokenizer.save_pretrained(directory)
        stated: dict[str, Any] = {} if self.has_vision else {"has_images": False}
        if self._image_processor is not None:
            self._image_processor.save_pretrained(directory)
        stated |= {
            "processor_class": "Share4VProcessor",
            "conversation": self.conversation,
            "image_token_id": self.image_token_id,
            "use_im_start_end": self.use_im_start_end,
        }
        (directory / PROCESSOR_NAME).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the files of `save_pretrained` to the Hugging Face hub; arguments and errors as for a model."""
        from ..hub.upload import upload

        return upload(repo_id, self.save_pretrained, private, token, commit_message)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(conversation={self.conversation!r}, image_token_id={self.image_token_id}, "
            f"image_processor={self._image_processor!r}, tokenizer={self.tokenizer!r})"
        )

    def _template(self, name: str | None) -> Template:
        return get_template(self.conversation if name is None else name)

    def _messages(self, text: Text | None, template: Template, special_tokens: bool = True) -> Sequence[Message]:
        """Return a question or a conversation as messages; None is the template's own question."""
        if isinstance(text, Chat):
            return text
        if isinstance(text, Prompt):
            return Chat([Message("user", str(text))], "verbatim")
        if text is None:
            return [Message("user", template.question)]
        if special_tokens:
            return [Message("user", text)] if isinstance(text, str) else read_messages(text)
        tokens = (IMAGE_TOKEN, *self.tokenizer.split_tokens)
        if isinstance(text, str):
            return [Message("user", protect(text, tokens))]
        if any(isinstance(message, Message) for message in text):  # its `<image>` cannot be told from a stranger's
            raise ValueError("special_tokens=False expects {'role', 'content'} messages, got a Message")
        return read_messages(text, lambda content: protect(content, tokens))

    def _padded(self, prompts: Sequence[Sequence[int]]) -> Inputs:
        """Pad on the left, so that every prompt ends where its answer starts."""
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        # [B, T]
        input_ids = np.full((len(prompts), longest), self.tokenizer.eos_token_id if pad is None else pad, np.int64)
        attention_mask = np.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            input_ids[row, longest - len(ids) :] = ids
            attention_mask[row, longest - len(ids) :] = 1
        return Inputs(input_ids=input_ids, attention_mask=attention_mask)


def _images_in_order(index: int, messages: Sequence[Message], given: list[ImageSource]) -> list[ImageSource]:
    """Return the images of text `index` in the order of their `<image>`, from its messages and those given separately.

    Raises:
        ValueError: images were given separately, but the messages have their own and no part for them.
    """
    parts = [image for message in messages for image in message.images]
    own = [image for image in parts if image is not None]
    if not own:
        return given
    num_empty = len(parts) - len(own)
    if len(given) != num_empty:
        needed = f", and {num_empty} image parts without one" if num_empty else ""
        raise ValueError(
            f"text {index} has {len(own)} images in its messages{needed}, but {len(given)} more were given as images; "
            "give each image once, either in its message or as images"
        )
    remaining = iter(given)
    return [next(remaining) if image is None else image for image in parts]
