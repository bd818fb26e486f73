"""Share4V against transformers' LlavaForConditionalGeneration, with weights in every published format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.backends import BACKENDS
from helpers.llava import IMAGE, SHAPES, Reference, padded
from helpers.published_formats import DTYPES, write_llava, write_llava_in_memory_names, write_original
from mindspore import Tensor

from mindone.models.share4v import Share4V

Pair = tuple[Reference, Share4V]
TOLERANCE = 5e-4
NO_IMAGES = 0
SIDES = ("left", "right")

pytestmark = pytest.mark.usefixtures("shared_graphs")


def prompts_of(reference: Reference) -> list[tuple[list[int], int]]:
    """Return prompts of different lengths with one, two and no images, each with its number of images."""
    rng = np.random.default_rng(7)

    def words(count: int) -> list[int]:
        return [1, *rng.integers(3, reference.image_token, count).tolist()]

    return [
        ([*words(4), IMAGE, *words(7)], 1),
        ([*words(2), IMAGE, *words(3), IMAGE, *words(1)], 2),
        (words(10), NO_IMAGES),
    ]


def pictures(reference: Reference) -> np.ndarray:
    size = reference.model.config.vision_config.image_size
    return np.random.default_rng(8).standard_normal((3, 3, size, size)).astype(np.float32)


def split(reference: Reference) -> list[tuple[list[int], np.ndarray]]:
    """Return each prompt with its own images."""
    images, taken, pairs = pictures(reference), 0, []
    for prompt, count in prompts_of(reference):
        pairs.append((prompt, images[taken : taken + count]))
        taken += count
    return pairs


def logits_of(model: Share4V, prompt: list[int], images: np.ndarray) -> np.ndarray:
    return model(input_ids=np.array([prompt]), pixel_values=images).logits.asnumpy()[0]


def generated(model: Share4V, prompt: list[int], images: np.ndarray, **settings: object) -> list[int]:
    return model.generate(input_ids=np.array([prompt]), pixel_values=images, **settings)[0]


def is_dynamic(model: Share4V) -> bool:
    scaling = model.config.text_config.rope_scaling
    return scaling is not None and scaling.rope_type == "dynamic"


def test_vision_features_equal(pair: Pair) -> None:
    reference, model = pair
    images = pictures(reference)
    ours = model.vision_tower(Tensor(images)).asnumpy()
    np.testing.assert_allclose(ours, reference.vision_features(images), rtol=0, atol=TOLERANCE)


def test_projected_features_equal(pair: Pair) -> None:
    reference, model = pair
    images = pictures(reference)
    np.testing.assert_allclose(
        model.encode_images(images).asnumpy(), reference.projected(images), rtol=0, atol=TOLERANCE
    )


def test_logits_equal_at_every_position(pair: Pair) -> None:
    reference, model = pair
    for prompt, images in split(reference):
        wanted = reference.logits(prompt, images)
        assert wanted.std() > 1  # almost constant logits would make the comparison meaningless
        np.testing.assert_allclose(logits_of(model, prompt, images), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("side", SIDES)
def test_logits_of_a_padded_batch_equal_those_of_its_members(pair: Pair, side: str) -> None:
    reference, model = pair
    ids, mask = padded([prompt for prompt, _ in prompts_of(reference)], side)
    output = model(input_ids=ids, attention_mask=mask, pixel_values=pictures(reference))
    for row, (prompt, images) in enumerate(split(reference)):
        is_text = output.attention_mask[row] == 1
        positions = np.flatnonzero(is_text)
        assert positions[0] == 0 if side == "right" else positions[-1] == len(is_text) - 1
        np.testing.assert_allclose(
            output.logits.asnumpy()[row, is_text], reference.logits(prompt, images), rtol=0, atol=TOLERANCE
        )


def test_64_greedy_ids_equal_one_by_one_and_in_padded_batches(pair: Pair) -> None:
    reference, model = pair
    wanted = [reference.generate([prompt], images, max_new_tokens=64)[0] for prompt, images in split(reference)]
    assert max(map(len, wanted)) == 64 and max(len(set(ids)) for ids in wanted) > 10
    assert [generated(model, prompt, images, max_new_tokens=64) for prompt, images in split(reference)] == wanted
    prompts = [prompt for prompt, _ in prompts_of(reference)]
    for side in SIDES:
        ids, mask = padded(prompts, side)
        batch = model.generate(input_ids=ids, attention_mask=mask, pixel_values=pictures(reference), max_new_tokens=64)
        assert batch == wanted
    if not is_dynamic(model):  # in transformers a sequence then depends on the longest one of its batch
        assert reference.generate(prompts, pictures(reference), max_new_tokens=64) == wanted


def test_dynamic_rope_equal_beyond_the_trained_length(pair_of: Callable[..., Pair], backend: str) -> None:
    reference, model = pair_of("dynamic-rope", backend)
    trained = model.config.text_config.max_position_embeddings
    prompt = [1, *reference.text(2 * trained)]
    images = pictures(reference)[:0]
    np.testing.assert_allclose(
        logits_of(model, prompt, images), reference.logits(prompt, images), rtol=0, atol=TOLERANCE
    )
    wanted = reference.generate([prompt], images, max_new_tokens=24)
    assert [generated(model, prompt, images, max_new_tokens=24)] == wanted
    ids, mask = padded([prompt, prompt[: trained // 2]], "right")
    output = model(input_ids=ids, attention_mask=mask)
    short = output.logits.asnumpy()[1][output.attention_mask[1] == 1]
    np.testing.assert_allclose(short, reference.logits(prompt[: trained // 2], images), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", [name for name in SHAPES if name != "dynamic-rope"]
)  # whose cached keys keep their rotation
def test_cached_decoding_equals_the_uncached_pass(name: str, pair_of: Callable[..., Pair], backend: str) -> None:
    reference, model = pair_of(name, backend)
    prompt, images = split(reference)[0]
    ids = generated(model, prompt, images, max_new_tokens=20)
    logits = logits_of(model, prompt + ids, images)
    first = len(reference.expand(prompt)) - 1
    assert len(ids) > 4
    assert logits[first : first + len(ids)].argmax(-1).tolist() == ids


def test_ids_around_an_image_are_used(usual: Pair) -> None:
    """mm_use_im_start_end puts special tokens before and after each placeholder."""
    reference, model = usual
    start, end = reference.image_token - 2, reference.image_token - 1
    prompt, images = [1, 5, start, IMAGE, end, 9, start, IMAGE, end, 7], pictures(reference)[:2]
    np.testing.assert_allclose(
        logits_of(model, prompt, images), reference.logits(prompt, images), rtol=0, atol=TOLERANCE
    )


@pytest.fixture(scope="module")
def without_penalty(shared_graphs: None, usual: Pair) -> list[list[int]]:
    """Our answers of 40 tokens, on every backend."""
    reference, model = usual
    return [generated(model, prompt, images, max_new_tokens=40) for prompt, images in split(reference)]


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_equal(usual: Pair, without_penalty: list[list[int]], penalty: float) -> None:
    reference, model = usual
    settings = {"max_new_tokens": 40, "repetition_penalty": penalty}
    ours = [generated(model, prompt, images, **settings) for prompt, images in split(reference)]
    assert ours == [reference.generate([prompt], images, **settings)[0] for prompt, images in split(reference)]
    assert ours != without_penalty


def test_min_new_tokens_equal(usual: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = usual
    prompt, images = split(reference)[0]
    end = reference.generate([prompt], images, max_new_tokens=8)[0][3]
    set_eos(model, end, monkeypatch)
    lengths = []
    for minimum in (0, 4, 12):
        settings = {"max_new_tokens": 20, "min_new_tokens": minimum}
        ours = generated(model, prompt, images, **settings)
        # As in transformers, a sequence may end only after this number of new tokens.
        assert ours == reference.generate([prompt], images, eos_token_id=end, **settings)[0]
        lengths.append(len(ours))
    assert lengths[0] < lengths[1] < lengths[2] or lengths[1] == lengths[2] == 20


BEAMS = [
    {"num_beams": 2},
    {"num_beams": 2, "length_penalty": -1.0, "repetition_penalty": 0.8},
    {"num_beams": 3, "length_penalty": 2.0},
    {"num_beams": 3, "length_penalty": 0.0, "min_new_tokens": 6},
    {"num_beams": 4, "repetition_penalty": 1.4},
]


@pytest.mark.parametrize("settings", BEAMS, ids=str)
def test_beams_equal(settings: dict[str, float], usual: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    check_beams(usual, settings, monkeypatch)


@pytest.mark.parametrize("name", ["odd-grouped-gelu", "linear-rope"])
def test_beams_of_a_batch_equal(
    name: str, pair_of: Callable[..., Pair], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"num_beams": 3, "repetition_penalty": 1.2, "length_penalty": 0.5}
    reference, model = pair_of(name, backend)
    wanted = check_beams((reference, model), settings, monkeypatch)
    ids, mask = padded([prompt for prompt, _ in prompts_of(reference)], "left")
    batch = model.generate(ids, pictures(reference), attention_mask=mask, max_new_tokens=16, **settings)
    assert batch == wanted


def set_eos(model: Share4V, end: int | list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's answers end at other tokens than its config says."""
    text = replace(model.config.text_config, eos_token_id=end)
    monkeypatch.setattr(model, "config", replace(model.config, text_config=text))


