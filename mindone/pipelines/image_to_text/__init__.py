"""Captions and answers for images: pipelines, chats, and captioning of data sets; names are imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# Public name -> the module that defines it.
_EXPORTS = {
    "CaptioningSettings": "dataset.options",
    "ChatSession": "chat",
    "DownloadOptions": "dataset.readers.downloads",
    "ExecutorOptions": "dataset.options",
    "ImageTextToTextPipeline": "answering",
    "ImageToTextPipeline": "captioning",
    "InputError": "dataset.readers",
    "InputPreview": "dataset.state.records",
    "JobError": "dataset.state.records",
    "JobOptions": "dataset.options",
    "JobStatus": "dataset.report.status",
    "JobPreview": "dataset.state.records",
    "JobSummary": "dataset.state.records",
    "ModelChoice": "dataset.options",
    "PromptPlan": "dataset.prompts.plan",
    "ReaderOptions": "dataset.readers",
    "Record": "dataset.state.records",
    "SkippedGroup": "dataset.state.skipped",
    "TextRules": "dataset.rules.text_rules",
    "TextSpec": "dataset.text_specs",
    "WriterOptions": "dataset.writers",
    "caption_dataset": "dataset.api",
    "job_status": "dataset.report.status",
    "read_config": "dataset.config",
}

if TYPE_CHECKING:
    from .answering import ImageTextToTextPipeline
    from .captioning import ImageToTextPipeline
    from .chat import ChatSession
    from .dataset.api import caption_dataset
    from .dataset.config import read_config
    from .dataset.options import CaptioningSettings, ExecutorOptions, JobOptions, ModelChoice
    from .dataset.prompts.plan import PromptPlan
    from .dataset.readers import InputError, ReaderOptions
    from .dataset.readers.downloads import DownloadOptions
    from .dataset.report.status import JobStatus, job_status
    from .dataset.rules.text_rules import TextRules
    from .dataset.state.records import InputPreview, JobError, JobPreview, JobSummary, Record
    from .dataset.state.skipped import SkippedGroup
    from .dataset.text_specs import TextSpec
    from .dataset.writers import WriterOptions

__all__ = [
    "CaptioningSettings",
    "ChatSession",
    "DownloadOptions",
    "ExecutorOptions",
    "ImageTextToTextPipeline",
    "ImageToTextPipeline",
    "InputError",
    "InputPreview",
    "JobError",
    "JobOptions",
    "JobStatus",
    "JobPreview",
    "JobSummary",
    "ModelChoice",
    "PromptPlan",
    "ReaderOptions",
    "Record",
    "SkippedGroup",
    "TextRules",
    "TextSpec",
    "WriterOptions",
    "caption_dataset",
    "job_status",
    "read_config",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
