"""ShareGPT4V on MindSpore: the public names, imported on first use so that `import` costs nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoProcessor": "auto",
    "IGNORE_INDEX": "configuration",
    "IMAGE_TOKEN_INDEX": "configuration",
    "LANGUAGE_MODELS": "registry",
    "PROJECTORS": "registry",
    "ProjectorConfig": "configuration",
    "Share4V": "modeling",
    "Share4VConfig": "configuration",
    "Share4VProcessor": "processing.processor",
    "TextConfig": "configuration",
    "VISION_TOWERS": "registry",
    "VisionConfig": "configuration",
    "build_projector": "projector.mlp",
    "register_auto_classes": "integrations.mindone_transformers.registration",
}

if TYPE_CHECKING:
    from .auto import AutoConfig, AutoModel, AutoProcessor
    from .configuration import (
        IGNORE_INDEX,
        IMAGE_TOKEN_INDEX,
        ProjectorConfig,
        Share4VConfig,
        TextConfig,
        VisionConfig,
    )
    from .integrations.mindone_transformers.registration import register_auto_classes
    from .modeling import Share4V
    from .processing.processor import Share4VProcessor
    from .projector.mlp import build_projector
    from .registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoProcessor",
    "IGNORE_INDEX",
    "IMAGE_TOKEN_INDEX",
    "LANGUAGE_MODELS",
    "PROJECTORS",
    "ProjectorConfig",
    "Share4V",
    "Share4VConfig",
    "Share4VProcessor",
    "TextConfig",
    "VISION_TOWERS",
    "VisionConfig",
    "build_projector",
    "register_auto_classes",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
