"""Continuous batching: a sequence gets the same ids whenever it joins and whatever else is in the batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.sampling import Sampling
from mindone.models.share4v.processing.tokenizer import Tokenizer

Pair = tuple[Reference, Share4V]

pytestmark = pytest.mark.usefixtures("shared_graphs")


def requests(reference: Reference, count: int, shared: int = 20) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return prompts with a common prefix and different lengths, with 0 to 2 images."""
    begin, made = reference.text(shared), []
    for number in range(count):
        images = (1, 1, 0, 2)[number % 4]
        ids = [*begin, *[IMAGE] * images, *reference.text(1 + int(reference.rng.integers(90)))]
        made.append((np.array([ids]), reference.images(images) if images else None))
    return made


def settings_of(number: int) -> GenerationSettings:
    """Return settings of different lengths; every third one samples."""
    sampling = Sampling(do_sample=True, temperature=1.5, seed=number) if number % 3 == 2 else Sampling()
    return GenerationSettings(max_new_tokens=1 + 5 * number % 17, sampling=sampling)


def generate(model: Share4V, inputs: tuple[np.ndarray, np.ndarray | None], settings: GenerationSettings) -> list[int]:
    sampling = settings.sampling
    return model.generate(
        *inputs,
        max_new_tokens=settings.max_new_tokens,
        min_new_tokens=settings.min_new_tokens,
        do_sample=sampling.do_sample,
        temperature=sampling.temperature,
        seed=sampling.seed,
    )[0]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_sequences_that_join_and_leave_get_the_ids_of_generate(small: Pair, tokenizer: Tokenizer, size: int) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    waiting = list(enumerate(requests(reference, 14)))
    wanted = [generate(model, inputs, settings_of(number)) for number, inputs in waiting]
    batch, got, most = model.continuous_batch(size), {}, 0
    while waiting or len(batch):
        joins = int(reference.rng.integers(size + 1)) if len(batch) else 1  # so that some steps leave slots free
        for _ in range(min(joins, batch.free, len(waiting))):
            number, inputs = waiting.pop(0)
            batch.join(number, model.prepare_inputs(*inputs), settings_of(number))
        most = max(most, len(batch))
        for completion in batch.step():
            assert completion.request_id not in got
            got[completion.request_id] = list(completion.token_ids)
            assert completion.text == tokenizer.decode(completion.token_ids).strip()
    assert [got[number] for number in range(14)] == wanted
    assert most == size


