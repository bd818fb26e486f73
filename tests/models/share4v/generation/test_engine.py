"""The generation engine: results do not depend on admission; requests stream, are cancelled and fail one by one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference
from mindspore import Tensor

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.continuous_batch import Completion
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.engine import IMAGES_PER_RUN, Engine, ImageSet, Request
from mindone.models.share4v.generation.sampling import Sampling
from mindone.models.share4v.generation.streaming import GenerationPiece
from mindone.models.share4v.processing.tokenizer import Tokenizer

Pair = tuple[Reference, Share4V]

pytestmark = pytest.mark.usefixtures("shared_graphs")


@pytest.fixture
def pair(small: Pair, tokenizer: Tokenizer) -> Pair:
    """A reference and our model, on every backend, with a tokenizer; what its texts say means nothing."""
    small[1].tokenizer = tokenizer
    return small


@pytest.fixture
def served(pair: Pair) -> Iterator[tuple[Reference, Engine[int]]]:
    """An engine whose steps run in a thread of their own."""
    engine: Engine[int] = Engine(pair[1], 2)
    with ThreadPoolExecutor(1) as executor:
        running = executor.submit(engine.run)
        yield pair[0], engine
        engine.close(cancel=True)
        running.result(timeout=300)


def long(number: int = 0) -> GenerationSettings:
    """Settings of an answer of exactly 100 tokens, so that it does not end by itself."""
    return GenerationSettings(max_new_tokens=100, min_new_tokens=100, sampling=Sampling(True, 1.5, seed=number))


def requests(reference: Reference, count: int) -> list[Request[int]]:
    """Requests with a common prefix and prompts of different lengths, with 0 to 2 images; every third one samples."""
    prefix, made = reference.text(20), []
    for number in range(count):
        images = (1, 1, 0, 2)[number % 4]
        ids = [*prefix, *[IMAGE] * images, *reference.text(1 + int(reference.rng.integers(90)))]
        sampling = Sampling(do_sample=True, temperature=1.5, seed=number) if number % 3 == 2 else Sampling()
        settings = GenerationSettings(max_new_tokens=1 + 5 * number % 17, sampling=sampling)
        image_set = ImageSet(reference.images(images)) if images else None
        made.append(Request(number, np.array([ids]), settings, image_set))
    return made


def fresh(request: Request[int]) -> Request[int]:
    """The same request with images that are not encoded yet."""
    pixels = None if request.images is None else request.images.pixel_values
    return replace(request, images=None if pixels is None else ImageSet(pixels))


def generate(model: Share4V, request: Request[int]) -> list[int]:
    """What `model.generate` returns for the request."""
    settings, sampling = request.settings, request.settings.sampling
    return model.generate(
        request.input_ids,
        None if request.images is None else request.images.pixel_values,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )[0]


def finish(engine: Engine[int]) -> dict[int, Completion[int]]:
    """Step until the engine is empty."""
    completions = {}
    while len(engine):
        completions |= {one.request_id: one for one in engine.step()}
    return completions


# Results


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_results_equal_generate_for_every_order_of_admission(pair: Pair, batch_size: int) -> None:
    reference, model = pair
    made = requests(reference, 12)
    expected = [generate(model, request) for request in made]
    random = np.random.default_rng(batch_size)
    engine: Engine[int] = Engine(model, batch_size)
    for _ in range(3):
        waiting = [fresh(made[number]) for number in random.permutation(len(made))]
        completions: dict[int, Completion[int]] = {}
        while waiting or len(engine):
            for _ in range(min(len(waiting), int(random.integers(4)))):
                engine.submit(waiting.pop())
            completions |= {one.request_id: one for one in engine.step()}
        assert [list(completions[number].token_ids) for number in range(12)] == expected
        for completion in completions.values():
            assert completion.error is None and completion.finish_reason in ("eos", "length")
            assert completion.text == model.tokenizer.decode(completion.token_ids).strip()
            assert completion.started is not None and completion.prompt_tokens > 20


def test_images_of_waiting_requests_are_encoded_together(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = pair
    calls: list[int] = []
    encode = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    engine: Engine[int] = Engine(model, 2)
    shared = ImageSet(reference.images(1))
    for number in range(2 * IMAGES_PER_RUN):
        images = shared if number < 3 else ImageSet(reference.images(1))
        ids = np.array([[IMAGE, *reference.text(3)]])
        engine.submit(Request(number, ids, GenerationSettings(max_new_tokens=2), images))
    assert engine.waiting_images == 2 * IMAGES_PER_RUN - 2  # three requests share an image
    engine.step()
    assert calls == [IMAGES_PER_RUN]
    assert shared.features is not None and shared.pixel_values is None  # features replace the pixels
    assert len(finish(engine)) + 2 >= 2 * IMAGES_PER_RUN
    assert calls == [IMAGES_PER_RUN, IMAGES_PER_RUN - 2]


def test_stop_strings_forbidden_ids_and_beginnings_belong_to_one_request(pair: Pair) -> None:
    reference, model = pair
    plain = replace(requests(reference, 1)[0], settings=GenerationSettings(max_new_tokens=12))
    expected = generate(model, plain)
    stop = model.tokenizer.decode(expected[3:5])
    beginning = [int(one) for one in np.asarray(plain.input_ids)[0, -2:]]
    engine: Engine[int] = Engine(model, 4)
    engine.submit(plain)
    engine.submit(replace(plain, request_id=1, settings=replace(plain.settings, stop=(stop,))))
    engine.submit(replace(plain, request_id=2, forbidden=lambda ids: [expected[2]] if len(ids) == 2 else []))
    engine.submit(replace(plain, request_id=3, beginning=beginning))
    completions = finish(engine)
    assert list(completions[0].token_ids) == expected
    assert completions[1].finish_reason == "stop" and stop not in completions[1].text
    assert completions[2].token_ids[:2] == tuple(expected[:2]) and completions[2].token_ids[2] != expected[2]
    assert list(completions[3].token_ids) == expected
    assert completions[3].text == model.tokenizer.decode([*beginning, *expected]).strip()


def test_an_empty_engine_idles(pair: Pair) -> None:
    _, model = pair
    engine: Engine[int] = Engine(model, 2)
    assert engine.step() == [] and len(engine) == 0 and engine.free == 2
    assert not engine.wait(timeout=0)
    engine.close()
    assert not engine.wait()  # returns at once, and so does run
    engine.run()


# Pieces


def test_pieces_joined_are_the_text(pair: Pair) -> None:
    reference, model = pair
    engine: Engine[int] = Engine(model, 3)
    pieces: dict[int, list[GenerationPiece]] = {number: [] for number in range(6)}
    made = requests(reference, 6)
    expected = [generate(model, request) for request in made]
    for request in made:
        engine.submit(replace(request, on_piece=pieces[request.request_id].append))
    for number, completion in finish(engine).items():
        received = pieces[number]
        assert "".join(piece.text for piece in received) == completion.text
        assert [piece.token_id for piece in received if piece.token_id is not None] == expected[number]
        assert completion.text == model.tokenizer.decode(expected[number]).strip()
        reasons = [piece.finish_reason for piece in received]
        assert reasons == [None] * (len(received) - 1) + [completion.finish_reason]
        assert received[-1].generated_tokens == len(expected[number])
        assert {piece.prompt_tokens for piece in received} == {completion.prompt_tokens}


def test_each_step_reports_its_tokens(pair: Pair) -> None:
    """A piece arrives in the step that generates its token, not at the end."""
    reference, model = pair
    engine: Engine[int] = Engine(model, 1)
    pieces: list[GenerationPiece] = []
    engine.submit(Request(0, np.array([reference.text(5)]), long(), on_piece=pieces.append))
    for count in range(1, 6):
        engine.step()
        assert len(pieces) == count


# Cancelling


def test_cancelling_frees_the_slot_at_the_next_step(pair: Pair) -> None:
    reference, model = pair
    first, second = (Request(number, np.array([reference.text(6)]), long(number)) for number in range(2))
    expected = generate(model, second)
    engine: Engine[int] = Engine(model, 1)
    engine.submit(first)
    engine.submit(second)
    for _ in range(3):
        assert engine.step() == []
    assert engine.waiting == 1
    assert engine.cancel(0)
    (cancelled,) = engine.step()
    assert (cancelled.request_id, cancelled.finish_reason, len(cancelled.token_ids)) == (0, "cancelled", 3)
    assert engine.waiting == 0  # the second request took the slot in the same step
    assert list(finish(engine)[1].token_ids) == expected
    assert not engine.cancel(0) and not engine.cancel("unknown")


def test_a_waiting_request_can_be_cancelled(pair: Pair) -> None:
    reference, model = pair
    engine: Engine[int] = Engine(model, 1)
    delivered: list[Completion[int]] = []
    for number in range(3):
        engine.submit(Request(number, np.array([reference.text(6)]), long(number), on_completion=delivered.append))
    engine.cancel(1)
    engine.cancel(1)
    completions = engine.step()
    assert completions == delivered and [one.request_id for one in completions] == [1]
    assert completions[0].finish_reason == "cancelled" and completions[0].token_ids == ()
    engine.submit(
        Request(1, np.array([reference.text(6)]), GenerationSettings(max_new_tokens=1))
    )  # the id is free again
    assert finish(engine)[1].finish_reason in ("length", "eos")


# Failures


def test_invalid_requests_fail_alone(pair: Pair) -> None:
    """A bad image, a prompt that fills the context, a missing image, and callbacks that raise."""
    reference, model = pair
    good = requests(reference, 3)
    expected = [generate(model, request) for request in good]

    def raising(*arguments: object) -> list[int]:
        raise KeyError("callback")

    ids, image = np.array([[IMAGE, 5]]), reference.images(1)
    bad = {
        10: Request(10, ids, images=ImageSet(np.full_like(image, np.nan))),
        11: Request(11, ids, images=ImageSet(image[:, :, 1:])),
        12: Request(12, np.array([reference.text(600)])),
        13: Request(13, ids),
        14: Request(14, np.array([[5], [6]])),
        15: Request(15, ids, images=ImageSet(image), forbidden=raising),
        16: Request(16, ids, images=ImageSet(image), on_piece=raising),
    }
    messages = {
        10: "pixel_values of image 0 are not all finite",
        11: "pixel_values must be",
        12: "the model's context is 512",
        13: "name 1 images .* 0 images are given",
        14: "only one prompt can join",
        15: "callback",
        16: "callback",
    }
    engine: Engine[int] = Engine(model, 3)
    for request in [*list(bad.values())[:3], *good, *list(bad.values())[3:]]:
        engine.submit(request)
    completions = finish(engine)
    assert completions.keys() == {0, 1, 2, *bad}
    assert [list(completions[number].token_ids) for number in range(3)] == expected
    for number, message in messages.items():
        assert completions[number].finish_reason == "error"
        with pytest.raises((ValueError, KeyError), match=message):
            raise completions[number].error or AssertionError("no error")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_logits_that_are_not_finite_fail_one_request_and_leave_a_clean_slot(pair: Pair, batch_size: int) -> None:
    """NaN features give NaN keys and values, which the next request in the slot must not see."""
    reference, model = pair
    images = reference.images(1)
    beside = Request(0, np.array([reference.text(70)]), long(3))
    later = Request(2, np.array([[*reference.text(9), IMAGE]]), long(4), ImageSet(images))
    expected = {request.request_id: generate(model, request) for request in (beside, later)}
    not_finite = ImageSet(images)
    not_finite.store(Tensor(np.full_like(model.encode_images(images).asnumpy(), np.nan)))
    engine: Engine[int] = Engine(model, batch_size)
    if batch_size > 1:
        engine.submit(beside)
        engine.step()
    engine.submit(Request(1, np.array([[*reference.text(80), IMAGE, *reference.text(50)]]), images=not_finite))
    engine.submit(later)
    completions = finish(engine)
    assert isinstance(completions[1].error, FloatingPointError) and completions[1].finish_reason == "error"
    assert list(completions[2].token_ids) == expected[2]
    if batch_size > 1:
        assert list(completions[0].token_ids) == expected[0]


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_a_pass_without_memory_ends_the_sequence_that_joined_last(
    pair_of: Callable[..., Pair], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    """What the pass has written to the KV cache before it failed is used by nobody, not as a prefix either."""
    reference, model = pair_of("usual", "kernels")
    model.tokenizer = tokenizer
    beside = Request(0, np.array([reference.text(70)]), long(3))
    last = Request(1, np.array([reference.text(90)]), long(4))
    expected = {request.request_id: generate(model, request) for request in (beside, last)}
    engine: Engine[int] = Engine(model, 2)
    decoder = engine._batch._decoder
    real = getattr(decoder, function)

    def without_memory(inputs: Any, *others: Any) -> Any:
        monkeypatch.setattr(decoder, function, real)
        real(-inputs if function == "prefill" else (inputs + 1) % 50, *others)  # other keys and values
        raise MemoryError("share4v_layer got no memory for its intermediate results")

    engine.submit(beside)
    engine.step()
    engine.submit(last)
    for _ in range(0 if function == "prefill" else 6):
        engine.step()
    monkeypatch.setattr(decoder, function, without_memory)
    completions = finish(engine)
    assert isinstance(completions[1].error, MemoryError) and completions[1].finish_reason == "error"
    assert list(completions[0].token_ids) == expected[0]
    engine.submit(last)
    assert list(finish(engine)[1].token_ids) == expected[1]


def test_prompts_that_were_complete_before_memory_ran_out_end_too(
    pair_of: Callable[..., Pair], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MindSpore's operators prefill in several passes: what the first one computed is lost with the second."""
    reference, model = pair_of("small", "cells")
    model.tokenizer = tokenizer
    beside, short, last = (Request(n, np.array([reference.text((9, 3, 200)[n])]), long(n)) for n in range(3))
    expected = list(generate(model, beside))
    engine: Engine[int] = Engine(model, 3)
    engine.submit(beside)
    engine.step()
    decoder, passes = engine._batch._decoder, iter((None, MemoryError("no memory")))
    real = decoder.prefill

    def second_without_memory(*inputs: Any) -> Any:
        if error := next(passes, None):
            raise error
        return real(*inputs)

    engine.submit(short)
    engine.submit(last)
    monkeypatch.setattr(decoder, "prefill", second_without_memory)
    completions = finish(engine)
    assert [completions[number].finish_reason for number in range(3)] == ["length", "error", "error"]
    assert list(completions[0].token_ids) == expected


