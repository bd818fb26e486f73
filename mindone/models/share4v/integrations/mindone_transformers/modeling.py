"""Share4VForConditionalGeneration: a Share4V with the interface that mindone.transformers expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from transformers import GenerationConfig

from ...backends import open_checkpoint
from ...checkpoint import Checkpoint
from ...generation.decoding import MAX_NEW_TOKENS
from ...generation.mixin import Array
from ...hugging_face import MODEL, check_arguments
from ...inputs import as_numpy
from ...load_options import LoadOptions, checked_options, dtype_name
from ...modeling import Share4V, Share4VOutput
from .configuration import Share4VPretrainedConfig
from .processing import Share4VProcessor

# The supported fields of GenerationConfig, with their names in `Share4V.generate`.
SETTINGS = {
    **{name: name for name in ("max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p")},
    **{name: name for name in ("num_beams", "length_penalty", "repetition_penalty")},
    **{name: name for name in ("min_p", "no_repeat_ngram_size", "num_return_sequences")},
    "stop_strings": "stop",
}
# Fields that can be ignored, because they only state facts about the model.
_IGNORED = ("transformers_version", "_from_model_config", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
# Arguments that the Auto classes and pipelines add and that do not affect loading.
_NOTES = ("_from_auto", "_from_pipeline", "_commit_hash", "attn_implementation")


class Share4VForConditionalGeneration(nn.Cell):
    """The class that `AutoModelForImageTextToText` and `AutoModelForVision2Seq` load for the model type "share4v".

    It is not a PreTrainedModel: its weights may be packed for the kernels, and the features of that class other than
    generation (resizing embeddings, gradient checkpointing, attention implementations) are not supported. To train,
    use the attribute `share4v`.

    Args:
        share4v: the model.
        config: its config; by default derived from the model's.

    Attributes:
        share4v: see above.
        generation_config: the defaults of `generate`, which may be changed.

    Example:
        >>> from mindone.models.share4v.integrations.mindone_transformers import modeling
        >>> model = modeling.Share4VForConditionalGeneration.from_pretrained("sharegpt4v-tiny")
        >>> inputs = model.processor(images="photo.jpg", return_tensors="ms")
        >>> ids = model.generate(**inputs, max_new_tokens=8)
        >>> ids.shape[1] - inputs["input_ids"].shape[1]
        8
    """

    config_class = Share4VPretrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, share4v: Share4V, config: Share4VPretrainedConfig | None = None) -> None:
        super().__init__(auto_prefix=False)  # the weights keep their names in the model
        self.share4v = share4v
        self.config = Share4VPretrainedConfig(share4v.config) if config is None else config
        text = share4v.config.text_config
        self.generation_config = GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS,
            top_k=0,  # as Share4V.generate, unlike transformers
            bos_token_id=text.bos_token_id,
            eos_token_id=list(text.eos_token_ids),
            pad_token_id=_pad_token_id(share4v),
        )
        self._checkpoint: Checkpoint | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Share4VPretrainedConfig | None = None,
        dtype: Any = None,
        **others: Any,
    ) -> Share4VForConditionalGeneration:
        """Load a checkpoint; options and errors are those of `Share4V.from_pretrained`.

        Args:
            config: the config that the Auto classes read already; it does not change what is loaded.
            dtype: type of the weights.
            others: the other options of `Share4V.from_pretrained` (see LoadOptions), and arguments that the Auto
                classes add.

        Raises:
            TypeError: an argument is unknown; the message has the closest one.
            ValueError: in addition, an argument is not supported; the message says what to use instead.
        """
        options = LoadOptions(**checked_options(MODEL, _without_notes({**others, "dtype": dtype}), LoadOptions))
        checkpoint = open_checkpoint(name_or_path, options)
        share4v = Share4V.from_checkpoint(checkpoint, options)
        common = {"name_or_path": str(name_or_path), "_commit_hash": getattr(config, "_commit_hash", None)}
        model = cls(share4v, Share4VPretrainedConfig(share4v.config, **common))
        model._checkpoint = checkpoint
        return model

    @classmethod
    def _from_config(cls, config: Share4VPretrainedConfig, dtype: Any = None, **others: Any) -> Any:
        """Build a model with random weights for training; called by the Auto classes' from_config."""
        check_arguments(MODEL, _without_notes(others), ("dtype",))
        return cls(Share4V(config.share4v, dtype_name(dtype) or "float32"), config)

    @property
    def dtype(self) -> Any:
        """Data type of the pixels and of the logits; that of the weights is `share4v.dtype`."""
        return ms.float32

    @cached_property
    def processor(self) -> Share4VProcessor:
        """The checkpoint's processor.

        Raises:
            ValueError: the model was not loaded from a checkpoint.
        """
        if self._checkpoint is None:
            raise ValueError("this model was not loaded from a checkpoint: pass processor= to the pipeline")
        return Share4VProcessor.from_checkpoint(self._checkpoint)

    def can_generate(self) -> bool:
        """Return True."""
        return True

    def construct(
        self,
        input_ids: Array | None = None,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        inputs_embeds: Array | None = None,
    ) -> Share4VOutput:
        """Return the logits of complete prompts; see `Share4V.construct`."""
        return self.share4v(input_ids, pixel_values, attention_mask, inputs_embeds)

    def generate(
        self,
        input_ids: Array,
        pixel_values: Array | None = None,
        attention_mask: Array | None = None,
        generation_config: GenerationConfig | None = None,
        **settings: Any,
    ) -> Tensor:
        """Return prompts and answers in one array, like Hugging Face's `generate`.

        Args:
            input_ids: int [B, L], padded on the left, with config.image_token_id where an image goes.
            pixel_values: float32 [N, 3, S, S].
            attention_mask: int [B, L], 0 at padding.
            generation_config: settings; keyword arguments override them.
            settings: the settings of `Share4V.generate`, with its defaults (top_k is off), and stop_strings.

        Returns:
            int64 [B * N, L + M], N = num_return_sequences: the input_ids, followed by the new ids, padded with
            generation_config.pad_token_id to the longest answer.

        Raises:
            ValueError: a setting is not supported or out of range, or as in `Share4V.generate`.
        """
        ids = as_numpy(input_ids)
        defaults = self.generation_config if generation_config is None else generation_config
        chosen = merged_settings(defaults, settings)
        count = chosen.get("num_return_sequences") or 1
        answers = self.share4v.generate(
            input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **chosen
        )
        longest = max(map(len, answers))  # M
        new = np.full((len(answers), longest), _pad_token_id(self.share4v), np.int64)
        for row, answer in enumerate(answers):
            new[row, : len(answer)] = answer
        return Tensor(np.concatenate([np.repeat(ids.astype(np.int64), count, 0), new], 1))

    def save_pretrained(
        self, directory: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
    ) -> None:
        """Write config.json and safetensors; see `Share4V.save_pretrained`.

        Raises:
            ValueError: safe_serialization is False.
        """
        self.share4v.save_pretrained(directory, max_shard_size, safe_serialization)


def merged_settings(generation_config: GenerationConfig | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a GenerationConfig and keyword arguments, which take precedence, into arguments of `Share4V.generate`.

    Raises:
        ValueError: a field that is set is not supported.
    """
    chosen: dict[str, Any] = {}
    if generation_config is not None:
        unknown = sorted(set(generation_config.to_diff_dict()) - {*SETTINGS, *_IGNORED})
        if unknown:
            raise ValueError(
                f"generation_config sets {', '.join(unknown)}, which is not supported; known: {', '.join(SETTINGS)}"
            )
        stated = {ours: getattr(generation_config, name) for name, ours in SETTINGS.items()}
        chosen = {name: value for name, value in stated.items() if value is not None}
    return {**chosen, **{SETTINGS.get(name, name): value for name, value in settings.items()}}


def _without_notes(others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the caller of an Auto class gave, without those that the class adds."""
    return {name: value for name, value in others.items() if name not in _NOTES}


def _pad_token_id(share4v: Share4V) -> int:
    """Return the id that pads shorter answers."""
    text = share4v.config.text_config
    ends: Sequence[int] = text.eos_token_ids
    return text.pad_token_id if text.pad_token_id is not None else ends[0] if ends else 0
