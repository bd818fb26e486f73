"""The model on the CPU kernels, in every type of weights: one result to the bit, however its rows are computed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.backends import CELLS
from helpers.llava import IMAGE, SHAPES, Reference, padded
from helpers.published_formats import write_llava
from mindspore import Tensor
from mindspore.nn.cell import _cell_graph_executor

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.kv_cache import KVCache
from mindone.models.share4v.generation.prefill import prefill
from mindone.models.share4v.kernels.library import library
from mindone.models.share4v.kernels.packing import HEADER_BYTES, read_vector
from mindone.models.share4v.quantization import KERNEL_DTYPES

Pair = tuple[Reference, Share4V]
Texts = tuple[list[list[int]], np.ndarray]
SHAPE = "odd-grouped-gelu"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path]:
    reference = Reference(SHAPES[SHAPE])
    return reference, write_llava(reference, tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=KERNEL_DTYPES)
def model(request: pytest.FixtureRequest, stored: tuple[Reference, Path]) -> Share4V:
    """The same checkpoint in every type."""
    return Share4V.from_pretrained(stored[1], dtype=request.param)


@pytest.fixture(scope="module")  # the same for every test, in whatever order they run
def texts(stored: tuple[Reference, Path]) -> Texts:
    """Prompts of one token to some more than a chunk, with images in three of them; all their images in order."""
    reference, words = stored[0], Reference.text
    prompts = [
        [1, IMAGE, *words(reference, 6)],
        [1],
        [1, *words(reference, 29), IMAGE, IMAGE],
        [*words(reference, 61), IMAGE],
        words(reference, 5),
    ]
    return prompts, reference.images(4)


def split(texts: Texts) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield each prompt with its own images."""
    taken = 0
    for prompt in texts[0]:
        count = prompt.count(IMAGE)
        yield prompt, texts[1][taken : taken + count]
        taken += count


def logits_of(model: Share4V, prompt: list[int], images: np.ndarray) -> np.ndarray:
    return model(np.array([prompt]), images).logits.asnumpy()[0]


def last_logits(model: Share4V, texts: Texts, chunk: int | None = None) -> tuple[np.ndarray, KVCache]:
    """Return the logits of each text's last token through a cache, and the cache."""
    ids, mask = padded(texts[0], "left")
    prompts = model.prepare_inputs(ids, texts[1], mask)
    cache = model.new_cache(len(prompts), 256)
    cache.decoder.chunk = chunk or cache.decoder.chunk
    return prefill(prompts, cache, model.config.text_config), cache


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_has_the_bits_of_its_members(model: Share4V, texts: Texts, side: str) -> None:
    ids, mask = padded(texts[0], side)
    output = model(ids, texts[1], attention_mask=mask)
    for row, (prompt, images) in enumerate(split(texts)):
        mine = output.logits.asnumpy()[row, output.attention_mask[row] == 1]
        np.testing.assert_array_equal(mine, logits_of(model, prompt, images))
        assert np.isfinite(mine).all() and mine.std() > 0.5


def test_the_chunks_of_a_prefill_leave_no_trace(model: Share4V, texts: Texts) -> None:
    wanted = np.stack([logits_of(model, prompt, images)[-1] for prompt, images in split(texts)])
    for chunk in (None, 64, 7, 33):
        np.testing.assert_array_equal(last_logits(model, texts, chunk)[0], wanted)


def test_cached_steps_have_the_bits_of_the_uncached_pass(model: Share4V, texts: Texts) -> None:
    """Five texts side by side, each at a position of its own, against whole texts one by one."""
    steps, (logits, cache) = [], last_logits(model, texts)
    lengths = np.array([len(logits_of(model, prompt, images)) for prompt, images in split(texts)])
    for number in range(6):
        steps.append(logits)
        logits = cache.decoder.decode(logits.argmax(-1), lengths + number).asnumpy()
    ids = np.stack(steps, 1).argmax(-1)  # [5, 6]
    assert len(set(ids.ravel().tolist())) > 5
    for row, (prompt, images) in enumerate(split(texts)):
        whole = logits_of(model, [*prompt, *ids[row].tolist()], images)
        first = lengths[row] - 1
        np.testing.assert_array_equal(np.stack(steps, 1)[row], whole[first : first + 6])


