"""The process of a replica with the components on the kernels alone, because MindSpore's import takes too long here."""

from __future__ import annotations

import json
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from helpers.stored_caption import STORED, answer, load

from mindone.models.share4v.checkpoint.layout import Checkpoint
from mindone.models.share4v.kernels.numa_placement import place_weights
from mindone.pipelines.image_to_text.dataset.executors.replica import ReplicaSetup
from mindone.pipelines.image_to_text.dataset.state.records import Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task

DTYPE, TOKENS = "int4", 8


def main(descriptor: int) -> None:
    """Send a record for every task until the pipe is closed."""
    with Connection(descriptor) as connection, suppress(EOFError):
        setup: ReplicaSetup = connection.recv()
        checkpoint = Checkpoint.open(Path(setup.choice.model))
        components = load(checkpoint, DTYPE, is_packed=True)
        place_weights(components, setup.choice.numa)
        prompt = json.loads(STORED.read_text(encoding="utf-8"))["prompt"]
        while True:
            task: Task = connection.recv()
            ids = answer(components, checkpoint.config.vision_config.image_size, prompt, TOKENS)
            connection.send(Record(task.item.number, task.item.key, task.item.source, (str(ids),)))
