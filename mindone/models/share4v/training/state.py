"""Checkpoints of a training run: the model, Adam's moments and what else the next step depends on."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mindspore import Parameter, Tensor, nn

from ..checkpoint import Checkpoint
from ..checkpoint.atomic import STAGING
from ..checkpoint.errors import listing
from ..checkpoint.formats.safetensors_file import open_safetensors
from ..checkpoint.loading import load_weights
from ..checkpoint.safetensors_writer import write_aligned
from ..modeling import Share4V

OPTIMIZER, PROGRESS = "optimizer.safetensors", "trainer_state.json"
# Adam's values that are not one for each weight.
SCALARS = ("beta1_power", "beta2_power", "global_step")


@dataclass(frozen=True)
class Progress:
    """How far a run is; written as JSON.

    Attributes:
        steps_done: number of steps, skipped ones included.
        loss_scale: the loss scale of the next step.
        good_steps: number of steps since the loss scale was changed.
        settings: options of the stage on which the next steps depend.
    """

    steps_done: int
    loss_scale: float
    good_steps: int
    settings: Mapping[str, Any]


def save_state(directory: str | Path, model: Share4V, optimizer: nn.Adam, progress: Progress) -> None:
    """Write everything beside `directory`, and rename it when it is complete.

    Raises:
        FileExistsError: the directory exists and is not empty.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(
            f"{directory} is not empty: give every checkpoint a directory of its own, such as "
            f"{directory.with_name(f'checkpoint-{progress.steps_done}')}"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=directory.parent))
    try:
        new = staging / directory.name
        model.save_pretrained(new)
        values = _values(optimizer)
        sizes = [(name, tuple(value.shape), str(value.dtype).lower()) for name, value in values.items()]
        write_aligned(sizes, (value.asnumpy() for value in values.values()), new / OPTIMIZER)
        (new / PROGRESS).write_text(json.dumps(asdict(progress), indent=2) + "\n", encoding="utf-8")
        new.replace(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def load_state(directory: str | Path, model: Share4V, optimizer: nn.Adam, settings: Mapping[str, Any]) -> Progress:
    """Fill the model and the optimizer from what `save_state` wrote, once all of it is known to fit.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: `settings` are not those of the checkpoint, or a file is damaged.
        CheckpointError: the checkpoint is of another model, or of other trained weights.
    """
    directory = Path(directory)
    progress = _read_progress(directory / PROGRESS)
    differing = [
        f"{name} is {settings.get(name)}, and {progress.settings.get(name)} in the checkpoint"
        for name in sorted({*settings, *progress.settings})
        if settings.get(name) != progress.settings.get(name)
    ]
    if differing:
        raise ValueError(
            f"{directory} was written by another stage: {'; '.join(differing)}. Give the stage these options; to train "
            "the same weights in another way, load the model from there and begin a new run"
        )
    stored = {tensor.name: tensor for tensor in open_safetensors(directory / OPTIMIZER)}
    values = _values(optimizer)
    wrong = sorted(
        name
        for name in {*values, *stored}
        if name not in values or name not in stored or tuple(values[name].shape) != stored[name].shape
    )
    if wrong:
        raise ValueError(
            f"{directory} does not fit: the stage trains other weights than that run did, or the model is another one; "
            f"different are {listing(wrong)}"
        )
    load_weights(model, Checkpoint.open(directory))
    for name, value in values.items():
        value.set_data(Tensor(stored[name].read()))
        stored[name].release()
    model.reset_caches()
    return progress


def _values(optimizer: nn.Adam) -> dict[str, Parameter]:
    """Return the optimizer's moments and counts by name, counts last."""
    pairs = zip(optimizer.parameters, optimizer.moment1, optimizer.moment2, strict=True)
    values = {
        f"{kind}.{weight.name}": moment
        for weight, *moments in pairs
        for kind, moment in zip(("moment1", "moment2"), moments, strict=True)
    }
    return values | {name: getattr(optimizer, name) for name in SCALARS}


def _read_progress(path: Path) -> Progress:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the directory of a checkpoint that Trainer.save wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        progress = Progress(
            int(content["steps_done"]),
            float(content["loss_scale"]),
            int(content["good_steps"]),
            dict(content["settings"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): use an earlier checkpoint") from error
    return progress
