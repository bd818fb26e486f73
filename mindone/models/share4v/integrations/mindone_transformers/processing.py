"""Share4VProcessor for mindone.transformers' AutoProcessor: this project's processor with that library's interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mindone.transformers import BatchFeature, ProcessorMixin

from ...checkpoint import Checkpoint
from ...load_options import CheckpointOptions
from ...processing import processor
from ...processing.chat_templates import Template
from ...processing.messages import Message, read_messages
from ...processing.processor import Images, Messages, Text

_QUESTION = "?"


class Prompt(str):
    """A complete prompt, to which the template has already been applied."""


class Chat(list[Message]):
    """Parsed messages, and how their prompt ends.

    Attributes:
        ending: "open" starts the assistant's answer, "continue" leaves the assistant's last message open, "closed" ends
            after the last message, and "verbatim" means that the one message is a complete prompt.
        given: the messages before parsing.
    """

    def __init__(self, messages: Messages, ending: str) -> None:
        super().__init__(read_messages(messages))
        self.ending, self.given = ending, list(messages)


class Share4VProcessor(processor.Share4VProcessor, ProcessorMixin):
    """This project's processor as a ProcessorMixin; a call returns a BatchFeature with the same arrays.

    Its tokenizer and image processor are this project's, not classes of transformers: use
    `processor.tokenizer.encode(text)` and `processor.image_processor(image)`.

    Example:
        >>> from mindone.models.share4v.integrations.mindone_transformers.processing import Share4VProcessor
        >>> processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
        >>> question = {"role": "user", "content": [{"type": "text", "text": "What is this?"}]}
        >>> processor.apply_chat_template([question], add_generation_prompt=True)[-30:]
        'USER: What is this? ASSISTANT:'
    """

    # The name of the class must not change: processor_config.json contains "Share4VProcessor".
    attributes: ClassVar[list[str]] = []
    chat_template = None
    audio_tokenizer = None

    def __call__(  # type: ignore[override]
        self,
        images: Images | Sequence[Images | None] | None = None,
        text: Text | Sequence[Text] | None = None,
        conversation: str | None = None,
        return_tensors: str | None = None,
        padding: bool | str = True,
    ) -> Any:
        """Prepare the model's inputs; see `mindone.models.share4v.Share4VProcessor`.

        Args:
            images, text, conversation: as there. In addition, a text that ends with the start of the assistant's
                answer, such as "USER: <image>\\nWhat is this? ASSISTANT:", is a complete prompt and is not changed.
            return_tensors: "ms" for MindSpore tensors, "np" or None for arrays.
            padding: ignored; a batch is always padded on the left.

        Returns:
            BatchFeature with input_ids, attention_mask and, if there are images, pixel_values.
        """
        return BatchFeature(super().__call__(images, text, conversation), tensor_type=return_tensors)

    def apply_chat_template(  # type: ignore[override]
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
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        ending = "continue" if continue_final_message else "open" if add_generation_prompt else "closed"
        if continue_final_message and add_generation_prompt:
            raise ValueError("add_generation_prompt starts a new message, continue_final_message does not: choose one")
        given: Any = conversation if is_batch else [conversation]
        chats = [Chat(chat, ending) for chat in given]
        template = self._template(chat_template)
        if not tokenize:
            prompts = [Prompt(self._render(chat, 0, template)) for chat in chats]
            return prompts if is_batch else prompts[0]
        inputs = self(text=chats, conversation=template.name, return_tensors=return_tensors)
        return inputs if return_dict else inputs["input_ids"]

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:  # type: ignore[override]
        """Turn ids into text like `mindone.models.share4v.Share4VProcessor.decode`, but skip image placeholders."""
        numbers = ids.asnumpy() if hasattr(ids, "asnumpy") else ids
        return super().decode((one for one in map(int, numbers) if one != self.image_token_id), skip_special_tokens)

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True) -> list[str]:
        """Turn rows of ids into texts."""
        return self.batch_decode(generated_outputs, skip_special_tokens)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the entries that a call returns."""
        return ["input_ids", "attention_mask", "pixel_values"]

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **others: Any) -> Any:  # type: ignore[override]
        """Read a checkpoint's processor; options and errors are those of this project's processor.

        Args:
            others: the options of `Share4VProcessor.from_pretrained` (see CheckpointOptions), and arguments that the
                Auto classes and pipelines add, such as the options of the model, which are ignored.
        """
        checkpoint = Checkpoint.open(name_or_path, CheckpointOptions.pick(others), weights=False)
        return cls.from_checkpoint(checkpoint)

    def _messages(self, text: Text | None, template: Template, special_tokens: bool = True) -> list[Message]:
        if isinstance(text, Chat):
            return text
        if isinstance(text, Prompt) or (special_tokens and isinstance(text, str) and _is_complete(text, template)):
            return Chat([Message("user", str(text))], "verbatim")
        return super()._messages(text, template, special_tokens)

    def _render(self, messages: Sequence[Message], num_images: int, template: Template) -> str:
        ending = messages.ending if isinstance(messages, Chat) else "open"
        if ending == "open":
            return super()._render(messages, num_images, template)
        if ending == "closed":
            return template.render(messages, add_generation_prompt=False)
        if ending == "verbatim":
            return messages[0].text
        if not messages or messages[-1].role != "assistant":
            raise ValueError("continue_final_message needs a chat whose last message is the assistant's")
        prompt = super()._render(messages[:-1], num_images, template)
        return prompt + (" " if _answer_start(template) else "") + messages[-1].text.strip()


def _answer_start(template: Template) -> str:
    """Return the start of the assistant's turn after a question, such as "ASSISTANT:"; empty in the plain style."""
    return template.render([Message("user", _QUESTION)]).rpartition(_QUESTION)[2].strip()


def _is_complete(text: str, template: Template) -> bool:
    """Return whether a text ends with the assistant's open turn, and so is a complete prompt."""
    ending = _answer_start(template)
    return bool(ending) and text.rstrip().endswith(ending)
