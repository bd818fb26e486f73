"""The graphs of helpers/ascend_frontend.py. Every function imports the package anew, because its sources may change."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from mindspore.common.initializer import Zero
from mindspore.nn.utils import no_init_parameters

from .frontend_cases import REAL, Case

CHUNK = 64  # CachedLlama.chunk


def build(case: Case) -> Any:
    """Return the model of a case, on the Ascend row of the table of devices, with weights of 0."""
    from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
    from mindone.models.share4v.nn.device_operators import DEVICES, SWITCH

    DEVICES["CPU"] = DEVICES["Ascend"]  # this process is for nothing else
    os.environ[SWITCH] = case.operators
    if case.real:
        hidden, inner, heads = REAL[case.real]
        text = TextConfig(32000, hidden, inner, 2, heads, max_position_embeddings=4096)
        vision = VisionConfig(1024, 4096, 3, 16, image_size=336, patch_size=14)  # the third layer is not used
    else:
        text = TextConfig(50, 32, 48, 1, case.heads, case.kv_heads, case.head_size, max_position_embeddings=256)
        vision = VisionConfig(2 * case.head_size, 48, 2, 2, image_size=28, patch_size=14)
    config = Share4VConfig(vision, ProjectorConfig("mlp2x_gelu"), text, torch_dtype=case.activations)
    dtype = "float32" if case.graph == "train" else case.dtype
    with no_init_parameters():
        model = Share4V(config, dtype, language_backend="llama", vision_backend="clip")
    for parameter in model.get_parameters():
        if parameter.has_init:  # MindSpore fills them before it compiles, and random numbers take most of the time
            parameter.init_mode.init = Zero()
    return model


def vision(model: Any, case: Case) -> None:
    from mindone.models.share4v.vision.features import ImageEncoder

    ImageEncoder(model.vision_tower, model.mm_projector).compile_and_run(Tensor(pixels(model, case.batch)))


def projector(model: Any, case: Case) -> None:
    size = model.config.vision_config.hidden_size
    features = np.zeros((case.batch, model.config.num_image_tokens, size), np.float32)
    model.mm_projector.compile_and_run(Tensor(features, model.vision_tower.activations))


def prefill(model: Any, case: Case) -> None:
    cached = model.language_model.new_cached(case.batch, 2 * CHUNK)
    positions = np.arange(CHUNK)[None].repeat(case.batch, 0)
    if case.left_padded:
        positions = np.maximum(positions - 7 * np.arange(case.batch)[:, None], -1)
    cached.prefill(embeds(model, case.batch, CHUNK), positions, positions.max(1) + 1, np.full(case.batch, CHUNK - 1))


def decode(model: Any, case: Case) -> None:
    cached = model.language_model.new_cached(case.batch, 2 * CHUNK)
    cached.decode(np.full(case.batch, 5), np.arange(case.batch) * 9 - 1)  # -1: the first sequence is finished


def sequences(model: Any, case: Case) -> None:
    language = model.language_model

    class Sequences(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.language = language
            self.cos, self.sin, self.mask = language.tables(case.batch, 24)

        def construct(self, x: Tensor) -> Tensor:
            return self.language.forward(x, self.cos, self.sin, self.mask)

    Sequences().compile_and_run(embeds(model, case.batch, 24))


def reorder(model: Any, case: Case) -> None:
    """Beam search: every sequence of a cache becomes a copy of another one, here of the same cache."""
    cache = model.language_model.new_cached(4, CHUNK).caches[0]

    class Reorder(nn.Cell):
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.cache = cache

        def construct(self, indices: Tensor) -> Tensor:
            self.cache.copy_sequences(self.cache, indices)
            return indices

    Reorder().compile_and_run(Tensor(np.array([2, 2, 0, 1], np.int32)))


def train(model: Any, case: Case) -> None:
    """The first step of `train`, through its public interface; it cannot return a loss."""
    from mindone.models.share4v import IGNORE_INDEX
    from mindone.models.share4v.training import trainer
    from mindone.models.share4v.training.loss import make_batch

    selections = {
        "all": trainer.train_all,
        "language-and-projector": trainer.train_language_and_projector,
        "upper-vision": trainer.train_upper_vision(0),
    }
    ids = np.array([[1, -200, *range(5, 13)], [1, *range(5, 13), -200]])
    labels = np.where((np.arange(10) > 3) & (ids >= 0), ids, IGNORE_INDEX)
    length = 12 + model.config.num_image_tokens
    batch = make_batch(model, pixels(model, 2), ids, np.ones_like(ids), labels, length)
    stage = trainer.Stage(
        trainer.Schedule(1e-3, 1, 0),
        length,
        selections[case.stage],
        precision=case.dtype,
        gradient_accumulation_steps=case.accumulated,
    )
    next(trainer.train(model, stage, [batch] * case.accumulated))


def pixels(model: Any, count: int) -> np.ndarray:
    size = model.config.vision_config.image_size
    return np.zeros((count, 3, size, size), np.float32)


def embeds(model: Any, batch: int, length: int) -> Tensor:
    shape = batch, length, model.config.text_config.hidden_size
    return Tensor(np.zeros(shape, np.float32), model.language_model.activations)


COMPILERS: dict[str, Callable[[Any, Case], None]] = {
    "vision": vision,
    "projector": projector,
    "prefill": prefill,
    "decode": decode,
    "sequences": sequences,
    "reorder": reorder,
    "train": train,
}
