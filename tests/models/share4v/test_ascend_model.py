"""The whole model on an Ascend of stand-ins, against the portable cells and against transformers, in float32.

Attention's stand-ins take float32 here, which the operators do not, so that what an argument got wrong is not lost in
rounding; tests/ascend has the same in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from helpers.ascend import PORTABLE, STAND_INS, fused, portable, register
from helpers.backends import CELLS
from helpers.llava import IMAGE, SHAPES, Reference, Shape, padded
from helpers.published_formats import write_original
from mindspore import Tensor

from mindone.models.share4v import Share4V
from mindone.models.share4v.language.llama import LlamaForCausalLM, _tokens_first
from mindone.models.share4v.nn.device_operators import DeviceOperators
from mindone.models.share4v.nn.fused import Attention, FlashAttention
from mindone.models.share4v.training.labels import IGNORE_INDEX
from mindone.models.share4v.training.loss import CaptionLoss, make_batch
from mindone.models.share4v.vision.clip import CLIPVisionTower

# Compiling takes as long as there are layers: two in one language model, to tell their caches apart, else one is used.
VISION = {"hidden_size": 64, "image_size": 28, "patch_size": 14, "num_hidden_layers": 2}
HEADS_OF_18 = SHAPES["head-size-tied-biased"]
# Name: the shape, and whether the language model's attention is one that the operators take.
MODELS: dict[str, tuple[Shape, bool]] = {
    "grouped": (Shape(VISION, {"hidden_size": 64, "num_key_value_heads": 2}), True),
    "one-key-head-dynamic": (
        Shape(
            VISION,
            {
                "head_dim": 32,
                "num_key_value_heads": 1,
                "num_hidden_layers": 1,
                "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
                "max_position_embeddings": 32,
            },
            strategy="full",
            seed=4,
        ),
        True,
    ),
    "heads-of-18": (replace(HEADS_OF_18, text={**HEADS_OF_18.text, "num_hidden_layers": 1}), False),
}
Trio = tuple[Reference, Share4V, Share4V]

pytestmark = pytest.mark.usefixtures("shared_graphs")


@pytest.fixture(scope="module", params=MODELS)
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    """transformers' model, ours on stand-ins, ours on portable cells; of one checkpoint."""
    register()
    reference = Reference(MODELS[request.param][0])
    path = write_original(reference, tmp_path_factory.mktemp("model"))
    return reference, Share4V.from_pretrained(path, **STAND_INS), Share4V.from_pretrained(path, **PORTABLE)


@pytest.fixture
def prompts(trio: Trio) -> tuple[dict[str, np.ndarray], list[list[int]]]:
    """A batch of texts of unequal length, two of them with images, one longer than a chunk; and its members."""
    reference = trio[0]
    reference.reseed(7)
    long = 120 if reference.model.config.text_config.max_position_embeddings > 128 else 9
    texts = [
        [1, IMAGE, *reference.text(long), IMAGE],
        [1],
        [1, *reference.text(6), IMAGE, *reference.text(4)],
    ]
    ids, mask = padded(texts, "right")
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": reference.images(3)}, texts


