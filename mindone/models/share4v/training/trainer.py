"""The training loop, with float32 weights and moments; the model may compute in half precision."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ..modeling import Share4V
from .initialization import check_trainable
from .loss import Batch, CaptionLoss
from .precision import LossScale, LossScaling, compute_dtype
from .state import Progress, load_state, save_state
from .step import OptimizerStep

logger = logging.getLogger(__name__)


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
        precision: dtype in which the model computes: "float32", "bfloat16" (the recipe's; on Ascend) or "float16". The
            weights, Adam's moments, the gradients, the norms and the loss are float32 in any case.
        loss_scaling: how float16 keeps small gradients; the other dtypes do not need it.
        gradient_accumulation_steps: batches per step. Their gradients are added up; the loss is the mean over all
            their targets, as in transformers, and as for one large batch.
    """

    schedule: Schedule
    length: int
    trains: Callable[[str], bool]
    max_grad_norm: float = 1.0
    beta2: float = 0.999
    precision: str = "float32"
    loss_scaling: LossScaling = field(default_factory=LossScaling)
    gradient_accumulation_steps: int = 1


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


@dataclass(frozen=True)
class Step:
    """What one step of the optimizer did.

    Attributes:
        number: number of steps until now, this one included.
        loss: mean cross-entropy over the targets.
        grad_norm: global norm of the gradients before clipping.
        learning_rate: the learning rate; that of the next step if this one was skipped.
        loss_scale: what the loss was multiplied by; 1 unless the precision is float16.
        skipped: whether a gradient was not finite, so that no weight, moment or learning rate was changed.
    """

    number: int
    loss: float
    grad_norm: float
    learning_rate: float
    loss_scale: float
    skipped: bool


