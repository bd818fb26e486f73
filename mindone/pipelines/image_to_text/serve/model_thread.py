"""The thread that owns the model: it loads it, runs the engine, and starts another engine after an error of a batch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mindone.models.share4v.generation.engine import Engine
    from mindone.pipelines.image_to_text.base import Pipeline

Status = Literal["absent", "loading", "ready", "failed", "closed"]
_MAX_FAILURES = 3  # consecutive errors of whole batches after which the model is given up
_log = logging.getLogger(__name__)


class ModelThread:
    """Loads the model and runs its engine until it is closed.

    Args:
        load: returns the pipeline; called in the thread. None: there is no model, and the thread does not start.
        max_batch: sequences that are decoded together.
        on_loaded: called in the thread when the model is loaded and its graphs are compiled.
        on_ready: called in the thread once the status is "ready".
        on_failure: called in the thread with the error that ends it.

    Attributes:
        status: "absent" (there is no model), "loading", "ready", "failed" (loading failed, or batch after batch) or
            "closed".
        pipeline: None until the model is loaded.
        engine: None until the model is loaded, and for a moment after an error that concerned a whole batch, which
            makes another one necessary.
    """

    def __init__(
        self,
        load: Callable[[], Pipeline] | None,
        max_batch: int,
        on_loaded: Callable[[], None] = lambda: None,
        on_ready: Callable[[], None] = lambda: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self._load = load
        self._max_batch = max_batch
        self._on_loaded = on_loaded
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._thread = threading.Thread(target=self._run, name="share4v-model", daemon=True)
        self.status: Status = "absent" if load is None else "loading"
        self.pipeline: Pipeline | None = None
        self.engine: Engine[object] | None = None

    def start(self) -> None:
        """Start to load the model."""
        if self._load is not None:
            self._thread.start()

    def close(self, timeout: float) -> bool:
        """Cancel all requests and end the thread; return whether it ended within `timeout` seconds."""
        if self.status == "absent":
            return True
        self.status = "closed"
        self.cancel_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel_all(self) -> None:
        """Cancel all requests; their clients get an error, and further requests are refused."""
        engine = self.engine  # the thread may replace it at any time
        if engine is not None:
            engine.close(cancel=True)

    def _run(self) -> None:
        try:
            if self._load is None:
                raise RuntimeError("there is no model")
            self.pipeline = self._load()
            self.engine = self._new_engine()
            if self.status == "closed":
                return
            self._warm_up()
            self._on_loaded()
        except Exception as error:
            self._fail(error)
            return
        if self.status == "loading":
            self.status = "ready"
            self._on_ready()
        failures, completed = 0, 0
        while self.status == "ready":
            try:
                if self.engine is None:
                    self.engine, completed = self._new_engine(), 0
                    if self.status != "ready":  # `close` came meanwhile, and found no engine
                        return
                self.engine.run()
                return
            except Exception as error:
                _log.exception("an error ended all running requests")
                done = 0 if self.engine is None else self.engine.completed
                failures = 1 if done > completed else failures + 1
                if failures >= _MAX_FAILURES:
                    self._fail(error)
                    return
                self.engine = None  # first, so that there are never two KV caches

    def _new_engine(self) -> Engine[object]:
        from mindone.models.share4v.generation.engine import Engine

        if self.pipeline is None:
            raise RuntimeError("the model is not loaded")
        return Engine(self.pipeline.model, self._max_batch)

    def _warm_up(self) -> None:
        """Generate two tokens about an image, so that graphs are compiled before the first request."""
        import numpy as np

        from mindone.models.share4v.generation.decoding import GenerationSettings
        from mindone.models.share4v.generation.engine import ImageSet, Request

        if self.pipeline is None or self.engine is None:
            return
        image = np.zeros((8, 8, 3), np.uint8)
        inputs = self.pipeline.processor(images=[image], conversation=self.pipeline.conversation)
        settings = GenerationSettings(max_new_tokens=2, min_new_tokens=2)
        self.engine.submit(Request("warm-up", inputs["input_ids"], settings, ImageSet(inputs["pixel_values"])))
        while len(self.engine):
            for completion in self.engine.step():
                if completion.error is not None:
                    raise completion.error

    def _fail(self, error: Exception) -> None:
        self.status = "failed"
        self._on_failure(error)
