"""pipeline(): from the name of a task to an object that turns images into text."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mindone.models.share4v.hugging_face import MODEL, PIPELINE
from mindone.models.share4v.load_options import LoadOptions, checked_options, explicit_options, option_names
from mindone.models.share4v.processing.chat_templates import get_template
from mindone.models.share4v.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.load_options import LoadArguments

    from .image_to_text.answering import ImageTextToTextPipeline
    from .image_to_text.captioning import ImageToTextPipeline

__all__ = ["TASKS", "pipeline"]

DEFAULT_MODEL = "sharegpt4v-tiny"

TASKS = Registry("task")
TASKS.register("image-to-text", "mindone.pipelines.image_to_text.captioning:ImageToTextPipeline")
TASKS.register("image-text-to-text", "mindone.pipelines.image_to_text.answering:ImageTextToTextPipeline")


@overload
def pipeline(
    task: Literal["image-to-text"] = "image-to-text",
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    *,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    return_full_text: bool | None = None,
    max_image_pixels: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[LoadArguments],
) -> ImageToTextPipeline: ...


@overload
def pipeline(
    task: Literal["image-text-to-text"],
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    *,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    return_full_text: bool | None = None,
    max_image_pixels: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[LoadArguments],
) -> ImageTextToTextPipeline: ...


@explicit_options(LoadOptions)
def pipeline(
    task: str = "image-to-text",
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    *,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    timeout: float | None = None,
    return_full_text: bool | None = None,
    max_image_pixels: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **options: Unpack[LoadArguments],
) -> ImageToTextPipeline | ImageTextToTextPipeline:
    """Make a pipeline with the arguments and results of Hugging Face's pipeline for the same task.

    Args:
        task: "image-to-text" (captions, the default) or "image-text-to-text" (questions and conversations about
            images).
        model: "sharegpt4v-tiny" (the default, which comes with the package), "sharegpt4v-7b", "sharegpt4v-13b", a
            directory, owner/name on a hub, or a model that is already loaded.
        processor: a processor, or the name or directory of its checkpoint; by default the processor of the checkpoint
            that `model` names. Required if `model` is already loaded.
        conversation: name of the conversation template, by default the processor's.
        batch_size, max_new_tokens, generate_kwargs, timeout, return_full_text, max_image_pixels: defaults of the
            pipeline's calls.
        model_kwargs: more options, in a dict.
        options: the fields of `mindone.models.share4v.load_options.LoadOptions`; only if `model` is a name or a
            directory. Other arguments of Hugging Face's pipeline() are accepted or refused as
            `mindone.models.share4v.hugging_face.ARGUMENTS` says.

    Raises:
        TypeError: an argument is unknown; the message has the closest one.
        ValueError: the task or the template is unknown, or arguments contradict each other.
        FileNotFoundError, HubError, CheckpointError: as in `Share4V.from_pretrained`.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> captioner = pipeline("image-to-text", model="sharegpt4v-tiny")
        >>> captioner("photo.jpg")
        [{'generated_text': 'In the top left there are four small blue stars. ...'}]
    """
    from mindone.models.share4v import Share4V, Share4VProcessor
    from mindone.models.share4v.backends import open_checkpoint
    from mindone.models.share4v.checkpoint import Checkpoint

    from .image_to_text.settings import CallDefaults

    pipeline_class = TASKS.resolve(task)
    load = LoadOptions(**_load_arguments(options, model_kwargs))
    defaults = CallDefaults(batch_size, max_new_tokens, generate_kwargs, timeout, return_full_text, max_image_pixels)
    if conversation is not None:
        get_template(conversation)  # raises before anything is downloaded
    source = DEFAULT_MODEL if model is None else model
    if isinstance(source, (str, Path)):
        checkpoint = open_checkpoint(source, load)
        if processor is None:
            processor = Share4VProcessor.from_checkpoint(checkpoint)
        source = Share4V.from_checkpoint(checkpoint, load)
    else:
        _check_loaded(load, processor)
    if isinstance(processor, (str, Path)):
        processor = Share4VProcessor.from_checkpoint(Checkpoint.open(processor, load, weights=False))
    made: ImageToTextPipeline | ImageTextToTextPipeline = pipeline_class(source, processor, conversation, defaults)
    return made


def _load_arguments(options: Mapping[str, Any], model_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the load options of a call, also those in model_kwargs."""
    from mindone.models.share4v.generation.arguments import SETTING_NAMES

    settings = [name for name in options if name in SETTING_NAMES]
    if settings:
        raise TypeError(f"{settings[0]} is a setting of generate: pass generate_kwargs={{{settings[0]!r}: ...}}")
    others = [name for name in signature(pipeline).parameters if name not in option_names(LoadOptions)]
    own = checked_options(PIPELINE, options, LoadOptions, others)
    more = checked_options(MODEL, model_kwargs or {}, LoadOptions)
    twice = sorted(own.keys() & more.keys())
    if twice:
        raise ValueError(f"{twice[0]} is given twice, as an argument and in model_kwargs: remove one of them")
    return {**own, **more}


def _check_loaded(options: LoadOptions, processor: object) -> None:
    """Refuse what cannot be combined with a model that is already loaded."""
    fixed = set(option_names(LoadOptions)) - {"cache_dir", "local_files_only", "token"}
    changed = sorted(name for name in fixed if getattr(options, name) != getattr(LoadOptions(), name))
    if changed:
        raise ValueError(f"{', '.join(changed)} cannot change a model that is already loaded: pass the model's name")
    if processor is None:
        raise ValueError(
            "a loaded model comes without its processor: pass processor=Share4VProcessor.from_pretrained(...), or pass "
            "the model's name instead of the model"
        )