def test_a_common_prefix_is_computed_once(small: Pair, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    asked = requests(reference, 6, shared=30)
    batch, computed = model.continuous_batch(2), []
    decoder = type(batch._decoder)
    prefill = decoder.prefill

    def watched(self: object, embeds: object, positions: np.ndarray, *rest: np.ndarray) -> object:
        computed.append(int((positions >= 0).sum()))
        return prefill(self, embeds, positions, *rest)

    monkeypatch.setattr(decoder, "prefill", watched)
    total = 0
    for number, inputs in enumerate(asked):
        prompts = model.prepare_inputs(*inputs)
        total += int(prompts.lengths[0])
        batch.join(number, prompts, GenerationSettings(max_new_tokens=1))
        batch.step()
    assert sum(computed) == (total - 5 * 30 if decoder.can_copy_prefix else total)


def test_sequences_continue_while_a_long_prompt_is_prefilled(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    batch = model.continuous_batch(2)
    short = model.prepare_inputs(np.array([reference.text(5)]))
    # It begins with an image, so that it has no prefix in common with the other one.
    long = model.prepare_inputs(np.array([[IMAGE, *reference.text(450)]]), reference.images(1))
    chunks = -(-int(long.lengths[0]) // batch._decoder.chunk)
    assert chunks > 1
    batch.join("short", short, GenerationSettings(max_new_tokens=20, min_new_tokens=20))
    batch.step()
    batch.join("long", long, GenerationSettings(max_new_tokens=2, min_new_tokens=2))
    steps = {"short": 1, "long": 0}  # until each one ends
    while len(batch):
        running = {*batch.request_ids}
        steps |= {name: steps[name] + 1 for name in running}
        batch.step()
    assert steps["short"] == 20  # one token per step
    assert steps["long"] == (chunks + 1 if batch._decoder.skips_padding else 2)


def test_of_prompts_that_come_together_the_first_is_answered_first(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    asked = [np.array([[IMAGE, *reference.text(450)]]) for _ in range(2)]
    settings = GenerationSettings(max_new_tokens=3, min_new_tokens=3)
    wanted, answered = [], []
    batch = model.continuous_batch(2)
    for name, ids in enumerate(asked):
        images = reference.images(1)
        wanted.append(model.generate(ids, images, max_new_tokens=3, min_new_tokens=3)[0])
        prompts = model.prepare_inputs(ids, images)
        batch.join(name, prompts, settings, on_piece=lambda piece, name=name: answered.append(name))
    got = {}
    while len(batch):
        got |= {one.request_id: list(one.token_ids) for one in batch.step()}
    if batch._decoder.skips_padding:
        assert answered == [0, 0, 0, 1, 1, 1]  # not by turns
    assert [got[0], got[1]] == wanted


def test_stop_strings_and_forbidden_ids_belong_to_one_sequence(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    inputs, settings = requests(reference, 1)[0], GenerationSettings(max_new_tokens=12)
    plain = generate(model, inputs, settings)
    stop = tokenizer.decode(plain[3:5])
    batch, got = model.continuous_batch(3), {}
    batch.join("plain", model.prepare_inputs(*inputs), settings)
    batch.join("stopped", model.prepare_inputs(*inputs), replace(settings, stop=(stop,)))
    batch.join(
        "without", model.prepare_inputs(*inputs), settings, forbidden=lambda ids: [plain[2]] if len(ids) == 2 else []
    )
    while len(batch):
        got |= {completion.request_id: completion for completion in batch.step()}
    assert list(got["plain"].token_ids) == plain and got["plain"].finish_reason == "length"
    assert got["stopped"].finish_reason == "stop" and stop not in got["stopped"].text
    assert got["without"].token_ids[:2] == tuple(plain[:2]) and got["without"].token_ids[2] != plain[2]


def test_min_new_tokens_delays_the_end(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    settings = GenerationSettings(max_new_tokens=30, min_new_tokens=30)
    inputs = requests(reference, 1)[0]
    batch = model.continuous_batch(1)
    # Whatever the settings say, the end-of-text ids are the model's.
    batch.join(0, model.prepare_inputs(*inputs), replace(settings, eos_token_ids=(96,)))
    finished = [one for _ in range(30) for one in batch.step()]
    assert [len(one.token_ids) for one in finished] == [30]
    assert list(finished[0].token_ids) == generate(model, inputs, settings)


def test_a_sequence_that_cannot_join_is_refused(small: Pair, tokenizer: Tokenizer) -> None:
    reference, model = small
    model.tokenizer = tokenizer
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        model.continuous_batch(0)
    batch = model.continuous_batch(1)
    prompts = model.prepare_inputs(np.array([reference.text(5)]))
    batch.join("first", prompts, GenerationSettings(max_new_tokens=4))
    with pytest.raises(ValueError, match="got 1, 0 free"):
        batch.join("second", prompts, GenerationSettings())
    batch = model.continuous_batch(2)
    batch.join("first", prompts, GenerationSettings())
    with pytest.raises(ValueError, match="request 'first' is already in the batch"):
        batch.join("first", prompts, GenerationSettings())
    with pytest.raises(ValueError, match="no beam search: set num_beams=1, got 2"):
        batch.join("beams", prompts, GenerationSettings(num_beams=2))
    with pytest.raises(ValueError, match="the model's context is 512"):
        model.prepare_inputs(np.array([reference.text(600)]))
