"""What protocols.py promises, checked for any registered component."""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor

from mindone.models.share4v import ProjectorConfig, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.checkpoint.packed import pack
from mindone.models.share4v.checkpoint.weights import expected_shapes
from mindone.models.share4v.kernels.component import WeightHolder, weight_holders
from mindone.models.share4v.registry import PROJECTORS, VISION_TOWERS, Registry

CONFIG = Share4VConfig(
    vision_config=VisionConfig(32, 48, 2, 4, image_size=28, patch_size=14),
    projector_config=ProjectorConfig("linear"),
    text_config=TextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    ),
)


def check_component(registry: Registry, name: str) -> None:
    """Build a component and hold it to its protocol."""
    if name == "mlp":
        config = Share4VConfig(CONFIG.vision_config, ProjectorConfig("mlp3x_gelu"), CONFIG.text_config)
    else:
        config = CONFIG
    component = registry.resolve(name)(config, "float32")
    for holder in weight_holders(component):
        fill(holder)
    features = Tensor(np.random.default_rng(0).standard_normal((2, config.num_image_tokens, 32)).astype(np.float32))
    if registry is VISION_TOWERS:
        assert component(Tensor(np.ones((2, 3, 28, 28), np.float32))).shape == (2, config.num_image_tokens, 32)
    elif registry is PROJECTORS:
        assert component(features).shape == (2, config.num_image_tokens, 32)
    else:
        _check_language_model(component)


def fill(component: WeightHolder) -> None:
    """Give a component that keeps its weights itself random ones, as loading a checkpoint does."""
    shapes, rng = expected_shapes(CONFIG)[0], np.random.default_rng(1)
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for plan in component.plans:
        component.put(plan.name, pack(plan, weights.__getitem__))
    for name in component.plain:
        component.put(name, weights[name])


def _check_language_model(model: Any) -> None:
    ids = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])
    embeds = model.embed(Tensor(ids.astype(np.int32)))
    assert embeds.shape == (2, 4, 32) and embeds.dtype == model.activations
    logits = model(embeds, np.array([4, 4])).asnumpy()
    assert logits.shape == (2, 4, 50) and logits.dtype == np.float32
    cached, positions = model.new_cached(2, 8), np.array([[0, 1, 2], [0, 1, -1]])
    first = cached.prefill(embeds[:, :3], positions, np.array([3, 2]), np.array([2, 1])).asnumpy()
    np.testing.assert_allclose(first, np.stack([logits[0, 2], logits[1, 1]]), atol=1e-5)
    second = cached.decode(np.array([ids[0, 3], ids[1, 2]]), np.array([3, 2])).asnumpy()
    np.testing.assert_allclose(second, np.stack([logits[0, 3], logits[1, 2]]), atol=1e-5)
    other = model.new_cached(2, 8)
    other.copy_sequences(cached, np.array([1, 1]))
    np.testing.assert_allclose(other.decode(ids[::-1, 3], np.array([-1, 3])).asnumpy()[1], model(
        model.embed(Tensor(np.array([[5, 9, 2, 1]], np.int32)))).asnumpy()[0, 3], atol=1e-5)  # fmt: skip