def check_beams(pair: Pair, settings: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Compare searches whose beams end at different lengths; return the answers and leave the end ids set."""
    (reference, model), pairs = pair, split(pair[0])
    settings = {"max_new_tokens": 16, **settings}
    free = [reference.generate([prompt], images, eos_token_id=-1, **settings)[0] for prompt, images in pairs]
    ends = [free[0][9], free[1][3]]
    wanted = [reference.generate([prompt], images, eos_token_id=ends, **settings)[0] for prompt, images in pairs]
    assert wanted != free
    set_eos(model, ends, monkeypatch)
    assert [generated(model, prompt, images, **settings) for prompt, images in pairs] == wanted
    return wanted


FORMATS = [
    ("odd-grouped-gelu", write_original, "float16"),
    ("odd-grouped-gelu", write_llava, "bfloat16"),
    ("odd-grouped-gelu", write_llava_in_memory_names, "float32"),
    ("head-size-tied-biased", write_original, "bfloat16"),
    ("head-size-tied-biased", write_llava, "float32"),
    ("head-size-tied-biased", write_llava_in_memory_names, "float16"),
]


@pytest.mark.parametrize("name, write, dtype", FORMATS)
def test_every_format_and_dtype_of_weights_gives_the_same_logits(
    name: str, write: Callable[..., Path], dtype: str, pair_of: Callable[..., Pair], backend: str, tmp_path: Path
) -> None:
    reference, _ = pair_of(name)
    model = Share4V.from_pretrained(write(reference, tmp_path / "model", dtype), **BACKENDS[backend])
    prompt, images = split(reference)[1]
    with reference.rounded(DTYPES[dtype]):
        wanted = reference.logits(prompt, images)
    np.testing.assert_allclose(logits_of(model, prompt, images), wanted, rtol=0, atol=TOLERANCE)


def test_float16_weights_give_the_logits_of_rounded_weights(
    pair_of: Callable[..., Pair], backend: str, tmp_path: Path
) -> None:
    reference, _ = pair_of("odd-grouped-gelu")
    path = write_llava(reference, tmp_path, "float16")
    wide = {"kv_cache_dtype": "float32"} if backend == "kernels" else {}  # so that only the weights are rounded
    model = Share4V.from_pretrained(path, dtype="float16", **wide, **BACKENDS[backend])
    prompt, images = split(reference)[1]
    with reference.rounded(DTYPES["float16"]):
        np.testing.assert_allclose(
            logits_of(model, prompt, images), reference.logits(prompt, images), rtol=0, atol=TOLERANCE
        )
        wanted = reference.generate([prompt], images, max_new_tokens=16)[0]
    assert generated(model, prompt, images, max_new_tokens=16) == wanted


def test_a_saved_model_gives_the_same_logits(usual: Pair, backend: str, tmp_path: Path) -> None:
    reference, model = usual
    model.save_pretrained(tmp_path / "saved", max_shard_size="40KB")
    again = Share4V.from_pretrained(tmp_path / "saved", **BACKENDS[backend])
    assert again.config == replace(model.config, vision_tower=None, torch_dtype="float32")
    prompt, images = split(reference)[1]
    np.testing.assert_array_equal(logits_of(again, prompt, images), logits_of(model, prompt, images))