def members(batch: dict[str, np.ndarray], texts: list[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
    taken = 0
    for text in texts:
        count = text.count(IMAGE)
        yield text, batch["pixel_values"][taken : taken + count]
        taken += count


def cells_of(model: Share4V, kind: type) -> int:
    return sum(type(cell) is kind for _, cell in model.cells_and_names())


def test_stand_ins_are_used_where_the_documentation_lets_them(trio: Trio, request: pytest.FixtureRequest) -> None:
    fits = MODELS[request.node.callspec.params["trio"]][1]
    _, ours, portable_model = trio
    attention = ours.language_model.model.layers[0].self_attn
    assert type(attention.attend) is (FlashAttention if fits else Attention)
    assert (attention.attend_one is not None) == fits
    assert ours.language_model.new_cached(1, 64).uses_slot_counts == fits
    assert not portable_model.language_model.new_cached(1, 64).uses_slot_counts
    assert attention.rotate_query.is_fused and attention.rotate_key.is_fused  # heads of 18 are even
    assert ours.language_model.model.norm.is_fused
    assert type(ours.vision_tower.vision_model.encoder.layers[0].self_attn.attend) is FlashAttention
    assert cells_of(portable_model, FlashAttention) == 0 < cells_of(portable_model, Attention)


def test_logits_equal(trio: Trio, prompts: tuple[dict[str, np.ndarray], list[list[int]]]) -> None:
    (reference, ours, portable_model), (batch, texts) = trio, prompts
    got, wanted = ours(**batch), portable_model(**batch).logits.asnumpy()
    for row, (text, images) in enumerate(members(batch, texts)):
        length = int(got.attention_mask[row].sum())
        logits = got.logits.asnumpy()[row, :length]
        np.testing.assert_allclose(logits, wanted[row, :length], rtol=0, atol=2e-5)
        np.testing.assert_allclose(logits, reference.logits(text, images), rtol=0, atol=5e-4)


def test_cached_logits_equal(trio: Trio) -> None:
    """A prefill whose texts end in different chunks, an idle text, and steps in which a text falls idle.

    The cache has the size of that of the answers below, which use it again.
    """
    capacity = 256 if trio[1].config.text_config.max_position_embeddings > 128 else 128
    rng, results = np.random.default_rng(3), []
    hidden = trio[1].config.text_config.hidden_size
    embeds = rng.standard_normal((4, 128, hidden)).astype(np.float32)
    totals = np.array([100, 1, 64, 1])
    for model in trio[1:]:
        cached = model.language_model.new_cached(4, capacity)
        logits = []
        for first in (0, 64):
            positions = first + np.arange(64)[None].repeat(4, 0)
            inside = (positions < totals[:, None]) & (np.arange(4) < 3)[:, None]
            last = np.clip(totals - 1 - first, 0, 63)
            step = cached.prefill(Tensor(embeds[:, first : first + 64]), np.where(inside, positions, -1), totals, last)
            logits.append(step.asnumpy()[(totals > first) & (totals <= first + 64) & (np.arange(4) < 3)])
        for number in range(3):
            positions = np.array([100 + number, 1 + number, -1 if number else 64, -1])
            logits.append(cached.decode(np.array([5, 6, 7, 8]), positions).asnumpy()[positions >= 0])
        results.append(np.concatenate(logits))
    assert np.abs(results[1]).max() > 1
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=2e-5)


def test_greedy_ids_equal(trio: Trio, prompts: tuple[dict[str, np.ndarray], list[list[int]]]) -> None:
    """Prefill by chunks and steps of decoding, texts at positions of their own, some done before others."""
    (reference, ours, portable_model), (batch, texts) = trio, prompts
    room = reference.model.config.text_config.max_position_embeddings
    count = 40 if room > 128 else 12
    ids = ours.generate(**batch, max_new_tokens=count)
    assert ids == portable_model.generate(**batch, max_new_tokens=count)
    if room > 128:  # transformers would stretch every text by the longest
        alone = [reference.generate([text], images, max_new_tokens=count)[0] for text, images in members(batch, texts)]
        assert ids == alone


def test_padding_moves_behind_the_tokens() -> None:
    """A scatter writes consecutive slots, so tokens must be next to each other, wherever the padding was."""
    embeds = Tensor(np.arange(24, dtype=np.float32).reshape(3, 4, 2))
    positions = np.array([[-1, -1, 0, 1], [5, 6, -1, -1], [-1, -1, -1, -1]])
    moved, ordered, last = _tokens_first(embeds, positions, np.array([3, 1, 0]))
    assert ordered.tolist() == [[0, 1, -1, -1], [5, 6, -1, -1], [-1] * 4] and last.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(moved.asnumpy()[0], embeds.asnumpy()[0][[2, 3, 0, 1]])
    np.testing.assert_array_equal(moved.asnumpy()[1:], embeds.asnumpy()[1:])
    assert _tokens_first(embeds, ordered, last)[0] is embeds


def never(*arguments: object, **options: object) -> None:
    raise AssertionError("an operator got more texts than it takes")


@pytest.mark.parametrize("trio", ["grouped"], indirect=True)
def test_a_batch_that_is_too_large_is_left_to_the_portable_cells(trio: Trio) -> None:
    """Limits are lowered to one text: two are more."""
    operators = fused("float32")
    operators = replace(
        operators,
        flash_attention_score=never,
        incre_flash_attention=never,
        flash_limits=replace(operators.flash_limits, max_batch=1),
        incremental_limits=replace(operators.incremental_limits, max_batch=1),
    )
    whole = trio[2].config
    config = replace(whole, text_config=replace(whole.text_config, num_hidden_layers=1))  # for the time of compiling
    wanted, ours = (LlamaForCausalLM(config, operators=each) for each in (portable(operators), operators))
    weights = dict(trio[2].language_model.parameters_and_names())
    for model in (wanted, ours):
        for name, mine in model.parameters_and_names():
            mine.set_data(Tensor(weights[name].asnumpy()))
    assert [name for name, _ in ours.parameters_and_names()] == [name for name, _ in wanted.parameters_and_names()]
    assert type(ours.attend) is FlashAttention and type(wanted.attend) is Attention
    embeds = np.random.default_rng(2).standard_normal((2, 64, trio[2].config.text_config.hidden_size))
    embeds = Tensor(embeds.astype(np.float32))
    logits = []
    for model in (ours, wanted):
        cached = model.new_cached(2, 64)
        positions = np.arange(64)[None].repeat(2, 0)
        first = cached.prefill(embeds, np.where(positions < 60, positions, -1), np.full(2, 60), np.full(2, 59))
        step = cached.decode(np.array([5, 6]), np.array([60, 60]))
        logits.append(np.stack([model(embeds).asnumpy()[:, -1], first.asnumpy(), step.asnumpy()]))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=2e-5)


