"""Prefixes: found in the longest row, copied or used in place, computed once by requests that come together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.generation.prefix_cache import Match, PrefixCache, common_length, prompt_keys, text_keys
from mindone.models.share4v.processing.tokenizer import Tokenizer

Pair = tuple[Reference, Share4V]

pytestmark = pytest.mark.usefixtures("shared_graphs")


def test_keys_differ_where_prompts_do() -> None:
    embeds = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    ids = np.array([1, 5, -1, -1, 7, 8])
    keys = prompt_keys(ids, embeds)
    assert common_length(keys, prompt_keys(ids, embeds.copy())) == 6
    other = embeds.copy()
    other[3, 7] = np.nextafter(other[3, 7], np.float32(9))
    assert common_length(keys, prompt_keys(ids, other)) == 3
    other[1] += 1  # the embedding of text is that of its id
    assert common_length(keys, prompt_keys(ids, other)) == 3
    assert common_length(keys, text_keys([1, 5, 9])) == 2
    assert common_length(keys, text_keys([])) == 0


def test_a_row_is_chosen() -> None:
    cache = PrefixCache(3)
    assert cache.find(text_keys(range(20)), [0, 1, 2]) == Match(0, None, 0)
    cache.store(0, text_keys(range(100)))
    cache.store(1, text_keys(range(1000, 1030)))
    assert cache.find(text_keys(range(90)), [0, 1, 2]) == Match(0, 0, 89)  # in place, without the last token
    assert cache.find(text_keys([*range(20), 7]), [0, 1, 2]) == Match(2, 0, 20)  # copied: the long row stays
    assert cache.find(text_keys(range(90)), [1, 2]) == Match(2, 0, 89)  # row 0 is running
    assert cache.find(text_keys(range(90)), [1]) == Match(1, 0, 89)
    assert cache.find(text_keys([*range(20), 7]), [0]) == Match(0, 0, 20)
    assert cache.find(text_keys([*range(5), 7]), [0, 1, 2]) == Match(2, None, 0)  # too short
    cache.store(2, text_keys([9]))
    assert cache.find(text_keys([8] * 9), [0, 1, 2]).row == 0  # the one that was used longest ago
    cache.clear([0])
    assert cache.find(text_keys(range(90)), [0, 1, 2]) == Match(0, None, 0)


def watched(model: Share4V, batch: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prefill step computes."""
    computed: list[int] = []
    decoder = type(batch._decoder)
    prefill = decoder.prefill

    def counting(self: object, embeds: object, positions: np.ndarray, *rest: np.ndarray) -> object:
        computed.append(int((positions >= 0).sum()))
        return prefill(self, embeds, positions, *rest)

    monkeypatch.setattr(decoder, "prefill", counting)
    return computed


def finish(batch: Any) -> dict[Any, Any]:
    done = {}
    while len(batch):
        done |= {one.request_id: one for one in batch.step()}
    return done


@pytest.fixture
def pair(small: Pair, tokenizer: Tokenizer) -> Pair:
    small[1].tokenizer = tokenizer
    return small


