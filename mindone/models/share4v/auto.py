"""AutoConfig, AutoModel, AutoProcessor: the class that a checkpoint's config.json asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configuration import CONFIG_NAME, read_json
from .hub import resolve
from .registry import Registry

if TYPE_CHECKING:
    from .configuration import Share4VConfig
    from .modeling import Share4V
    from .processing.processor import Share4VProcessor

# LLaVA's form of a checkpoint (transformers' LlavaForConditionalGeneration, or its original code's) is ShareGPT4V too.
_FAMILIES = ("share4v", "llava", "llava_llama")

CONFIGS = Registry("config")
MODELS = Registry("model")
PROCESSORS = Registry("processor")
for _family in _FAMILIES:
    CONFIGS.register(_family, "mindone.models.share4v.configuration:Share4VConfig")
    MODELS.register(_family, "mindone.models.share4v.modeling:Share4V")
    PROCESSORS.register(_family, "mindone.models.share4v.processing.processor:Share4VProcessor")


class AutoConfig:
    """Reads the config of any checkpoint whose model type is known."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        vision_tower: str | Path | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Share4VConfig:
        """Read a checkpoint's config.json, and its vision tower's where that lies apart; no weights are fetched.

        Args:
            name_or_path: "sharegpt4v-tiny", "sharegpt4v-7b", "sharegpt4v-13b", a directory, or owner/name on a hub.
            vision_tower: directory or name; by default what config.json says.
            cache_dir: where downloads are kept; by default SHARE4V_HOME, or ~/.cache/share4v.
            local_files_only: open no connection.

        Raises:
            FileNotFoundError, HubError: nothing was found; the message says what was tried.
            ValueError: the model type is not known, or the config contradicts itself.

        Example:
            >>> from mindone.models.share4v import AutoConfig
            >>> AutoConfig.from_pretrained("sharegpt4v-tiny").model_type
            'share4v'
        """
        from .checkpoint.layout import locate

        config = _class_for(CONFIGS, name_or_path, cache_dir, local_files_only)
        layout = locate(name_or_path, vision_tower, cache_dir, local_files_only, weights=False)
        read: Share4VConfig = config.from_pretrained(layout.directory, layout.vision_directory)
        return read


class AutoModel:
    """Loads the model of any checkpoint whose model type is known."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        vision_tower: str | Path | None = None,
        dtype: str | None = None,
        language_backend: str = "native",
        vision_backend: str = "native",
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        kv_cache_dtype: str | None = None,
    ) -> Share4V:
        """Load a model; arguments and errors are those of `Share4V.from_pretrained`.

        Raises:
            ValueError: besides, the model type is not known; the message names the known ones.

        Example:
            >>> from mindone.models.share4v import AutoModel
            >>> type(AutoModel.from_pretrained("sharegpt4v-tiny")).__name__
            'Share4V'
        """
        model = _class_for(MODELS, name_or_path, cache_dir, local_files_only)
        loaded: Share4V = model.from_pretrained(
            name_or_path,
            vision_tower=vision_tower,
            dtype=dtype,
            language_backend=language_backend,
            vision_backend=vision_backend,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            kv_cache_dtype=kv_cache_dtype,
        )
        return loaded


class AutoProcessor:
    """Loads the processor of any checkpoint whose model type is known."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        vision_tower: str | Path | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Share4VProcessor:
        """Load a processor; arguments and errors are those of `Share4VProcessor.from_pretrained`.

        Raises:
            ValueError: besides, the model type is not known; the message names the known ones.

        Example:
            >>> from mindone.models.share4v import AutoProcessor
            >>> AutoProcessor.from_pretrained("sharegpt4v-tiny").conversation
            'vicuna_v1'
        """
        processor = _class_for(PROCESSORS, name_or_path, cache_dir, local_files_only)
        loaded: Share4VProcessor = processor.from_pretrained(
            name_or_path, vision_tower=vision_tower, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return loaded


def _class_for(
    registry: Registry, name_or_path: str | Path, cache_dir: str | Path | None, local_files_only: bool
) -> Any:
    """Import the class that stands for the model type in config.json."""
    directory = resolve(name_or_path, cache_dir, local_files_only, weights=False)
    model_type = read_json(directory / CONFIG_NAME).get("model_type")
    known = registry.names()
    if model_type not in known:
        raise ValueError(
            f"{directory / CONFIG_NAME} has model_type {model_type!r}, for which there is no {registry.kind} here; "
            f"known: {', '.join(known)}. Is this a ShareGPT4V checkpoint?"
        )
    return registry.resolve(model_type)
