"""Each layer against PyTorch's, forward and, where training needs it, backward."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

from mindone.models.share4v.nn import layers

RNG = np.random.default_rng(0)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def assert_equal(ours: nn.Cell, theirs: Callable, x: np.ndarray) -> None:
    """Compare values and the gradient of their weighted sum."""
    weights = normal(*x.shape[:-1], theirs(torch.tensor(x)).shape[-1])
    theirs_in = torch.tensor(x, requires_grad=True)
    wanted = theirs(theirs_in)
    (wanted * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(ours(Tensor(x)).asnumpy(), wanted.detach().numpy(), **CLOSE)
    gradient = ms.grad(lambda value: (ours(value) * Tensor(weights)).sum())(Tensor(x))
    np.testing.assert_allclose(gradient.asnumpy(), theirs_in.grad.numpy(), rtol=1e-4, atol=1e-4)


def copy(ours: nn.Cell, theirs: torch.nn.Module) -> None:
    """Give both the same random weights; the parameters' names and shapes must agree."""
    parameters = dict(theirs.named_parameters())
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        name: value.shape for name, value in ours.parameters_and_names()
    }
    for name, parameter in ours.parameters_and_names():
        value = normal(*parameter.shape)
        parameter.set_data(Tensor(value))
        parameters[name].data = torch.tensor(value)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    ours, theirs = layers.Linear(5, 7, bias), torch.nn.Linear(5, 7, bias)
    copy(ours, theirs)
    assert_equal(ours, theirs, normal(2, 3, 5))


def test_embedding() -> None:
    ours, theirs = layers.Embedding(11, 6, ms.float32, ms.float32), torch.nn.Embedding(11, 6)
    copy(ours, theirs)
    ids = np.array([[0, 10, 3], [3, 3, 1]])
    np.testing.assert_array_equal(ours(Tensor(ids)).asnumpy(), theirs(torch.tensor(ids)).detach().numpy())


@pytest.mark.parametrize("eps", [1e-5, 1e-2])
def test_layer_norm(eps: float) -> None:
    ours, theirs = layers.LayerNorm(8, eps), torch.nn.LayerNorm(8, eps)
    copy(ours, theirs)
    assert_equal(ours, theirs, 0.1 * normal(2, 3, 8) + 4)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm(eps: float) -> None:
    ours, theirs = layers.RMSNorm(8, eps), torch.nn.RMSNorm(8, eps)
    copy(ours, theirs)
    assert_equal(ours, theirs, 0.1 * normal(2, 3, 8))


ACTIVATIONS = {
    "gelu": torch.nn.GELU(approximate="none"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@pytest.mark.parametrize("name", layers.ACTIVATIONS)
def test_activation(name: str) -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32)[None]
    assert_equal(layers.ACTIVATIONS[name](), ACTIVATIONS[name], x)


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-5, 5, 101, dtype=np.float32)
    ours = layers.GELU()(Tensor(x)).asnumpy()
    exact = torch.nn.functional.gelu(torch.tensor(x)).numpy()
    approximate = torch.nn.functional.gelu(torch.tensor(x), approximate="tanh").numpy()
    assert np.abs(ours - exact).max() < 1e-6 < 1e-4 < np.abs(exact - approximate).max()


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (5, 1)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention(heads: int, kv_heads: int, is_masked: bool) -> None:
    query, key, value = normal(2, heads, 3, 8), normal(2, kv_heads, 7, 8), normal(2, kv_heads, 7, 8)
    hidden = np.zeros((2, 1, 3, 7), np.float32)
    hidden[0, 0, 0, 2:] = hidden[1, 0, 2, :5] = 1
    mask = Tensor(hidden * layers.MASKED) if is_masked else None
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.tensor, (query, key, value)),
        attn_mask=torch.tensor(hidden) == 0 if is_masked else None,
        enable_gqa=True,
    )
    ours = layers.attention(Tensor(query), Tensor(key), Tensor(value), mask).asnumpy()
    np.testing.assert_allclose(ours, wanted.transpose(1, 2).flatten(2).numpy(), **CLOSE)


def test_attention_with_every_key_masked_is_finite() -> None:
    mask = Tensor(np.full((1, 1, 2, 4), layers.MASKED, np.float32))
    mixed = layers.attention(Tensor(normal(1, 2, 2, 8)), Tensor(normal(1, 2, 4, 8)), Tensor(normal(1, 2, 4, 8)), mask)
    assert np.isfinite(mixed.asnumpy()).all()


def test_weights_of_another_type_are_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="dtype 'int8' is not supported: expected one of float32, float16, bfloat16"):
        layers.weight_dtype("int8")
