"""A model may be called from any thread, with the results of a single thread; a forked child gets a clear error.

Before, four threads ended in a segmentation fault or in errors of MindSpore's compiler, which left a folder `rank_0` in
the current directory, and a forked child waited forever. Then one lock made all models of a process take turns.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from mindone.models.share4v import AutoConfig, Share4V, Share4VProcessor
from mindone.models.share4v.concurrency import FairLock, ForkError
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.engine import Engine, Request
from mindone.models.share4v.nn.graph import Graph

TOKENS = {"max_new_tokens": 6, "min_new_tokens": 6}


def load() -> Share4V:
    return Share4V.from_pretrained("sharegpt4v-tiny", dtype="int8")


@pytest.fixture(scope="module")
def model() -> Share4V:
    return load()


@pytest.fixture(scope="module")
def prompts() -> list[np.ndarray]:
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    texts = ("What is this?", "Describe this image", "Why?", "How many are there, and of which colour?")
    return [processor(text=text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def expected(prompts: list[np.ndarray]) -> list[list[list[int]]]:
    """The answers of another model, in a single thread."""
    alone = load()
    return [alone.generate(ids, **TOKENS) for ids in prompts]


def in_threads(functions: list[Callable[[], object]]) -> list[object]:
    """Call every function in a thread of its own, all at the same time, and return the results."""
    start = threading.Barrier(len(functions))

    def call(function: Callable[[], object]) -> object:
        start.wait(300)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(300) for future in [pool.submit(call, function) for function in functions]]


def test_four_threads_on_cold_models(
    prompts: list[np.ndarray], expected: list[list[list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models that have compiled nothing yet, two threads each; nothing is left in the current directory."""
    monkeypatch.chdir(tmp_path)
    models = [load(), load()]
    answers = in_threads(
        [
            lambda number=number, ids=ids: models[number % 2].generate(ids, **TOKENS)  # type: ignore[misc]
            for number, ids in enumerate(prompts)
        ]
    )
    assert answers == expected
    assert list(tmp_path.iterdir()) == []


def test_two_models_of_mindspores_operators_take_turns(
    prompts: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each compiles its graphs while the other one compiles or runs its own, and a model on the kernels runs too."""
    config = AutoConfig.from_pretrained("sharegpt4v-tiny")
    one_layer = {part: replace(getattr(config, part), num_hidden_layers=1) for part in ("text_config", "vision_config")}
    Share4V(replace(config, select_layer=-1, **one_layer)).save_pretrained(tmp_path / "checkpoint")
    cells = {"language_backend": "mindspore", "vision_backend": "mindspore"}
    models = [Share4V.from_pretrained(tmp_path / "checkpoint", **cells) for _ in range(2)]
    models.append(Share4V.from_pretrained(tmp_path / "checkpoint"))
    pixels = np.linspace(-1, 1, 3 * config.vision_config.image_size**2, dtype=np.float32)
    pixels = pixels.reshape(1, 3, *[config.vision_config.image_size] * 2)
    monkeypatch.chdir(tmp_path)

    def answers(model: Share4V) -> tuple[list[list[list[int]]], bytes]:
        features = model.encode_images(pixels).asnumpy().tobytes()
        return [model.generate(ids, **TOKENS) for ids in prompts], features

    first, second, third = in_threads([lambda model=model: answers(model) for model in models])  # type: ignore[misc]
    assert first == second == answers(models[0])
    assert third == answers(models[2])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

    def call_the_second_within_the_first() -> None:
        with models[0].exclusive():
            other.start()
            other.join(0.2)  # it waits for its turn, and holds nothing that this thread needs
            models[1].reset_caches()

    other = threading.Thread(target=models[1].reset_caches, daemon=True)
    nested = threading.Thread(target=call_the_second_within_the_first, daemon=True)
    nested.start()
    nested.join(300)
    assert not nested.is_alive()


def test_separate_models_compute_at_the_same_time(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model stands still within a step while another one, in another thread, gives all of its answers."""
    other, decode = load(), model.language_model.run_decode
    is_inside, may_continue = threading.Event(), threading.Event()

    def stand_still(*arguments: np.ndarray) -> np.ndarray:
        is_inside.set()
        assert may_continue.wait(300)
        return decode(*arguments)

    monkeypatch.setattr(model.language_model, "run_decode", stand_still)
    pixels = np.zeros((1, 3, *[model.config.vision_config.image_size] * 2), np.float32)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(model.generate, prompts[0], **TOKENS)
        assert is_inside.wait(300)
        others = pool.submit(lambda: (other.encode_images(pixels), [other.generate(ids, **TOKENS) for ids in prompts]))
        try:
            assert others.result(300)[1] == expected
            assert not answer.done()
        finally:
            may_continue.set()
        assert answer.result(300) == expected[0]


def test_a_compilation_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Graph):
        def construct(self, x: Tensor) -> Tensor:
            return ops.matmul(x, ops.ones((3, 5), ms.float32))

    monkeypatch.chdir(tmp_path)
    with pytest.raises((RuntimeError, ValueError), match="shape"):
        Wrong().compile_and_run(Tensor(np.ones((2, 2), np.float32)))
    assert list(tmp_path.iterdir()) == []