def test_loss_and_gradients_equal(trio: Trio) -> None:
    """Training compiles the same cells, over whole texts that share one mask."""
    reference, ours, portable_model = trio
    reference.reseed(1)
    ids = np.array([[1, IMAGE, *reference.text(8)], [1, *reference.text(8), IMAGE]])
    labels = np.where(np.arange(10) > 3, ids, IGNORE_INDEX)
    labels[labels == IMAGE] = IGNORE_INDEX
    batch = make_batch(ours, reference.images(2), ids, np.ones_like(ids), labels)
    found: list[tuple[float, dict[str, np.ndarray]]] = []
    for model in (ours, portable_model):
        loss = CaptionLoss(model, *batch.index.shape)
        weights = ms.ParameterTuple(model.language_model.trainable_params() + model.mm_projector.trainable_params())
        value, gradients = ms.value_and_grad(loss, None, weights)(
            batch.pixel_values, batch.input_ids, batch.index, batch.targets
        )
        named = {weight.name: gradient.asnumpy() for weight, gradient in zip(weights, gradients, strict=True)}
        found.append((float(value.asnumpy()), named))
    assert abs(found[0][0] - found[1][0]) < 1e-5
    for name, gradient in found[1][1].items():
        np.testing.assert_allclose(found[0][1][name], gradient, rtol=0, atol=1e-4 * np.abs(gradient).max() + 1e-7)


@pytest.mark.parametrize("make", [LlamaForCausalLM, CLIPVisionTower])
def test_the_native_cells_of_a_cpu_are_the_portable_ones(make: Callable[..., Any], trio: Trio) -> None:
    config = trio[1].config
    cells = [type(cell) for _, cell in make(config).cells_and_names()]
    assert FlashAttention not in cells
    assert cells == [type(cell) for _, cell in make(config, "float32", portable(fused("float32"))).cells_and_names()]
    assert make(config, "float16", DeviceOperators()).activations == ms.float32


def test_names_of_weights_are_the_same_on_every_device(trio: Trio) -> None:
    names = [[name for name, _ in model.parameters_and_names()] for model in trio[1:]]
    assert names[0] == names[1]
    assert names[0] == [name for name, _ in Share4V(trio[1].config, **CELLS).parameters_and_names()]