def test_a_step_has_the_same_bits_beside_prompts_that_are_taken_in(model: Share4V, texts: Texts) -> None:
    """One run takes a token of some texts and a chunk of the others."""
    logits, cache = last_logits(model, texts)
    ids, lengths = logits.argmax(-1), np.array([len(logits_of(model, *pair)) for pair in split(texts)])
    wanted = cache.decoder.decode(ids, lengths).asnumpy()
    cache, new, prompt = last_logits(model, texts)[1], len(ids) - 1, np.arange(3, 14)
    shape = cache.batch_size, 16
    embeds, positions = np.zeros((*shape, model.config.text_config.hidden_size), np.float32), np.full(shape, -1)
    totals, last = np.ones(cache.batch_size, np.int64), np.zeros(cache.batch_size, np.int64)
    embeds[:new, 0] = model.language_model.embed(Tensor(ids[None, :new].astype(np.int32))).asnumpy()[0]
    positions[:new, 0], totals[:new] = lengths[:new], lengths[:new] + 1
    embeds[new, : len(prompt)] = model.language_model.embed(Tensor(prompt[None].astype(np.int32))).asnumpy()[0]
    positions[new, : len(prompt)], totals[new], last[new] = np.arange(len(prompt)), len(prompt), len(prompt) - 1
    step = cache.decoder.prefill(Tensor(embeds), positions, totals, last).asnumpy()
    np.testing.assert_array_equal(step[:new], wanted[:new])
    np.testing.assert_array_equal(step[new], logits_of(model, prompt.tolist(), texts[1][:0])[-1])


def test_threads_change_no_bit(model: Share4V, texts: Texts) -> None:
    logits, features = [], []
    try:
        for threads in (1, 2, 3):
            library().threads = threads
            model.forget_values()
            features.append(model.encode_images(texts[1]).asnumpy())
            logits.append(np.concatenate([logits_of(model, *pair) for pair in split(texts)]))
    finally:
        library().threads = 0
    for mine, of_images in zip(logits, features, strict=True):
        np.testing.assert_array_equal(mine, logits[0])
        np.testing.assert_array_equal(of_images, features[0])


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 3}], ids=str)
def test_a_batch_is_answered_as_its_members_are(model: Share4V, texts: Texts, settings: dict[str, int]) -> None:
    ids, mask = padded(texts[0], "left")
    settings = {"max_new_tokens": 10, **settings}
    alone = [model.generate([prompt], images, **settings)[0] for prompt, images in split(texts)]
    assert model.generate(ids, texts[1], attention_mask=mask, **settings) == alone
    assert len({tuple(answer) for answer in alone}) > 1


def cache_bytes(cache: KVCache, text: int) -> bytes:
    """Return all that a cache holds of a text."""
    memory = cache.decoder.cache
    scales = [] if memory.scales is None else [memory.scales[:, :, text]]
    return b"".join(part.tobytes() for part in (memory.keys[:, text], memory.values[:, text], *scales))


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "float16", "int8"])
def test_texts_that_are_done_are_left_alone(stored: tuple[Reference, Path], texts: Texts, kv_cache_dtype: str) -> None:
    model = Share4V.from_pretrained(stored[1], kv_cache_dtype=kv_cache_dtype)
    lengths = np.array([len(logits_of(model, prompt, images)) for prompt, images in split(texts)])
    logits = []
    for done in ([], [1, 3]):
        first, cache = last_logits(model, texts)
        before = [cache_bytes(cache, text) for text in range(5)]
        positions = np.where(np.isin(np.arange(5), done), -1, lengths)
        logits.append(cache.decoder.decode(first.argmax(-1), positions).asnumpy())
        changed = [cache_bytes(cache, text) != before[text] for text in range(5)]
        assert changed == [text not in done for text in range(5)]
    live = [0, 2, 4]
    np.testing.assert_array_equal(logits[1][live], logits[0][live])
    assert not logits[1][[1, 3]].any()  # not even the output layer was computed


# Key/value caches of other types


@pytest.mark.parametrize("kv_cache_dtype, error", [("float16", 0.01), ("int8", 0.15)])
def test_narrow_caches_give_nearly_the_logits_of_float32(
    stored: tuple[Reference, Path], texts: Texts, kv_cache_dtype: str, error: float
) -> None:
    wide, narrow = (Share4V.from_pretrained(stored[1], kv_cache_dtype=kind) for kind in ("float32", kv_cache_dtype))
    for prompt, images in split(texts):
        difference = logits_of(narrow, prompt, images) - logits_of(wide, prompt, images)
        assert np.isfinite(difference).all()
        assert 0 < np.abs(difference).max() < error
    assert len(cache_bytes(narrow.new_cache(1, 64), 0)) < 0.6 * len(cache_bytes(wide.new_cache(1, 64), 0))


