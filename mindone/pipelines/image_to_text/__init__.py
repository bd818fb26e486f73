"""Captions and answers about pictures: the pipelines, data sets, and their commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dataset.api import caption_dataset

__all__ = ["caption_dataset"]


def __getattr__(name: str) -> object:
    if name == "caption_dataset":  # on first use, so that a pipeline alone brings nothing of it
        from .dataset.api import caption_dataset

        return caption_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
