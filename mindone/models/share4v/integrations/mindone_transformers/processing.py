"""Share4VProcessor for mindone.transformers' AutoProcessor: this project's processor with that library's interface."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mindone.transformers import BatchFeature, ProcessorMixin

from ...checkpoint import Checkpoint
from ...load_options import CheckpointOptions
from ...processing import processor
from ...processing.processor import Images, Text


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
        max_image_pixels: int | None = None,
    ) -> Any:
        """Prepare the model's inputs; see `mindone.models.share4v.Share4VProcessor`.

        Args:
            images, text, conversation: as there.
            return_tensors: "ms" for MindSpore tensors, "np" or None for arrays.
            padding: ignored; a batch is always padded on the left.
            max_image_pixels: as there.

        Returns:
            BatchFeature with input_ids, attention_mask and, if there are images, pixel_values.
        """
        inputs = super().__call__(images, text, conversation, max_image_pixels=max_image_pixels)
        return BatchFeature(inputs, tensor_type=return_tensors)

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