def test_four_threads_on_a_warm_model(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]]
) -> None:
    def several() -> list[list[list[int]]]:
        return [model.generate(ids, **TOKENS) for ids in prompts]

    several()
    assert in_threads([several] * 4) == [expected] * 4


def test_a_stream_that_waits_for_its_reader_keeps_nobody_waiting(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]]
) -> None:
    stream = model.stream(prompts[0], **TOKENS)
    first = next(stream)
    (other,) = in_threads([lambda: model.generate(prompts[1], **TOKENS)])
    assert other == expected[1]
    ids = [piece.token_id for piece in (first, *stream) if piece.token_id is not None]
    assert [ids] == expected[0]


def test_a_stream_that_was_read_in_part_leaves_the_model_usable(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]]
) -> None:
    def read_one_piece(close: bool) -> None:
        stream = model.stream(prompts[2], **TOKENS)
        next(stream)
        if close:
            stream.close()  # type: ignore[attr-defined]

    in_threads([lambda: read_one_piece(True), lambda: read_one_piece(False)])
    gc.collect()
    assert in_threads([lambda: model.generate(prompts[0], **TOKENS)]) == [expected[0]]


def test_an_error_in_one_thread_leaves_the_model_usable(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(model.language_model, "run_decode", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_threads([lambda: model.generate(prompts[0], **TOKENS)])
    assert in_threads([lambda: model.generate(prompts[0], **TOKENS)]) == [expected[0]]


def _interrupted(*arguments: object) -> object:
    raise KeyboardInterrupt


def test_an_engine_and_generate_take_turns(
    model: Share4V, prompts: list[np.ndarray], expected: list[list[list[int]]]
) -> None:
    engine: Engine[int] = Engine(model, batch_size=2)
    settings = GenerationSettings(**TOKENS)
    streams = [engine.stream(Request(number, ids, settings)) for number, ids in enumerate(prompts)]

    def answers_of_the_engine() -> list[list[list[int]]]:
        for stream in streams:
            for _ in stream:
                pass
        engine.close()
        return [[list(stream.completion.token_ids)] for stream in streams if stream.completion]

    def answers_of_generate() -> list[list[list[int]]]:
        return [model.generate(ids, **TOKENS) for ids in prompts]

    answers = in_threads([engine.run, answers_of_the_engine, answers_of_generate])
    assert answers == [None, expected, expected]


def in_child(function: Callable[[], object]) -> str:
    """Call a function in a forked child and return the class and message of its error; kill it if it does not end."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = f"value: {function()!r}"
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writable, answer.encode()[:4000])
        os._exit(0)
    os.close(writable)
    if not select.select([readable], [], [], 60)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(readable) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


CHILD_CALLS: dict[str, Callable[[Share4V, np.ndarray], object]] = {
    "generate": lambda model, ids: model.generate(ids),
    "stream": lambda model, ids: model.stream(ids),
    "call": lambda model, ids: model(ids),
    "new_cache": lambda model, ids: model.new_cache(),
    "continuous_batch": lambda model, ids: model.continuous_batch(1),
    "from_pretrained": lambda model, ids: load(),
}


@pytest.mark.parametrize("call", CHILD_CALLS.values(), ids=CHILD_CALLS)
def test_a_forked_child_is_told_to_start_otherwise(
    model: Share4V, prompts: list[np.ndarray], call: Callable[[Share4V, np.ndarray], object]
) -> None:
    model.generate(prompts[0], max_new_tokens=1)  # MindSpore's threads exist
    answer = in_child(lambda: call(model, prompts[0]))
    assert answer.startswith("ForkError: this process was forked") and "'spawn'" in answer


def test_a_child_that_was_forked_while_a_thread_used_the_model(model: Share4V, prompts: list[np.ndarray]) -> None:
    """The lock is held at the fork by a thread that does not exist in the child."""
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with model.exclusive():
            is_held.set()
            may_end.wait(300)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(300)
    try:
        assert in_child(lambda: model.generate(prompts[0])).startswith("ForkError")
    finally:
        may_end.set()
        thread.join()


def test_the_lock_is_given_in_the_order_of_asking() -> None:
    lock, order = FairLock(), []
    threads = []

    def take(number: int) -> None:
        with lock, lock:
            order.append(number)

    with lock:
        for number in range(3):
            threads.append(threading.Thread(target=take, args=(number,)))
            threads[-1].start()
            while len(lock._waiting) <= number:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2]


def test_a_thread_that_is_interrupted_while_it_waits_loses_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, errors = FairLock(), []

    class Interrupted:
        """A lock whose second `acquire`, which waits, is interrupted."""

        count = 0

        def acquire(self) -> None:
            self.count += 1
            if self.count == 2:
                raise KeyboardInterrupt

    def wait() -> None:
        monkeypatch.setattr("mindone.models.share4v.concurrency.Lock", Interrupted)
        try:
            with lock:
                pass
        except KeyboardInterrupt as error:
            errors.append(error)

    with lock:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
    assert len(errors) == 1
    monkeypatch.undo()

    def take() -> bool:
        with lock:
            return True

    assert in_threads([take]) == [True]


def test_the_error_is_a_runtime_error() -> None:
    assert issubclass(ForkError, RuntimeError)