def test_another_question_about_an_image(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = pair
    images, begin = reference.images(1), reference.text(20)
    asked = [np.array([[*begin, IMAGE, *reference.text(12)]]) for _ in range(4)]
    settings = GenerationSettings(max_new_tokens=7)
    expected = [model.generate(ids, images, max_new_tokens=7)[0] for ids in asked]
    batch = model.continuous_batch(2)
    computed = watched(model, batch, monkeypatch)
    for number, ids in enumerate(asked):
        prompts = model.prepare_inputs(ids, images)
        batch.join(number, prompts, settings)
        done = finish(batch)[number]
        assert list(done.token_ids) == expected[number]
        if batch._decoder.can_copy_prefix:
            shared = 20 + model.config.num_image_tokens
            assert done.cached_tokens >= (shared if number else 0)
            assert batch.prefixes.queried - batch.prefixes.hits == sum(computed)
        else:
            assert done.cached_tokens == 0


def test_a_conversation_reuses_its_answers(pair: Pair) -> None:
    reference, model = pair
    batch = model.continuous_batch(1)
    settings = GenerationSettings(max_new_tokens=9, min_new_tokens=9)
    ids = reference.text(30)
    for turn in range(3):
        batch.join(turn, model.prepare_inputs(np.array([ids])), settings)
        done = finish(batch)[turn]
        assert list(done.token_ids) == model.generate(np.array([ids]), max_new_tokens=9, min_new_tokens=9)[0]
        if batch._decoder.can_copy_prefix and turn:
            assert done.cached_tokens == len(ids) - 11  # all but the last token of the answer and the ten after it
        ids = [*ids, *done.token_ids, *reference.text(10)]


def test_requests_that_come_together_compute_a_prefix_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = pair
    begin = reference.text(200)
    asked = [np.array([[*begin, *reference.text(20)]]) for _ in range(4)]
    expected = [model.generate(ids, max_new_tokens=5)[0] for ids in asked]
    batch = model.continuous_batch(4)
    computed = watched(model, batch, monkeypatch)
    for number, ids in enumerate(asked):
        batch.join(number, model.prepare_inputs(ids), GenerationSettings(max_new_tokens=5))
    done = finish(batch)
    assert [list(done[number].token_ids) for number in range(4)] == expected
    if batch._decoder.can_copy_prefix:
        assert sum(one.cached_tokens for one in done.values()) == 3 * 200
        assert batch.prefixes.queried - batch.prefixes.hits == 220 + 3 * 20
        assert computed


def test_a_follower_goes_on_when_its_leader_leaves(pair: Pair) -> None:
    reference, model = pair
    begin = reference.text(250)
    asked = [np.array([[*begin, *reference.text(20)]]) for _ in range(2)]
    batch = model.continuous_batch(4)
    settings = GenerationSettings(max_new_tokens=5)
    for number, ids in enumerate(asked):
        batch.join(number, model.prepare_inputs(ids), settings)
    batch.step()
    batch.leave(0)
    batch.join("other", model.prepare_inputs(np.array([reference.text(40)])), settings)
    assert list(finish(batch)[1].token_ids) == model.generate(asked[1], max_new_tokens=5)[0]


def test_progress_is_reported(pair: Pair) -> None:
    reference, model = pair
    batch, seen = model.continuous_batch(4), []
    ids = np.array([reference.text(450)])
    batch.join(0, model.prepare_inputs(ids), GenerationSettings(max_new_tokens=1), on_prefill=seen.append)
    done = finish(batch)[0]
    assert [seen[0].processed_tokens, seen[-1].processed_tokens] == [0, 450]
    assert {one.prompt_tokens for one in seen} == {450} and len(seen) > 2
    assert done.started <= done.first_token <= done.ended


def test_an_error_in_the_callback_of_progress_ends_nothing(pair: Pair) -> None:
    reference, model = pair
    batch = model.continuous_batch(2)

    def fail(progress: object) -> None:
        raise RuntimeError("no")

    ids = np.array([reference.text(20)])
    batch.join(0, model.prepare_inputs(ids), GenerationSettings(max_new_tokens=2), on_prefill=fail)
    assert finish(batch)[0].error is None


def test_the_stop_string_is_reported(pair: Pair) -> None:
    reference, model = pair
    ids = np.array([reference.text(20)])
    plain = model.generate(ids, max_new_tokens=12)[0]
    stop = model.tokenizer.decode(plain[3:5])
    batch = model.continuous_batch(1)
    settings = GenerationSettings(max_new_tokens=12)
    batch.join(0, model.prepare_inputs(ids), replace(settings, stop=("never ever", stop)))
    assert finish(batch)[0].stop == stop
    batch.join(1, model.prepare_inputs(ids), settings)
    assert finish(batch)[1].stop is None


def test_a_prompt_is_prefilled_again_when_the_cache_is_replaced(pair: Pair) -> None:
    """The only row that has logits fails, and no row is left that may be copied over its keys and values."""
    reference, model = pair
    ids = np.array([reference.text(300)])  # more than a chunk
    settings = GenerationSettings(max_new_tokens=6)
    wanted = model.generate(ids, max_new_tokens=6)[0]
    batch = model.continuous_batch(2)

    def fail(new_ids: Sequence[int]) -> Collection[int]:
        if new_ids:
            raise FloatingPointError("the logits are not finite")
        return ()

    batch.join("fails", model.prepare_inputs(np.array([reference.text(3)])), settings, fail)
    assert batch.step() == []
    batch.join("long", model.prepare_inputs(ids), settings)
    done = finish(batch)
    assert isinstance(done["fails"].error, FloatingPointError)
    assert done["long"].error is None and list(done["long"].token_ids) == wanted
    batch.join("again", model.prepare_inputs(ids), settings)  # what was stored of the prompt is right, too
    assert list(finish(batch)["again"].token_ids) == wanted
