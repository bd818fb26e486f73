"""ShareGPT4V on MindSpore: the public names, each imported on first use to keep `import` fast."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_EXPORTS = {
    "AutoConfig": "auto",
    "AutoModel": "auto",
    "AutoProcessor": "auto",
    "Checkpoint": "checkpoint.layout",
    "IGNORE_INDEX": "configuration",
    "IMAGE_TOKEN_INDEX": "configuration",
    "ImageProcessor": "processing.image_processor",
    "KVCache": "generation.kv_cache",
    "LANGUAGE_MODELS": "registry",
    "LoadOptions": "load_options",
    "PROJECTORS": "registry",
    "ProjectorConfig": "configuration",
    "Share4V": "modeling",
    "Share4VConfig": "configuration",
    "Share4VProcessor": "processing.processor",
    "TextConfig": "configuration",
    "Tokenizer": "processing.tokenizer",
    "VISION_TOWERS": "registry",
    "VisionConfig": "configuration",
    "build_projector": "projector.mlp",
    "convert": "conversion",
    "export_gguf": "gguf_export",
    "load_image": "processing.image_loading",
    "register_auto_classes": "integrations.mindone_transformers.registration",
    "resolve": "hub.resolution",
}

if TYPE_CHECKING:
    from .auto import AutoConfig, AutoModel, AutoProcessor
    from .checkpoint import Checkpoint
    from .configuration import (
        IGNORE_INDEX,
        IMAGE_TOKEN_INDEX,
        ProjectorConfig,
        Share4VConfig,
        TextConfig,
        VisionConfig,
    )
    from .conversion import convert
    from .generation.kv_cache import KVCache
    from .gguf_export import export_gguf
    from .hub import resolve
    from .integrations.mindone_transformers.registration import register_auto_classes
    from .load_options import LoadOptions
    from .modeling import Share4V
    from .processing.image_loading import load_image
    from .processing.image_processor import ImageProcessor
    from .processing.processor import Share4VProcessor
    from .processing.tokenizer import Tokenizer
    from .projector.mlp import build_projector
    from .registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoProcessor",
    "Checkpoint",
    "IGNORE_INDEX",
    "IMAGE_TOKEN_INDEX",
    "ImageProcessor",
    "KVCache",
    "LANGUAGE_MODELS",
    "LoadOptions",
    "PROJECTORS",
    "ProjectorConfig",
    "Share4V",
    "Share4VConfig",
    "Share4VProcessor",
    "TextConfig",
    "Tokenizer",
    "VISION_TOWERS",
    "VisionConfig",
    "build_projector",
    "convert",
    "export_gguf",
    "load_image",
    "register_auto_classes",
    "resolve",
]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
