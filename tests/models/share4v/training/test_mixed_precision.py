"""float32 weights with products in float16, against PyTorch's autocast and GradScaler, and against float32.

MindSpore's CPU does not compute in bfloat16; nn/test_ascend_frontend.py compiles its training steps.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers.backends import CELLS
from helpers.llava import Reference
from helpers.training import Pair, Texts, batch_of, copy_of, our_name, texts_with
from mindspore import Tensor, nn, ops
from safetensors import safe_open

from mindone.models.share4v import Share4V
from mindone.models.share4v.training.initialization import check_trainable
from mindone.models.share4v.training.loss import Batch, CaptionLoss
from mindone.models.share4v.training.precision import LossScale, LossScaling
from mindone.models.share4v.training.trainer import (
    Schedule,
    Stage,
    Step,
    Trainer,
    train_all,
    train_language_and_projector,
    trained_parameters,
)

LENGTH, STEPS, OVERFLOW, SAVED = 24, 8, 3, 5
# Two batches per step, a scale that grows soon, and clipping at each step.
STAGE = Stage(
    Schedule(2e-3, STEPS, 2),
    LENGTH,
    train_all,
    max_grad_norm=0.5,
    beta2=0.95,
    precision="fp16",
    loss_scaling=LossScaling(1024.0, growth_interval=2),
    gradient_accumulation_steps=2,
)
Weights = dict[str, np.ndarray]


def weights_of(model: Share4V) -> Weights:
    return {name: value.asnumpy().copy() for name, value in model.parameters_and_names()}


def assert_same(ours: Weights, theirs: Weights) -> None:
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, name)


@dataclass
class Run:
    """A run of STAGE in which one step's pictures are too bright for float16.

    Attributes:
        pair: the models before training.
        inputs: texts and pixels of each batch, two for each step.
        steps: what the trainer yielded.
        weights: before the first step, and after each.
        saved: the checkpoint written after SAVED steps.
    """

    pair: Pair
    inputs: list[tuple[Texts, np.ndarray]]
    steps: list[Step]
    weights: list[Weights]
    saved: Path

    def batches(self, model: Share4V) -> list[Batch]:
        return [batch_of(model, texts, pixels, LENGTH) for texts, pixels in self.inputs]


@pytest.fixture(scope="module")
def run(pair_of: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory) -> Run:
    reference, shared = pair_of("small", "cells")
    reference.reseed(8)
    kinds = [(texts_with(reference, 1, 0), reference.images(1)), (texts_with(reference, 0, 1), reference.images(1))]
    inputs = kinds * STEPS
    inputs[2 * OVERFLOW] = kinds[0][0], kinds[0][1] * 1e5
    model, saved = copy_of(shared), tmp_path_factory.mktemp("run") / "checkpoint-5"
    result = Run((reference, shared), inputs, [], [weights_of(model)], saved)
    trainer = Trainer(model, STAGE)
    for step in trainer.train(result.batches(model)):
        result.steps.append(step)
        result.weights.append(weights_of(model))
        if step.number == SAVED:
            trainer.save(saved)
    return result


def test_steps_are_those_of_autocast_and_grad_scaler(run: Run) -> None:
    """Torch gets both batches of a step as one: the same loss, if it is a mean over all targets."""
    reference = Reference(run.pair[0].shape)
    names = {parameter.name for parameter in trained_parameters(run.pair[1], train_all)}
    chosen = [value for name, value in reference.model.named_parameters() if our_name(name) in names]
    assert len(chosen) == len(names)
    optimizer = torch.optim.Adam(chosen, betas=(0.9, 0.95), eps=1e-8)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    wanted, applied = [], 0
    for first, second in zip(run.inputs[::2], run.inputs[1::2], strict=True):
        texts = first[0][0] + second[0][0], first[0][1] + second[0][1]
        scale, rate = scaler.get_scale(), STAGE.schedule.rates()[applied]
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = reference.loss(*texts, np.concatenate((first[1], second[1])))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(chosen, STAGE.max_grad_norm))
        scaler.step(optimizer)
        scaler.update()
        skipped = not math.isfinite(norm)
        assert skipped == (scaler.get_scale() < scale)
        applied += not skipped
        wanted.append(Step(len(wanted) + 1, loss.item(), norm, rate, scale, skipped))
    assert [step.skipped for step in run.steps] == [step.skipped for step in wanted]
    assert [step.loss_scale for step in run.steps] == [step.loss_scale for step in wanted]
    assert [step.learning_rate for step in run.steps] == [step.learning_rate for step in wanted]
    kept = [(ours, theirs) for ours, theirs in zip(run.steps, wanted, strict=True) if not theirs.skipped]
    # Adam moves a weight by the whole rate whichever sign a tiny gradient is rounded to, so norms drift apart.
    for field, first, later in (("loss", 1e-3, 1e-2), ("grad_norm", 1e-3, 5e-2)):
        ours, theirs = ([getattr(step, field) for step in steps] for steps in zip(*kept, strict=True))
        np.testing.assert_allclose(ours[0], theirs[0], rtol=first, err_msg=field)
        np.testing.assert_allclose(ours, theirs, rtol=later, err_msg=field)
    assert all(step.grad_norm > STAGE.max_grad_norm for step, _ in kept)  # so that clipping is compared
    assert kept[-1][0].loss < kept[0][0].loss - 0.5


def test_an_overflow_changes_nothing_but_the_scale(run: Run) -> None:
    assert [step.number for step in run.steps if step.skipped] == [OVERFLOW + 1]
    assert_same(run.weights[OVERFLOW + 1], run.weights[OVERFLOW])
    for before, after in itertools.pairwise(run.weights[: OVERFLOW + 1]):
        assert any((before[name] != after[name]).any() for name in before)
    # Doubled after two good steps; halved by the overflow, which also counts the good steps anew.
    assert [step.loss_scale for step in run.steps] == [1024, 1024, 2048, 2048, 1024, 1024, 2048, 2048]
    assert run.steps[OVERFLOW + 1].learning_rate == run.steps[OVERFLOW].learning_rate


def test_a_run_that_is_continued_is_the_uninterrupted_one(run: Run) -> None:
    with safe_open(run.saved / "model.safetensors", "np") as file:
        assert {str(file.get_slice(name).get_dtype()) for name in file.keys()} == {"F32"}  # noqa: SIM118
    assert_same(weights_of(Share4V.from_pretrained(run.saved, **CELLS)), run.weights[SAVED])
    model = Share4V(run.pair[1].config, **CELLS)  # other weights
    trainer = Trainer(model, STAGE)
    for _ in range(2):  # the second time into a trainer that has taken steps
        trainer.load(run.saved)
        assert trainer.steps_done == SAVED
        assert list(trainer.train(run.batches(model)[2 * SAVED :])) == run.steps[SAVED:]
        assert_same(weights_of(model), run.weights[-1])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"precision": "float32"}, "precision is float32, and float16 in the checkpoint"),
        ({"beta2": 0.9}, "beta2 is 0.9, and 0.95 in the checkpoint"),
        ({"schedule": Schedule(2e-3, 9, 2)}, "schedule is .*'steps': 9"),
        ({"trains": train_language_and_projector}, "trains other weights .* moment1.vision_tower"),
    ],
)
def test_a_checkpoint_of_another_stage_is_refused(run: Run, changes: dict[str, object], message: str) -> None:
    model = copy_of(run.pair[1])
    with pytest.raises(ValueError, match=message):
        Trainer(model, replace(STAGE, **changes)).load(run.saved)
    assert_same(weights_of(model), run.weights[0])


def test_what_is_no_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    trainer = Trainer(copy_of(run.pair[1]), STAGE)
    with pytest.raises(FileNotFoundError, match=r"there is no .*trainer_state.json: give the directory"):
        trainer.load(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"steps_done": 3}))
    with pytest.raises(ValueError, match=r"trainer_state.json is damaged \('loss_scale'\): use an earlier checkpoint"):
        trainer.load(tmp_path)
    with pytest.raises(FileExistsError, match=r"is not empty: give every checkpoint .* such as .*checkpoint-0"):
        trainer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_state.json"]


@pytest.fixture(scope="module")
def curves(run: Run) -> dict[str, tuple[Trainer, list[Step]]]:
    """Ten steps of one batch each, with the default scale of 65536; in float32 nothing is scaled."""
    found = {}
    for precision in ("float32", "float16"):
        model = copy_of(run.pair[1])
        stage = Stage(Schedule(2e-3, 40, 2), LENGTH, train_all, beta2=0.95, precision=precision)
        trainer = Trainer(model, stage)
        found[precision] = trainer, list(itertools.islice(trainer.train(itertools.repeat(run.batches(model)[0])), 10))
    return found


def test_the_losses_follow_float32(curves: dict[str, tuple[Trainer, list[Step]]]) -> None:
    for precision, (_, steps) in curves.items():
        assert [step.skipped for step in steps] == [False] * 10
        assert {step.loss_scale for step in steps} == {1.0 if precision == "float32" else 65536.0}
    full, half = ([step.loss for step in curves[precision][1]] for precision in ("float32", "float16"))
    np.testing.assert_allclose(half, full, rtol=1e-2)
    assert half != full and full[-1] < full[0] - 1


def test_gradients_that_are_never_finite_end_the_run(run: Run, curves: dict[str, tuple[Trainer, list[Step]]]) -> None:
    """In float32 at once; in float16 when the scale cannot be halved any more."""
    for precision, message in (
        ("float32", "step 11 .*loss nan.* loss scale 1"),
        ("float16", "step 27 .* loss scale 1"),
    ):
        trainer, taken = curves[precision][0], list[Step]()
        weight = trainer.model.mm_projector[0].weight
        ops.assign(weight, Tensor(np.full(weight.shape, np.inf, np.float32)))
        before = weights_of(trainer.model)
        with pytest.raises(FloatingPointError, match=message):
            taken.extend(trainer.train(itertools.repeat(run.batches(trainer.model)[0])))
        assert [step.loss_scale for step in taken] == [2.0**power for power in range(16, 0, -1)][: len(taken)]
        assert_same(weights_of(trainer.model), before)


def unmoving(model: Share4V, count: int = 1) -> Trainer:
    """A trainer whose rate is 0, with `count` batches per step."""
    stage = Stage(Schedule(0.0, 4, 0), LENGTH, lambda name: "mm_projector" in name, gradient_accumulation_steps=count)
    return Trainer(model, stage)


def test_weights_that_are_replaced_between_two_steps_are_used(run: Run) -> None:
    """MindSpore 2.10 would go on with the weights of the first step, and train those."""
    model = copy_of(run.pair[1])
    batch = run.batches(model)[0]
    steps = unmoving(model).train(itertools.repeat(batch))
    before = next(steps).loss
    embedding = model.vision_tower.vision_model.embeddings.class_embedding  # not trained
    embedding.set_data(Tensor(-embedding.asnumpy()))
    inputs = batch.pixel_values, batch.input_ids, batch.index, batch.targets
    wanted = CaptionLoss(model, *batch.index.shape)(*inputs).asnumpy()
    assert next(steps).loss == pytest.approx(wanted, rel=1e-5) != before


def test_an_error_in_the_middle_of_a_step_leaves_no_gradients_behind(run: Run) -> None:
    """The second batch of a step has another length than the stage's."""
    model, first = copy_of(run.pair[1]), run.inputs[0]
    trainer, good = unmoving(model, 2), batch_of(model, *first, LENGTH)
    with pytest.raises((RuntimeError, ValueError)):
        next(trainer.train([good, batch_of(model, *first, LENGTH + 4)]))
    steps = trainer.train([good] * 6)
    assert next(steps).grad_norm == next(steps).grad_norm > 0