def test_a_cache_of_an_unknown_type_or_for_cells_is_refused(stored: tuple[Reference, Path]) -> None:
    with pytest.raises(ValueError, match="kv_cache_dtype 'int4' is not supported: use one of float32, float16, int8"):
        Share4V.from_pretrained(stored[1], kv_cache_dtype="int4")
    with pytest.raises(ValueError, match="kv_cache_dtype 'float16' needs the CPU kernels"):
        Share4V.from_pretrained(stored[1], kv_cache_dtype="float16", **CELLS)
    with pytest.raises(ValueError, match="dtype 'int8' needs the CPU kernels"):
        Share4V.from_pretrained(stored[1], dtype="int8", **CELLS)


# Compilation and memory


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the cells that MindSpore has compiled since."""
    names: list[str] = []
    compile_graph = type(_cell_graph_executor).compile

    def watched(executor: object, cell: object, *arguments: object, **options: object) -> tuple[str, bool]:
        phase, is_new = compile_graph(executor, cell, *arguments, **options)
        if is_new:
            names.append(type(cell).__name__)
        return phase, is_new

    monkeypatch.setattr(type(_cell_graph_executor), "compile", watched)
    return names


def test_nothing_is_compiled(stored: tuple[Reference, Path], compiled: list[str]) -> None:
    """So the first prompt takes no longer than others, and models need not wait for each other's compilations."""
    reference, path = stored
    model = Share4V.from_pretrained(path, dtype="int8")
    for length, answer in ((1, 3), (63, 1), (64, 30), (200, 9), (400, 64)):
        model.generate([reference.text(length)], max_new_tokens=answer)
        model.generate([[IMAGE, *reference.text(length)]], reference.images(1), max_new_tokens=answer)
    list(map(model.encode_images, (reference.images(1), reference.images(3))))
    model([reference.text(300)])
    assert compiled == []


def test_a_dropped_cache_takes_its_memory_with_it(small_kernels: Pair) -> None:
    reference, model = small_kernels
    cache = model.new_cache(2, 64)
    model.generate([reference.text(9)], past_key_values=cache, max_new_tokens=2)
    memory = weakref.ref(cache.decoder.cache)
    del cache
    gc.collect()
    assert memory() is None


# Weights that change or break


@pytest.fixture
def small_kernels(pair_of: Callable[..., Pair]) -> Pair:
    return pair_of("small", "kernels")


def norm_weight(model: Share4V) -> np.ndarray:
    """Return the last norm's weight, where it lies in its block."""
    language = model.language_model
    block, size = language.array(language.names[-1]), model.config.text_config.hidden_size
    view = block[HEADER_BYTES : HEADER_BYTES + 4 * size].view(np.float32)
    np.testing.assert_array_equal(view, read_vector(block, "norms", 0, "weight", size))
    return view


def test_broken_weights_are_an_error_that_leaves_a_cache_whole(small_kernels: Pair) -> None:
    reference, model = small_kernels
    prompt, settings = reference.text(70), {"past_key_values": model.new_cache(1, 128), "max_new_tokens": 4}
    wanted, weight = model.generate([prompt[:5]], **settings), norm_weight(model)
    before = weight.copy()
    weight[:] = np.nan
    try:
        with pytest.raises(FloatingPointError, match="logits are not finite numbers"):
            model.generate([prompt], **settings)
        with pytest.raises(FloatingPointError, match="logits are not finite numbers"):
            model.generate([prompt], num_beams=2)
    finally:
        weight[:] = before
    model.forget_values()
    assert model.generate([prompt[:5]], **settings) == wanted


def test_blocks_that_were_replaced_count_after_forget(small_kernels: Pair) -> None:
    reference, model = small_kernels
    prompt, images = [*reference.text(70), IMAGE], reference.images(1)
    projector, name = model.mm_projector, model.mm_projector.names[-1]
    before, answers = projector.array(name), []
    for block in (before, before, before):
        changed = block.copy()
        if len(answers) == 1:
            bias = changed[HEADER_BYTES : HEADER_BYTES + 4 * model.config.text_config.hidden_size].view(np.float32)
            bias += np.linspace(-3, 3, bias.size, dtype=np.float32)
        projector.put(name, changed)
        model.reset_caches()
        answers.append(model.generate([prompt], images, max_new_tokens=8))
    assert answers[0] == answers[2] != answers[1]


def test_pixels_reach_the_kernels_as_they_are(small_kernels: Pair) -> None:
    """A tower takes tensors whose memory is laid out in any order."""
    reference, model = small_kernels
    images = reference.images(2)
    turned = np.ascontiguousarray(images.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert not turned.flags.c_contiguous
    np.testing.assert_array_equal(
        model.vision_tower(Tensor(turned)).asnumpy(), model.vision_tower(Tensor(images)).asnumpy()
    )