def test_an_error_of_the_whole_batch_fails_all_requests_and_closes_the_engine(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, model = pair
    engine: Engine[int] = Engine(model, 1)
    delivered: list[Completion[int]] = []
    for number in range(2):
        engine.submit(Request(number, np.array([reference.text(6)]), on_completion=delivered.append))

    def broken() -> list[Completion[int]]:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine._batch, "step", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run()
    assert [(one.request_id, str(one.error)) for one in delivered] == [
        (0, "the device is gone"),
        (1, "the device is gone"),
    ]
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit(Request(5, np.array([[5]])))


def test_requests_that_the_engine_refuses(pair: Pair) -> None:
    _, model = pair
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        Engine(model, 0)
    engine: Engine[int] = Engine(model, 1)
    engine.submit(Request(0, np.array([[5]])))
    with pytest.raises(ValueError, match="request 0 is already in the engine"):
        engine.submit(Request(0, np.array([[5]])))
    with pytest.raises(ValueError, match="no beam search: set num_beams=1, got 2"):
        engine.submit(Request(1, np.array([[5]]), GenerationSettings(num_beams=2)))
    assert len(engine) == 1


# Threads


def test_requests_from_other_threads(served: tuple[Reference, Engine[int]]) -> None:
    """Six threads submit and read at the same time, while one thread steps."""
    reference, engine = served
    made = requests(reference, 12)
    expected = [generate(engine._model, request) for request in made]  # before the engine has work
    start = threading.Barrier(6)

    def client(first: int) -> list[tuple[str, Completion[int] | None]]:
        start.wait(timeout=300)
        streams = [engine.stream(fresh(request)) for request in made[first::6]]
        return [("".join(piece.text for piece in stream), stream.completion) for stream in streams]

    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(client, range(6), timeout=900))
    for first, answer in enumerate(answers):
        for (text, completion), number in zip(answer, range(first, 12, 6), strict=True):
            assert completion is not None and completion.request_id == number
            assert list(completion.token_ids) == expected[number] and completion.text == text
    assert len(engine) == 0


def test_a_stream_is_closed_or_raises_the_error_of_its_request(served: tuple[Reference, Engine[int]]) -> None:
    reference, engine = served
    stream = engine.stream(Request(0, np.array([reference.text(6)]), long()))
    assert next(stream).generated_tokens == 1
    stream.close()
    rest = list(stream)
    assert stream.completion is not None and len(stream.completion.token_ids) == 1 + len(rest)
    assert list(stream) == []
    failing = engine.stream(Request(1, np.array([reference.text(600)])))
    with pytest.raises(ValueError, match="the model's context is 512"):
        next(failing)
    assert list(failing) == [] and failing.completion is not None
