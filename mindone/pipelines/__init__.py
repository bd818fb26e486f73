"""pipeline(): from the name of a task to an object that turns images into text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from mindone.models.share4v.load_options import LoadOptions, explicit_options, option_names
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
    task: Literal["image-to-text"],
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    **options: Unpack[LoadArguments],
) -> ImageToTextPipeline: ...


@overload
def pipeline(
    task: Literal["image-text-to-text"],
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    **options: Unpack[LoadArguments],
) -> ImageTextToTextPipeline: ...


@explicit_options(LoadOptions)
def pipeline(
    task: str,
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    conversation: str | None = None,
    **options: Unpack[LoadArguments],
) -> ImageToTextPipeline | ImageTextToTextPipeline:
    """Make a pipeline with the arguments and results of Hugging Face's pipeline for the same task.

    Args:
        task: "image-to-text" (captions) or "image-text-to-text" (questions and conversations about images).
        model: "sharegpt4v-tiny" (the default, which comes with the package), "sharegpt4v-7b", "sharegpt4v-13b", a
            directory, owner/name on a hub, or a model that is already loaded.
        processor: a processor, or the name or directory of its checkpoint; by default the processor of the checkpoint
            that `model` names. Required if `model` is already loaded.
        conversation: name of the conversation template, by default the processor's.
        options: vision_tower, cache_dir, local_files_only, dtype, language_backend, vision_backend and kv_cache_dtype,
            as described at `mindone.models.share4v.load_options.LoadOptions`; only if `model` is a name or a
            directory.

    Raises:
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

    pipeline_class = TASKS.resolve(task)
    load = LoadOptions(**options)
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
    made: ImageToTextPipeline | ImageTextToTextPipeline = pipeline_class(source, processor, conversation)
    return made


def _check_loaded(options: LoadOptions, processor: object) -> None:
    """Refuse what cannot be combined with a model that is already loaded."""
    fixed = set(option_names(LoadOptions)) - {"cache_dir", "local_files_only"}
    changed = sorted(name for name in fixed if getattr(options, name) != getattr(LoadOptions(), name))
    if changed:
        raise ValueError(f"{', '.join(changed)} cannot change a model that is already loaded: pass the model's name")
    if processor is None:
        raise ValueError(
            "a loaded model comes without its processor: pass processor=Share4VProcessor.from_pretrained(...), or pass "
            "the model's name instead of the model"
        )