class Trainer:
    """Trains a model in place with Adam: the recipe's optimizer is AdamW with weight decay 0.

    Args:
        model: the model, with float32 weights.
        stage: what is trained, and how.

    Attributes:
        steps_done: number of steps until now, skipped ones included. After `load`, pass the batches after the first
            `steps_done * stage.gradient_accumulation_steps`.
        loss_scale: the present loss scale.

    Raises:
        ValueError: the stage trains no parameter, or has an option that is not supported; the model was loaded for
            inference, or its weights are not float32.

    Example:
        >>> stage = Stage(Schedule(2e-5, 4875, 147), 2048, train_all, precision="bf16")
        >>> trainer = Trainer(model, stage)  # doctest: +SKIP
        >>> for step in trainer.train(batches):  # doctest: +SKIP
        ...     if step.number % 500 == 0:
        ...         trainer.save(f"checkpoint-{step.number}")
    """

    def __init__(self, model: Share4V, stage: Stage) -> None:
        if model.packed_components():
            raise ValueError(
                f"this model was loaded for inference: its weights are packed for the CPU kernels ({model.dtype}) and "
                "cannot be trained; load it with dtype='float32', language_backend='llama', vision_backend='clip'"
            )
        check_trainable(model.dtype)
        if stage.gradient_accumulation_steps < 1:
            raise ValueError(
                f"gradient_accumulation_steps is {stage.gradient_accumulation_steps}: expected 1 batch per step or more"
            )
        self.model, self.stage = model, stage
        self._dtype = compute_dtype(stage.precision)
        self._weights = ms.ParameterTuple(trained_parameters(model, stage.trains))
        if not self._weights:
            raise ValueError("the stage trains no parameter: its `trains` returned False for every name")
        self._rates = stage.schedule.rates()
        rates = Tensor(np.array(self._rates, np.float32))
        self._optimizer = nn.Adam(self._weights, learning_rate=rates, beta2=stage.beta2)
        self._step: OptimizerStep | None = None
        # Parameters that a step uses, and their addresses after the last one. MindSpore 2.7 logs an error for others.
        self._used, self._addresses = trained_parameters(model, train_all), list[int]()
        self.steps_done = 0
        self.loss_scale = LossScale(stage.loss_scaling if self._dtype == ms.float16 else LossScaling(1.0))

    def train(self, batches: Iterable[Batch]) -> Iterator[Step]:
        """Take the schedule's remaining steps; yield after each, when the model may be used or saved.

        If its weights were replaced meanwhile (`set_data`, loading), the next step is compiled anew, for them.

        Raises:
            ValueError: there are fewer batches than the steps need.
            FloatingPointError: the loss or a gradient is not finite, and no smaller loss scale is left to try; the
                weights are those before this step.
        """
        stream, total, count = iter(batches), self.stage.schedule.steps, self.stage.gradient_accumulation_steps
        self.model.set_train(True)
        try:
            while self.steps_done < total:
                group = list(islice(stream, count))
                if len(group) < count:
                    each = "one batch" if count == 1 else f"{count} batches"
                    raise ValueError(
                        f"there are only {self.steps_done * count + len(group)} batches for the {total} steps of the "
                        f"schedule: pass {each} per step"
                    )
                yield self._take(group)
        finally:
            self.model.set_train(False)

    def _take(self, batches: list[Batch]) -> Step:
        # A compiled step of MindSpore 2.10 goes on with the memory that it had: weights that `set_data` replaced would
        # neither be used nor trained.
        if self._step is None or self._addresses != self._present_addresses():
            cell = CaptionLoss(self.model, batches[0].index.shape[0], self.stage.length, self._dtype)
            self._step = OptimizerStep(cell, self._optimizer, self._weights, self.stage.max_grad_norm, len(batches))
        rate, scale = self._rates[int(self._optimizer.global_step.asnumpy()[0])], self.loss_scale.value
        step, self._step = self._step, None  # after an error, what was added up of its gradients must not be used
        loss, norm = step(batches, scale)
        self._step, self._addresses = step, self._present_addresses()
        self.steps_done += 1
        self.model.forget_values()  # its caches hold values of the old weights, and the caller may evaluate now
        result = Step(self.steps_done, loss, norm, rate, scale, not math.isfinite(norm))
        if self._dtype == ms.float16:
            self.loss_scale.update(not result.skipped)
        if result.skipped:
            self._report(result)
        return result

    def _present_addresses(self) -> list[int]:
        return [parameter.data_ptr() for parameter in self._used]

    def _report(self, step: Step) -> None:
        """Log that a step was skipped; raise an error if the next one would fare no better."""
        if step.loss_scale == self.loss_scale.value:
            raise FloatingPointError(
                f"step {step.number} has gradients that are not finite (loss {step.loss:g}, precision "
                f"{self.stage.precision}, loss scale {step.loss_scale:g}); the weights are those before it. Check "
                "the batch, or lower the learning rate"
            )
        logger.warning(
            "step %d is skipped: gradients are not finite with loss scale %g; the next has %g",
            *(step.number, step.loss_scale, self.loss_scale.value),
        )

    def save(self, directory: str | Path) -> None:
        """Write a checkpoint to continue from: the model in float32, which `from_pretrained` reads, moments and counts.

        The directory appears when everything is written.

        Raises:
            FileExistsError: the directory exists and is not empty.
        """
        progress = Progress(self.steps_done, self.loss_scale.value, self.loss_scale.good_steps, self._settings())
        save_state(directory, self.model, self._optimizer, progress)

    def load(self, directory: str | Path) -> None:
        """Continue from what `save` wrote: the next steps are, to the bit, those that would have followed.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it was written by another stage than this one, or is damaged; the message says what differs.
            CheckpointError: the weights are not those of this model.
        """
        progress = load_state(directory, self.model, self._optimizer, self._settings())
        self._step = None  # its optimizer's moments were replaced too; see _take
        self.steps_done = progress.steps_done
        self.loss_scale.value, self.loss_scale.good_steps = progress.loss_scale, progress.good_steps

    def _settings(self) -> dict[str, Any]:
        """Return the stage's options on which the steps depend, but `trains`: the names of the moments tell it."""
        settings = {item.name: getattr(self.stage, item.name) for item in fields(self.stage) if item.name != "trains"}
        settings |= {"schedule": asdict(self.stage.schedule), "loss_scaling": asdict(self.stage.loss_scaling)}
        return settings | {"precision": str(self._dtype).lower()}


def train(model: Share4V, stage: Stage, batches: Iterable[Batch]) -> Iterator[float]:
    """Train `model` in place; yield the loss of each step. `Trainer` also saves, continues and reports more.

    Raises:
        ValueError, FloatingPointError: as `Trainer` and `Trainer.train`.

    Example:
        >>> stage = Stage(Schedule(peak=1e-3, steps=100, warmup=3), length=96, trains=train_all)  # doctest: +SKIP
        >>> losses = list(train(model, stage, batches))  # doctest: +SKIP
    """
    for step in Trainer(model, stage).train(batches):
        yield step.loss
