"""pipeline(): from a task's name to something that takes pictures and returns text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from mindone.models.share4v.processing.chat_templates import get_template
from mindone.models.share4v.registry import Registry

if TYPE_CHECKING:
    from mindone.models.share4v import Share4V, Share4VProcessor

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
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    language_backend: str = "native",
    vision_backend: str = "native",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    conversation: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ImageToTextPipeline: ...


@overload
def pipeline(
    task: Literal["image-text-to-text"],
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    language_backend: str = "native",
    vision_backend: str = "native",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    conversation: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ImageTextToTextPipeline: ...


def pipeline(
    task: str,
    model: str | Path | Share4V | None = None,
    processor: str | Path | Share4VProcessor | None = None,
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    language_backend: str = "native",
    vision_backend: str = "native",
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    conversation: str | None = None,
    kv_cache_dtype: str | None = None,
) -> ImageToTextPipeline | ImageTextToTextPipeline:
    """Make a pipeline, with the arguments and results of Hugging Face's of the same task.

    Args:
        task: "image-to-text" (captions) or "image-text-to-text" (questions and conversations about pictures).
        model: "sharegpt4v-tiny" (the default, which comes with the package), "sharegpt4v-7b", "sharegpt4v-13b", a
            directory, owner/name on a hub, or a model that is loaded already.
        processor: by default the one of the checkpoint that `model` names; needed where `model` is loaded already.
        vision_tower, dtype, language_backend, vision_backend, cache_dir, local_files_only: as in
            `Share4V.from_pretrained`; only where `model` is a name or a directory.
        conversation: name of the template, by default the processor's.
        kv_cache_dtype: as in `Share4V.from_pretrained`.

    Raises:
        ValueError: the task or the template is not known, or arguments contradict each other.
        FileNotFoundError, HubError, CheckpointError: as `Share4V.from_pretrained` says.

    Example:
        >>> from mindone.pipelines import pipeline
        >>> captioner = pipeline("image-to-text", model="sharegpt4v-tiny")
        >>> captioner("photo.jpg")
        [{'generated_text': 'In the top left there are four small blue stars. ...'}]
    """
    from mindone.models.share4v import AutoModel, AutoProcessor, Share4VProcessor

    pipeline_class = TASKS.resolve(task)
    if conversation is not None:
        get_template(conversation)  # before gigabytes are loaded
    source = DEFAULT_MODEL if model is None else model
    options = {
        "vision_tower": vision_tower,
        "dtype": dtype,
        "language_backend": None if language_backend == "native" else language_backend,
        "vision_backend": None if vision_backend == "native" else vision_backend,
        "kv_cache_dtype": kv_cache_dtype,
    }
    if not isinstance(source, (str, Path)):
        _check_loaded([name for name, value in options.items() if value is not None], processor)
    if not isinstance(processor, Share4VProcessor):
        name = source if processor is None else processor
        processor = AutoProcessor.from_pretrained(name, vision_tower, cache_dir, local_files_only)
    if isinstance(source, (str, Path)):
        source = AutoModel.from_pretrained(
            source, vision_tower, dtype, language_backend, vision_backend, cache_dir, local_files_only, kv_cache_dtype
        )
    made: ImageToTextPipeline | ImageTextToTextPipeline = pipeline_class(source, processor, conversation)
    return made


def _check_loaded(options: list[str], processor: object) -> None:
    """Refuse what does not go with a model that is loaded already."""
    if options:
        raise ValueError(f"{', '.join(options)} cannot change a model that is loaded: give the model's name instead")
    if processor is None:
        raise ValueError(
            "a loaded model comes without its processor: pass processor=Share4VProcessor.from_pretrained(...), or the "
            "model's name in place of the model"
        )
