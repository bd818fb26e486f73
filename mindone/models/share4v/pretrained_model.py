"""Methods of transformers' PreTrainedModel that its users call on a model."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mindspore as ms

from .hugging_face import check_device
from .load_options import dtype_name
from .quantization import PRECISIONS

if TYPE_CHECKING:
    from typing_extensions import Self

    from .configuration import Share4VConfig


class ModelInterface:
    """Device, type and size of a model, and its upload to a hub."""

    config: Share4VConfig
    dtype: str

    if TYPE_CHECKING:

        def save_pretrained(
            self, directory: str | Path, max_shard_size: int | str = "5GB", safe_serialization: bool = True
        ) -> None: ...

        def _cast(self, dtype: str) -> None: ...

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

    def train(self, mode: bool = True) -> Self:
        """Turn training mode on or off, and return the model."""
        self.set_train(mode)
        return self

    def cpu(self) -> Self:
        """Return the model, if MindSpore runs on the CPU; see `to`."""
        return self.to("cpu")

    def cuda(self) -> Self:
        """Refuse, because MindSpore runs on a CPU or an Ascend; the message says how to choose; see `to`."""
        return self.to("cuda")

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Convert the weights to another floating-point type, in place, and return the model.

        Loading with dtype= is faster and takes less memory. Caches (`KVCache`) and optimizers that were made before
        belong to the old weights: make them again.

        Args:
            device: the one that MindSpore uses, or None.
            dtype: "float32", "float16", or, on an Ascend or the CPU kernels, "bfloat16"; types of MindSpore, NumPy and
                PyTorch mean their names.

        Raises:
            ValueError: the device is another one, the weights are integers, or the device does not compute in `dtype`.
            CheckpointError: a weight is too large for `dtype`; the model is unchanged.

        Example:
            >>> from mindone.models.share4v import Share4V
            >>> Share4V.from_pretrained("sharegpt4v-tiny").to("float16").dtype
            'float16'
        """
        # `to(torch.float16)` gives the type first.
        if dtype is None and dtype_name(device) in PRECISIONS:
            device, dtype = None, device
        check_device(device)
        wanted = dtype_name(dtype)
        if wanted in (None, self.dtype):
            return self
        if "int" in f"{wanted} {self.dtype}":
            raise ValueError(
                f"weights of {self.dtype} are not converted to {wanted}, because integers are made when weights are "
                f"read: load the original checkpoint with from_pretrained(..., dtype={wanted!r})"
            )
        self._cast(wanted)
        return self

    def half(self) -> Self:
        """Convert the weights to float16; see `to`."""
        return self.to(dtype="float16")

    def bfloat16(self) -> Self:
        """Convert the weights to bfloat16, on an Ascend or the CPU kernels; see `to`."""
        return self.to(dtype="bfloat16")

    def float(self) -> Self:
        """Convert the weights to float32; see `to`."""
        return self.to(dtype="float32")

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