def test_the_loss_scale_is_that_of_grad_scaler() -> None:
    rng = np.random.default_rng(0)
    for interval in (1, 3):
        ours, theirs = (
            LossScale(LossScaling(64.0, interval)),
            torch.amp.GradScaler("cpu", 64.0, growth_interval=interval),
        )
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.0)
        for finite in rng.random(40) < 0.7:
            assert ours.value == theirs.get_scale()
            theirs.scale(weight.sum() * (1.0 if finite else math.inf)).backward()
            theirs.step(optimizer)
            theirs.update()
            optimizer.zero_grad()
            ours.update(bool(finite))


def test_what_cannot_be_trained_is_refused(run: Run, pair_of: Callable[..., Pair]) -> None:
    model = run.pair[1]

    def refused(message: str, **changes: object) -> None:
        with pytest.raises(ValueError, match=message):
            Trainer(model, replace(STAGE, **changes))

    refused(
        "precision 'bf16' is not supported on a CPU, only on Ascend: .*; use 'float32' or 'float16'", precision="bf16"
    )
    refused("precision 'int8' is not supported: expected one of float32, float16, bfloat16", precision="int8")
    refused("gradient_accumulation_steps is 0: expected 1 batch", gradient_accumulation_steps=0)
    for options, message in (((0.5,), "initial loss scale is 0.5"), ((2.0, 0), "growth_interval is 0")):
        with pytest.raises(ValueError, match=message):
            LossScaling(*options)
    with pytest.raises(ValueError, match=r"there are only 0 batches for the 8 steps .* pass 2 batches per step"):
        next(Trainer(model, STAGE).train([]))
    integers = Share4V(model.config, "int8", language_backend="kernels", vision_backend="kernels")
    with pytest.raises(ValueError, match=r"packed for the CPU kernels \(int8\) .* load it with dtype='float32'"):
        Trainer(integers, STAGE)
    for dtype in ("int4", "bfloat16"):
        with pytest.raises(ValueError, match=f"weights of dtype '{dtype}' cannot be trained: .*precision='bfloat16'"):
            check_trainable(dtype)


class Plain(nn.Cell):
    """A tower of another package, which expects float32."""

    def __init__(self, tower: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.tower = tower

    def construct(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.dtype != ms.float32:
            raise TypeError("pixels are not float32")
        return self.tower(pixel_values)


def test_components_of_other_packages_get_float32(run: Run) -> None:
    model = copy_of(run.pair[1])
    model.insert_child_to_cell("vision_tower", Plain(model.vision_tower))
    batch = run.batches(model)[0]
    inputs = batch.pixel_values, batch.input_ids, batch.index, batch.targets
    half, full = (CaptionLoss(model, *batch.index.shape, dtype)(*inputs) for dtype in (ms.float16, ms.float32))
    np.testing.assert_allclose(half.asnumpy(), full.asnumpy(), rtol=1e-2)
