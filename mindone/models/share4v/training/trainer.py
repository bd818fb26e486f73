"""The training loop: one compiled step computes the loss, clips the gradients and applies Adam."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..modeling import Share4V
from .initialization import check_trainable
from .loss import Batch, CaptionLoss


@dataclass(frozen=True)
class Schedule:
    """The recipe's learning rate schedule: linear warm-up, then cosine decay to zero.

    Attributes:
        peak: the maximum learning rate.
        steps: total number of steps.
        warmup: number of warm-up steps among them; 3 % in the recipe.
    """

    peak: float
    steps: int
    warmup: int

    def rates(self) -> list[float]:
        """Return the learning rate of every step."""
        rest = max(1, self.steps - self.warmup)
        rising = [self.peak * (step + 1) / self.warmup for step in range(min(self.warmup, self.steps))]
        falling = [self.peak * 0.5 * (1 + math.cos(math.pi * step / rest)) for step in range(self.steps - len(rising))]
        return rising + falling


@dataclass(frozen=True)
class Stage:
    """Settings of one training stage.

    Attributes:
        schedule: learning rates and number of steps.
        length: tokens per sequence, with padding and image patches; all batches then share one compiled step.
        trains: returns whether the parameter of a name is trained.
        max_grad_norm: gradients with a larger norm are scaled down to it.
        beta2: decay rate of Adam's second moment; shorter runs need a smaller value.
    """

    schedule: Schedule
    length: int
    trains: Callable[[str], bool]
    max_grad_norm: float = 1.0
    beta2: float = 0.999


def train_all(name: str) -> bool:
    """Train all weights, for a model trained from scratch."""
    return True


def train_language_and_projector(name: str) -> bool:
    """Train the language model and the projector: stage 2 of the recipe (ShareGPT4V, Chen et al. 2023, section 4.2)."""
    return name.startswith(("language_model.", "mm_projector."))


def train_upper_vision(first_layer: int) -> Callable[[str], bool]:
    """Return a selection for stage 1 of the recipe: also the vision tower's layers from `first_layer` (12 of 24)."""

    def trains(name: str) -> bool:
        layer = name.partition(".encoder.layers.")[2].partition(".")[0]
        return train_language_and_projector(name) or (layer.isdigit() and int(layer) >= first_layer)

    return trains


def trained_parameters(model: Share4V, trains: Callable[[str], bool]) -> list[Parameter]:
    """Return the parameters that `trains` selects by name and that affect the loss.

    The tower's layers after the selected hidden state and its final norm do not affect it.
    """
    selected = []
    last = model.config.hidden_state_index
    for name, parameter in model.parameters_and_names():
        layer = name.partition(".encoder.layers.")[2].partition(".")[0]
        unused = "post_layernorm" in name or (layer.isdigit() and int(layer) >= last)
        if trains(name) and not unused:
            selected.append(parameter)
    return selected


def train(model: Share4V, stage: Stage, batches: Iterable[Batch]) -> Iterator[float]:
    """Train `model` in place; yield the loss of each step.

    The recipe's optimizer is AdamW with weight decay 0, which is Adam. Weights and moments are float32.

    Raises:
        ValueError: there are fewer batches than steps, `stage.trains` selects no parameter, the model was loaded for
            inference, or its dtype is not float32.

    Example:
        >>> stage = Stage(Schedule(peak=1e-3, steps=100, warmup=3), length=96, trains=train_all)  # doctest: +SKIP
        >>> losses = list(train(model, stage, batches))  # doctest: +SKIP
    """
    if model.packed_components():
        raise ValueError(
            "this model was loaded for inference: the weights of its CPU kernels cannot be trained; load it with "
            "language_backend='llama', vision_backend='clip' to train it"
        )
    check_trainable(model.dtype)
    weights = ms.ParameterTuple(trained_parameters(model, stage.trains))
    if not weights:
        raise ValueError("the stage trains no parameter: its `trains` returned False for every name")
    rates = stage.schedule.rates()
    optimizer = nn.Adam(weights, learning_rate=Tensor(np.array(rates, np.float32)), beta2=stage.beta2)
    step = None
    model.set_train(True)
    try:
        stream = iter(batches)
        for number in range(stage.schedule.steps):
            batch = next(stream, None)
            if batch is None:
                raise ValueError(
                    f"there are only {number} batches for the {stage.schedule.steps} steps of the schedule: "
                    "pass one batch per step"
                )
            if step is None:
                step = _compile_step(
                    CaptionLoss(model, batch.index.shape[0], stage.length), optimizer, weights, stage.max_grad_norm
                )
            loss = float(step(batch.pixel_values, batch.input_ids, batch.index, batch.targets).asnumpy())
            model.forget_values()  # its caches hold values of the old weights, and the caller may evaluate now
            yield loss
    finally:
        model.set_train(False)


def clip_by_norm(gradients: tuple[Tensor, ...], limit: float) -> tuple[Tensor, ...]:
    """Scale all gradients by one factor so that their global norm is at most `limit` (Pascanu et al. 2013).

    ops.clip_by_global_norm does the same, but takes 15 % of a training step on a CPU.
    """
    total = 0.0
    for gradient in gradients:
        total = total + ops.square(gradient).sum()
    scale = limit / ops.maximum(ops.sqrt(total), limit)
    return tuple([gradient * scale for gradient in gradients])


def _compile_step(
    loss: CaptionLoss, optimizer: nn.Optimizer, weights: ms.ParameterTuple, norm: float
) -> Callable[..., Tensor]:
    gradients = ms.value_and_grad(loss, None, weights)

    @ms.jit
    def step(pixel_values: Tensor, input_ids: Tensor, index: Tensor, targets: Tensor) -> Tensor:
        value, grads = gradients(pixel_values, input_ids, index, targets)
        return ops.depend(value, optimizer(clip_by_norm(grads, norm)))

    return step
