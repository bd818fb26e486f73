"""Generation: how answers end, reuse of caches, kinds of inputs, and invalid arguments."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference, padded
from helpers.training import copy_of
from mindspore import Tensor, ops

from mindone.models.share4v import Share4V
from mindone.models.share4v.embedding_merging import plan_merge
from mindone.models.share4v.generation.kv_cache import CHUNK

Pair = tuple[Reference, Share4V]
CONTEXT = 48


def prompt(length: int, batch: int = 1) -> np.ndarray:
    return np.full((batch, length), 5)


# How an answer ends


def test_an_answer_ends_before_the_end_of_text_token(scripted_model: Share4V, script: Callable) -> None:
    script([7, 8, 9])
    assert scripted_model.generate(prompt(3)) == [[7, 8, 9]]
    pieces = list(scripted_model.stream(prompt(3)))
    assert [(piece.token_id, piece.finish_reason) for piece in pieces] == [
        (7, None),
        (8, None),
        (9, None),
        (None, "eos"),
    ]
    assert [piece.generated_tokens for piece in pieces] == [1, 2, 3, 3]
    assert {piece.prompt_tokens for piece in pieces} == {3}
    assert [piece.seconds for piece in pieces] == sorted(piece.seconds for piece in pieces)


def test_end_of_text_as_the_first_token_gives_an_empty_answer(scripted_model: Share4V, script: Callable) -> None:
    language = script([])
    assert scripted_model.generate(prompt(3)) == [[]]
    assert language.decodes == []
    assert [(piece.text, piece.finish_reason) for piece in scripted_model.stream(prompt(3))] == [("", "eos")]


def test_an_answer_ends_at_max_new_tokens(scripted_model: Share4V, script: Callable) -> None:
    language = script([7] * 40)
    assert scripted_model.generate(prompt(3), max_new_tokens=5) == [[7] * 5]
    assert len(language.decodes) == 4  # nothing is computed after the last token
    assert list(scripted_model.stream(prompt(3), max_new_tokens=5))[-1].finish_reason == "length"


def test_min_new_tokens_delays_the_end(scripted_model: Share4V, script: Callable) -> None:
    script([7])
    answer = scripted_model.generate(prompt(3), min_new_tokens=4, max_new_tokens=9)[0]
    assert len(answer) == 4 and answer[0] == 7


def test_a_full_context_ends_an_answer(scripted_model: Share4V, script: Callable) -> None:
    language = script([7] * 100)
    pieces = list(scripted_model.stream(prompt(CONTEXT - 3), max_new_tokens=90))
    assert [piece.finish_reason for piece in pieces] == [None, None, "context"]
    assert max(int(positions.max()) for _, positions in language.decodes) < CONTEXT - 1
    assert scripted_model.generate(prompt(CONTEXT - 1), max_new_tokens=90) == [[7]]
    assert scripted_model.generate(prompt(CONTEXT - 3), max_new_tokens=90, num_beams=2) == [[7] * 3]


def test_a_prompt_that_fills_the_context_is_an_error_with_both_numbers(scripted_model: Share4V) -> None:
    for ask in (scripted_model.generate, scripted_model.stream):
        with pytest.raises(ValueError, match=f"the prompt has {CONTEXT} tokens .* context is {CONTEXT}"):
            ask(prompt(CONTEXT))
    images = np.zeros((1, 3, 4, 4), np.float32)
    ids = np.array([[IMAGE, *[5] * (CONTEXT - 2)]])
    with pytest.raises(ValueError, match=f"the prompt has {CONTEXT + 2} tokens with its images"):
        scripted_model.generate(ids, images)


def test_sequences_of_a_batch_end_independently(scripted_model: Share4V, script: Callable) -> None:
    language = script([7, 8, 9, 10, 11], [], [12, 13])
    ids, mask = padded([[5] * 4, [5], [5] * 2], "left")
    assert scripted_model.generate(ids, attention_mask=mask, max_new_tokens=4) == [[7, 8, 9, 10], [], [12, 13]]
    # A sequence that has ended is at position -1, which is skipped.
    assert [positions[:3].tolist() for _, positions in language.decodes] == [[4, -1, 2], [5, -1, 3], [6, -1, -1]]
    reasons = {piece.index: piece.finish_reason for piece in scripted_model.stream(ids, attention_mask=mask)}
    assert reasons == {0: "eos", 1: "eos", 2: "eos"}


# Caches


def generated(model: Share4V, ids: list[int], images: np.ndarray | None = None, **settings: object) -> list[int]:
    return model.generate(np.array([ids]), images, **settings)[0]


@pytest.mark.usefixtures("shared_graphs_here")
@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_prompts_of_about_one_chunk_equal_transformers(small: Pair, length: int) -> None:
    reference, model = small
    ids = reference.text(length)
    images = reference.images(0)
    assert [generated(model, ids, max_new_tokens=12)] == reference.generate([ids], images, max_new_tokens=12)


def watch_prefill(model: Share4V, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """Return a list that receives (number of computed tokens, bits of the logits) for every prefill step."""
    decoder, steps = type(model.language_model.new_cached(1, CHUNK)), []
    prefill = decoder.prefill

    def watched(self: object, embeds: Tensor, positions: np.ndarray, *rest: np.ndarray) -> Tensor:
        logits = prefill(self, embeds, positions, *rest)
        steps.append((int((positions >= 0).sum()), logits.asnumpy().tobytes()))
        return logits

    monkeypatch.setattr(decoder, "prefill", watched)
    return steps


@pytest.mark.usefixtures("shared_graphs_here")
def test_a_reused_cache_gives_the_same_bits_with_less_work(small: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = small
    image, other = reference.images(1), reference.images(1)
    start = [1, IMAGE, *reference.text(140)]
    questions = [[*start, *reference.text(9)], [*start, *reference.text(70)], [*start[:100], *reference.text(60)]]
    asked = [(question, image) for question in questions] + [(questions[0], item) for item in (other, image, image)]
    cache, steps = model.new_cache(1, 256), watch_prefill(model, monkeypatch)
    answers, work, bits = [], [], []
    for question, pixels in asked:
        steps.clear()
        answers.append(generated(model, question, pixels, past_key_values=cache, max_new_tokens=6))
        work.append(sum(tokens for tokens, _ in steps))
        bits.append(steps[-1][1])
    # Cached: two chunks of the second prompt, one of the third; none with another image or after it; then all chunks.
    lengths = [len(reference.expand(question)) for question in questions]
    assert lengths == [154, 215, 163]
    assert work == [154, 215 - 2 * CHUNK, 163 - CHUNK, 154, 154, 154 - 2 * CHUNK]
    del cache  # what was reused is not needed any more, so its graphs may compute without reuse
    fresh = model.new_cache(1, 256)
    for (question, pixels), answer, end in zip(asked, answers, bits, strict=True):
        steps.clear()
        fresh.begin()  # discards the previous question
        assert generated(model, question, pixels, past_key_values=fresh, max_new_tokens=6) == answer
        assert sum(tokens for tokens, _ in steps) == len(reference.expand(question))
        assert steps[-1][1] == end


@pytest.mark.usefixtures("shared_graphs_here")
def test_the_pool_of_the_model_reuses_the_last_prompt(small: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = small
    ids, steps = reference.text(150), watch_prefill(model, monkeypatch)

    def work() -> int:
        return sum(tokens for tokens, _ in steps)

    first = generated(model, ids, max_new_tokens=5)
    assert work() == 150
    assert generated(model, ids, max_new_tokens=5) == first and work() == 150 + 22
    model.forget_values()  # as after training: earlier results must not be used
    assert generated(model, ids, max_new_tokens=5) == first and work() == 150 + 22 + 150


@pytest.mark.usefixtures("shared_graphs_here")
def test_one_cache_serves_batches_of_different_sizes(small: Pair) -> None:
    reference, model = small
    cache = model.new_cache(4, 128)
    texts = [reference.text(length) for length in (70, 20, 90)]
    alone = [generated(model, text, max_new_tokens=6) for text in texts]
    ids, mask = padded(texts, "right")
    settings = {"past_key_values": cache, "max_new_tokens": 6}
    assert model.generate(ids, attention_mask=mask, **settings) == alone
    assert generated(model, texts[0], **settings) == alone[0]
    assert model.generate(ids[::-1], attention_mask=mask[::-1], **settings) == alone[::-1]
    assert model.generate(ids[:2], attention_mask=mask[:2], num_beams=1, **settings) == alone[:2]


def test_a_deleted_cache_frees_its_graphs(small_cells: Pair) -> None:
    """MindSpore never frees what mindspore.jit compiles, including the memory of a cache; our graphs must be freed."""
    from mindspore.common.api import ms_compile_cache

    reference, model = small_cells
    generated(model, [1, IMAGE, 5], reference.images(1), max_new_tokens=2)
    before = set(ms_compile_cache)
    cache = model.new_cache(1, 32)
    generated(model, [1, IMAGE, 5], reference.images(1), past_key_values=cache, max_new_tokens=2)
    graphs = [weakref.ref(graph) for graph in (cache.decoder._prefill, cache.decoder._decode, cache.decoder.caches)]
    assert set(ms_compile_cache) == before
    del cache
    gc.collect()
    assert [graph() for graph in graphs] == [None, None, None]


@pytest.mark.usefixtures("shared_graphs_here")
def test_weights_that_are_not_finite_raise_an_error_and_the_cache_stays_usable(small_cells: Pair) -> None:
    reference, model = small_cells
    prompt, settings = reference.text(70), {"past_key_values": model.new_cache(1, 128), "max_new_tokens": 4}
    weight = model.language_model.model.layers[0].self_attn.v_proj.weight
    before, wanted = weight.asnumpy().copy(), generated(model, prompt[:5], **settings)
    ops.assign(weight, Tensor(np.full_like(before, np.nan)))
    model.forget_values()
    with pytest.raises(FloatingPointError, match="logits are not finite numbers"):
        generated(model, prompt, **settings)
    ops.assign(weight, Tensor(before))
    # Positions after the end of this prompt held NaNs, and masked attention multiplies them by 0, which is NaN.
    assert generated(model, prompt[:5], **settings) == wanted


def test_replaced_weights_are_used_after_reset_caches(small_cells: Pair) -> None:
    """Graphs of MindSpore 2.7 still read the old memory of a parameter that was replaced."""
    reference, shared = small_cells
    model = copy_of(shared)  # whose graphs nobody else needs
    prompt, images = [*reference.text(70), IMAGE], reference.images(1)
    settings = {"past_key_values": model.new_cache(1, 128), "max_new_tokens": 8}
    weights = model.mm_projector[0].weight, model.language_model.model.layers[0].mlp.up_proj.weight
    before = [weight.asnumpy().copy() for weight in weights]
    answers = [generated(model, prompt, images, **settings)]
    for scale in (-3, 1):
        for weight, value in zip(weights, before, strict=True):
            weight.set_data(Tensor(scale * value))
        model.reset_caches()
        answers.append(generated(model, prompt, images, **settings))
        logits = model(np.array([prompt + answers[-1]]), images).logits.asnumpy()[0]
        first = len(reference.expand(prompt)) - 1
        assert logits[first : first + len(answers[-1])].argmax(-1).tolist() == answers[-1]
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.usefixtures("shared_graphs_here")
def test_generation_does_not_rename_parameters(small_cells: Pair) -> None:
    reference, model = small_cells
    generated(model, [1, IMAGE], reference.images(1), max_new_tokens=2)
    model.vision_tower(Tensor(reference.images(1)))
    assert all(name == parameter.name for name, parameter in model.parameters_and_names())


# Kinds of inputs


@pytest.mark.usefixtures("shared_graphs_here")
def test_embeddings_give_the_same_answer_as_ids(small: Pair) -> None:
    reference, model = small
    ids = [*reference.text(20), IMAGE, *reference.text(20)]
    images = reference.images(1)
    plan = plan_merge(np.array([ids]), None, 1, reference.num_image_tokens)
    tokens = model.language_model.embed(Tensor(np.maximum([ids], 0).astype(np.int32)))
    embeds = model.merge(tokens, model.encode_images(images), Tensor(plan.index))
    assert embeds.shape[1] == len(reference.expand(ids))
    np.testing.assert_array_equal(
        model(inputs_embeds=embeds).logits.asnumpy(), model(np.array([ids]), images).logits.asnumpy()
    )
    wanted = generated(model, ids, images, max_new_tokens=10)
    assert model.generate(inputs_embeds=embeds, max_new_tokens=10) == [wanted]
    assert model.generate(inputs_embeds=embeds.asnumpy(), max_new_tokens=10) == [wanted]


@pytest.mark.usefixtures("shared_graphs_here")
def test_one_placeholder_per_patch_as_in_transformers_gives_the_same_answer(small: Pair) -> None:
    reference, model = small
    short = [*reference.text(5), IMAGE, *reference.text(2), IMAGE]
    patches = reference.num_image_tokens
    written = [item for part in short for item in ([IMAGE] * patches if part == IMAGE else [part])]
    images = reference.images(2)
    assert generated(model, written, images, max_new_tokens=10) == generated(model, short, images, max_new_tokens=10)


@pytest.mark.usefixtures("shared_graphs_here")
def test_inputs_may_be_tensors_lists_or_arrays(small: Pair) -> None:
    reference, model = small
    ids, images = [[1, 5, IMAGE, 9]], reference.images(1)
    wanted = model.generate(np.array(ids), images, max_new_tokens=4)
    assert model.generate(ids, images.tolist(), max_new_tokens=4) == wanted
    assert model.generate(Tensor(ids), Tensor(images), attention_mask=[[1, 1, 1, 1]], max_new_tokens=4) == wanted


@pytest.mark.usefixtures("shared_graphs_here")
def test_a_sampled_sequence_is_the_same_in_a_batch_and_by_itself(small: Pair) -> None:
    reference, model = small
    texts = [reference.text(length) for length in (12, 5, 9)]
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 20, "top_p": 0.95, "max_new_tokens": 12}
    alone = [generated(model, text, seed=11, **settings) for text in texts]
    ids, mask = padded(texts, "left")
    assert model.generate(ids, attention_mask=mask, seed=11, **settings) == alone
    assert model.generate(ids, attention_mask=mask, seed=12, **settings) != alone
    greedy = [generated(model, text, max_new_tokens=12) for text in texts]
    assert greedy != alone
    assert [generated(model, text, do_sample=True, temperature=0, max_new_tokens=12) for text in texts] == greedy


# Invalid arguments


def refused(model: Share4V, message: str, error: type = ValueError, **arguments: object) -> None:
    with pytest.raises(error, match=message):
        model.generate(**{"input_ids": np.array([[1, 5]]), **arguments})


def test_errors_of_invalid_inputs_say_what_was_received_and_expected(small: Pair) -> None:
    reference, model = small
    image = reference.images(1)
    refused(model, "id 97; the vocabulary goes from 0 to 96", input_ids=np.array([[1, 97]]))
    refused(model, "id -1; the vocabulary goes from 0 to 96", input_ids=np.array([[1, -1]]))
    refused(model, "the prompts name 0 images .* and 1 images are given", pixel_values=image)
    refused(model, "the prompts name 1 images .* and 0 images are given", input_ids=np.array([[1, IMAGE]]))
    refused(
        model, r"pixel_values must be \[N, 3, 28, 28\], got \[1, 3, 29, 28\]", pixel_values=np.zeros((1, 3, 29, 28))
    )
    refused(model, r"pixel_values must be \[N, 3, 28, 28\], got \[3, 28, 28\]", pixel_values=image[0])
    refused(model, "input_ids or inputs_embeds must be given", input_ids=None)
    refused(model, "give either inputs_embeds, or input_ids", inputs_embeds=np.zeros((1, 2, 48)))
    refused(
        model, r"inputs_embeds must be \[B, T, 48\], got \[2, 48\]", input_ids=None, inputs_embeds=np.zeros((2, 48))
    )
    refused(
        model,
        r"inputs_embeds must be \[B, T, 48\], got \[1, 2, 40\]",
        input_ids=None,
        inputs_embeds=np.zeros((1, 2, 40)),
    )
    refused(model, r"attention_mask has shape \(1, 3\)", attention_mask=np.ones((1, 3)))
    refused(model, r"input_ids must be \[batch, length\]", input_ids=np.array([1, 5]))


def test_errors_of_invalid_settings_name_them(small: Pair, pair_of: Callable[..., Pair]) -> None:
    _, model = small
    refused(model, "max_new_tokens must be an integer of at least 1, got 0", max_new_tokens=0)
    refused(model, r"min_new_tokens \(9\) must not exceed max_new_tokens \(3\)", max_new_tokens=3, min_new_tokens=9)
    refused(model, "num_beams must be an integer of at least 1, got 0", num_beams=0)
    refused(model, "num_beams and do_sample cannot be combined", num_beams=2, do_sample=True)
    refused(model, "num_beams and stop strings cannot be combined", num_beams=2, stop="x")
    refused(model, "each stop string must be a string of at least one character", stop=["a", ""])
    refused(model, "temperature must be a number, 0 or more, got -1", temperature=-1)
    refused(
        model,
        "has a capacity of 1 sequences of 16 tokens, but 1 of 18 are needed",
        past_key_values=model.new_cache(1, 16),
        max_new_tokens=16,
    )
    refused(model, "must come from model.new_cache", TypeError, past_key_values=((1, 2),))
    other = pair_of("odd-grouped-gelu")[1]
    refused(model, "belong to another model", past_key_values=other.new_cache(1, 64))
