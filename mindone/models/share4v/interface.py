"""Methods of transformers' PreTrainedModel that its users call on a model."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms

from .hugging_face import check_device
from .load_options import dtype_name

if TYPE_CHECKING:
    from typing_extensions import Self

    from .configuration import Share4VConfig


class ModelInterface:
    """Device, type and size of a model, and its upload to a hub."""

    config: Share4VConfig
    dtype: str

    if TYPE_CHECKING:

        def save_pretrained(self, directory: str | Path, max_shard_size: int | str = "5GB") -> None: ...

        def set_train(self, mode: bool = True) -> Any: ...

    @property
    def device(self) -> str:
        """The device on which MindSpore runs, "cpu" or "ascend"."""
        return str(ms.get_context("device_target")).lower()

    def num_parameters(self) -> int:
        """Return the number of weights, including those in packed blocks.

        Example:
            >>> from mindone.models.share4v import Share4V
            >>> Share4V.from_pretrained("sharegpt4v-tiny").num_parameters()
            1804672
        """
        from .checkpoint.weights import expected_shapes

        return sum(prod(shape) for shape in expected_shapes(self.config)[0].values())

    def eval(self) -> Self:
        """Turn training mode off, as loading does, and return the model."""
        self.set_train(False)
        return self

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Return the model itself, if it is on this device and its weights have this type.

        Raises:
            ValueError: it is not, or they have another; the message says how to load it so.
        """
        # `to(torch.float16)` gives the type first.
        if dtype is None and dtype_name(device) in ("float16", "bfloat16", "float32"):
            device, dtype = None, device
        check_device(device)
        wanted = dtype_name(dtype)
        if wanted not in (None, self.dtype):
            raise ValueError(
                f"the weights are {self.dtype}, and their type is chosen when they are read: load the model with "
                f"from_pretrained(..., dtype={wanted!r})"
            )
        return self

    def half(self) -> Self:
        """Return the model itself, if its weights are float16.

        Raises:
            ValueError: they are not; the message says how to load them as float16.
        """
        return self.to(dtype="float16")

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        max_shard_size: int | str = "5GB",
    ) -> str:
        """Upload config and weights to a repository on the Hugging Face hub, which is created if it does not exist.

        Args:
            repo_id: owner/name.
            private: whether a new repository is private; by default as the owner's settings say.
            token: access token; by default HF_TOKEN or the stored one.
            commit_message: of the commit.
            max_shard_size: as in `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            HubError: the hub refused the upload, or cannot be reached.
        """
        from .hub.upload import upload

        return upload(
            repo_id, lambda folder: self.save_pretrained(folder, max_shard_size), private, token, commit_message
        )
