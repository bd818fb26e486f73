"""Share4VPretrainedConfig: a Share4VConfig as the config class that transformers' Auto classes need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig

from ...configuration import Share4VConfig

# Arguments that the Auto classes add for their own use.
_NOTES = ("_from_auto", "_from_pipeline", "attn_implementation")


class Share4VPretrainedConfig(PretrainedConfig):
    """A PretrainedConfig that wraps a Share4VConfig; reads every published format of config.json.

    Args:
        share4v: the config of the model; attributes set on this object do not change it.
        common: arguments of every PretrainedConfig, such as name_or_path.

    Attributes:
        share4v: see above.
        vision_config, text_config: the same values as CLIPVisionConfig and LlamaConfig.
        image_token_id: the id that stands for one image in input_ids.

    Example:
        >>> from mindone.models.share4v import Share4VConfig
        >>> from mindone.models.share4v.integrations.mindone_transformers.configuration import Share4VPretrainedConfig
        >>> Share4VPretrainedConfig(Share4VConfig()).text_config.hidden_size
        4096
    """

    model_type = "share4v"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": CLIPVisionConfig, "text_config": LlamaConfig}

    def __init__(self, share4v: Share4VConfig | None = None, **common: Any) -> None:
        self.share4v = Share4VConfig() if share4v is None else share4v
        text = _plain(self.share4v.text_config)
        self.vision_config = CLIPVisionConfig(**_plain(self.share4v.vision_config))
        self.text_config = LlamaConfig(**text)
        self.image_token_id = self.share4v.image_token_id
        ids = {name: text[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings")}
        super().__init__(**{"architectures": ["Share4VForConditionalGeneration"], **ids, **common})

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Build the config from a parsed config.json; if name_or_path is a directory, read a separate vision tower too.

        Unlike in other configs, keyword arguments do not override fields; they are returned for loading the model.

        Raises:
            ValueError: the format is unknown, or fields contradict each other.
        """
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        for name in _NOTES:
            kwargs.pop(name, None)
        common = {name: kwargs.pop(name) for name in ("name_or_path", "_commit_hash") if name in kwargs}
        data = {key: value for key, value in config_dict.items() if key not in ("_commit_hash", *_NOTES)}
        directory = str(common.get("name_or_path", ""))
        tower = kwargs.get("vision_tower")
        if directory and Path(directory).is_dir():
            own = Share4VConfig.from_pretrained(directory, tower if tower and Path(tower).is_dir() else None)
        else:
            own = Share4VConfig.from_dict(data)
        config = cls(own, **common)
        return (config, kwargs) if wants_unused else config

    def to_dict(self) -> dict[str, Any]:
        """Return the result of `Share4VConfig.to_dict`, which is the content of a saved config.json."""
        return self.share4v.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all fields: a checkpoint must not depend on default values."""
        return self.to_dict()


def _plain(section: Any) -> dict[str, Any]:
    """Convert a part of Share4VConfig to the arguments of transformers' config for that part."""
    fields = asdict(section)
    if isinstance(fields.get("eos_token_id"), tuple):
        fields["eos_token_id"] = list(fields["eos_token_id"])
    return fields
