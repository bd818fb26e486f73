"""Features of images: the same however many are encoded together, and not computed again for the last few."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.llava import IMAGE, Reference

from mindone.models.share4v import Share4V
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.kernels.component import IMAGE_BATCH_SIZES
from mindone.models.share4v.vision.features import pixel_digest

Pair = tuple[Reference, Share4V]


def watched(model: Share4V, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each run of the encoder takes from now on."""
    features, runs = model._features, []
    encode = features._encode

    def counting(pixels: np.ndarray) -> object:
        runs.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(features, "_encode", counting)
    return runs


@pytest.mark.parametrize("count", [1, 2, 8, 19])
def test_images_have_the_bits_they_have_alone(usual: Pair, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    reference, model = usual
    images, alone = reference.images(count), []
    for image in images:
        model.forget_values()
        alone.append(model.encode_images(image[None]).asnumpy()[0])
    model.forget_values()
    runs = watched(model, monkeypatch)
    np.testing.assert_array_equal(model.encode_images(images).asnumpy(), np.stack(alone))
    most = IMAGE_BATCH_SIZES[0] if model.packed_components() else 1
    assert runs == [most] * (count // most) + [1] * (count % most)


def test_the_last_few_images_are_not_encoded_again(usual: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, model = usual
    model.forget_values()
    a, b, *others = reference.images(9)
    runs = watched(model, monkeypatch)
    first = model.encode_images(np.stack([a, b, a])).asnumpy()
    assert sum(runs) == 2
    np.testing.assert_array_equal(first[0], first[2])
    np.testing.assert_array_equal(model.encode_images(np.stack([b, a])).asnumpy(), first[[1, 0]])
    assert sum(runs) == 2
    model.encode_images(np.stack(others))  # a was used after b, and seven came after it
    assert sum(runs) == 9
    model.encode_images(a[None])
    assert sum(runs) == 9
    model.encode_images(b[None])
    assert sum(runs) == 10
    model.forget_values()
    model.encode_images(b[None])
    assert sum(runs) == 11


def test_features_stand_in_for_pixels(usual: Pair, tokenizer: object) -> None:
    reference, model = usual
    model.tokenizer = tokenizer
    ids, images = np.array([[*reference.text(4), IMAGE, *reference.text(3), IMAGE]]), reference.images(2)
    batch = model.continuous_batch(2)
    settings = GenerationSettings(max_new_tokens=9)
    batch.join("pixels", model.prepare_inputs(ids, images), settings)
    batch.join("features", model.prepare_inputs(ids, image_features=model.encode_images(images)), settings)
    got = {}
    while len(batch):
        got |= {finished.request_id: finished.token_ids for finished in batch.step()}
    assert got["features"] == got["pixels"] == tuple(model.generate(ids, images, max_new_tokens=9)[0])


def test_features_that_do_not_fit_are_refused(usual: Pair) -> None:
    reference, model = usual
    ids, images = np.array([[*reference.text(4), IMAGE]]), reference.images(2)
    features = model.encode_images(images)
    with pytest.raises(ValueError, match="give either pixel_values or image_features"):
        model.prepare_inputs(ids, images[:1], image_features=features[:1])
    with pytest.raises(ValueError, match=r"image_features must be \[N, \d+, \d+\], got"):
        model.prepare_inputs(ids, image_features=features[:1, 1:])
    with pytest.raises(ValueError, match=r"the prompts name 1 images .* and 2 images are given"):
        model.prepare_inputs(ids, image_features=features)
    with pytest.raises(ValueError, match="give either inputs_embeds, or input_ids"):
        model.prepare_inputs(inputs_embeds=features, image_features=features)


def test_pixel_digests_differ_by_any_pixel_and_not_by_memory_layout() -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    changed = pixels.copy()
    changed[2, 7, 7] = np.nextafter(changed[2, 7, 7], np.float32(9))
    assert pixel_digest(pixels) != pixel_digest(changed)
    assert pixel_digest(np.asfortranarray(pixels)) == pixel_digest(pixels)
