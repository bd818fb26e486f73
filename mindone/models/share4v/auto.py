"""AutoConfig, AutoModel, AutoProcessor: Hugging Face's names for loading a checkpoint of any supported model type."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .hugging_face import FILES
from .load_options import CheckpointOptions, LoadOptions, checked_options, explicit_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .configuration import Share4VConfig
    from .load_options import CheckpointArguments, LoadArguments
    from .modeling import Share4V
    from .processing.processor import Share4VProcessor


class AutoConfig:
    """Reads the config of a checkpoint."""

    @classmethod
    @explicit_options(CheckpointOptions)
    def from_pretrained(cls, name_or_path: str | Path, **options: Unpack[CheckpointArguments]) -> Share4VConfig:
        """Read a checkpoint's config.json, and that of its vision tower if it is separate; weights are not downloaded.

        Args:
            name_or_path: "sharegpt4v-tiny", "sharegpt4v-7b", "sharegpt4v-13b", a directory, or owner/name on a hub.
            options: the fields of `CheckpointOptions`, which describes them.

        Raises:
            FileNotFoundError, HubError: the checkpoint was not found; the message lists what was tried.
            ValueError: the model type is unknown, or the config contradicts itself.

        Example:
            >>> from mindone.models.share4v import AutoConfig
            >>> AutoConfig.from_pretrained("sharegpt4v-tiny").model_type
            'share4v'
        """
        from .checkpoint import Checkpoint

        load = CheckpointOptions(**checked_options(FILES, options, CheckpointOptions))
        return Checkpoint.open(name_or_path, load, weights=False).config


class AutoModel:
    """Loads the model of a checkpoint."""

    @classmethod
    @explicit_options(LoadOptions)
    def from_pretrained(cls, name_or_path: str | Path, **options: Unpack[LoadArguments]) -> Share4V:
        """Load a model; arguments and errors are those of `Share4V.from_pretrained`.

        Example:
            >>> from mindone.models.share4v import AutoModel
            >>> type(AutoModel.from_pretrained("sharegpt4v-tiny")).__name__
            'Share4V'
        """
        from .modeling import Share4V

        return Share4V.from_pretrained(name_or_path, **options)


class AutoProcessor:
    """Loads the processor of a checkpoint."""

    @classmethod
    @explicit_options(CheckpointOptions)
    def from_pretrained(cls, name_or_path: str | Path, **options: Unpack[CheckpointArguments]) -> Share4VProcessor:
        """Load a processor; arguments and errors are those of `Share4VProcessor.from_pretrained`.

        Example:
            >>> from mindone.models.share4v import AutoProcessor
            >>> AutoProcessor.from_pretrained("sharegpt4v-tiny").conversation
            'vicuna_v1'
        """
        from .processing.processor import Share4VProcessor

        return Share4VProcessor.from_pretrained(name_or_path, **options)
