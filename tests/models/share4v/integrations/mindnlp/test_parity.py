"""mindnlp's LLaMA, driven by our generation loop, against PyTorch and against our own LLaMA."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.llava import IMAGE, SHAPES, Reference, padded

from mindone.models.share4v import Share4V

TOLERANCE = 5e-4
NEW = 8


def prompts_of(reference: Reference) -> tuple[list[list[int]], list[np.ndarray]]:
    """Three unequal prompts and the images of each; the last outgrows what "dynamic-rope" was trained on."""
    rng, size = np.random.default_rng(7), reference.model.config.vision_config.image_size
    words = [rng.integers(3, reference.image_token, count).tolist() for count in (9, 4, 48)]
    images = rng.standard_normal((3, 3, size, size)).astype(np.float32)
    prompts = [[1, *words[0], IMAGE, 5], [1, IMAGE, *words[1], IMAGE, 6], [1, *words[2]]]
    return prompts, [images[:1], images[1:], images[:0]]


# Each model starts a process; "usual" has nothing that the others have not, and is taken for float16.
@pytest.fixture(scope="module", params=[name for name in SHAPES if name != "usual"])
def trio(
    request: pytest.FixtureRequest,
    written: Callable[[str], tuple[Reference, Path]],
    warm_workers: Callable[[], AbstractContextManager[None]],
) -> tuple[Reference, Share4V, Share4V]:
    """transformers' model on PyTorch, ours, and ours with mindnlp's LLaMA, all of one checkpoint."""
    reference, path = written(request.param)
    with warm_workers():
        return reference, Share4V.from_pretrained(path), Share4V.from_pretrained(path, language_backend="mindnlp")


def test_logits_equal_at_every_position_alone_and_in_a_batch(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, other = trio
    prompts, images = prompts_of(reference)
    ids, mask = padded(prompts, "left")
    batch = other(ids, np.concatenate(images), attention_mask=mask)
    for row, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        wanted = reference.logits(prompt, own)
        assert wanted.std() > 0.5  # flat logits would be equal too easily
        alone = other([prompt], own).logits.asnumpy()[0]
        np.testing.assert_allclose(alone, wanted, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(alone, ours([prompt], own).logits.asnumpy()[0], rtol=0, atol=TOLERANCE)
        together = batch.logits.asnumpy()[row, batch.attention_mask[row] == 1]
        np.testing.assert_allclose(together, alone, rtol=0, atol=TOLERANCE)


def test_greedy_ids_equal_alone_and_in_a_batch(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, other = trio
    prompts, images = prompts_of(reference)
    pairs = list(zip(prompts, images, strict=True))
    wanted = [reference.generate([prompt], own, max_new_tokens=NEW)[0] for prompt, own in pairs]
    assert max(map(len, wanted)) == NEW
    ids, mask = padded(prompts, "right")
    for model in (ours, other):
        assert model.generate(ids, np.concatenate(images), attention_mask=mask, max_new_tokens=NEW) == wanted
    assert other.generate([prompts[0]], images[0], max_new_tokens=NEW) == wanted[:1]


def test_float16_is_as_exact_as_the_same_class_on_pytorch(
    written: Callable[[str], tuple[Reference, Path]], warm_workers: Callable[[], AbstractContextManager[None]]
) -> None:
    reference, path = written("usual")
    with warm_workers():
        model = Share4V.from_pretrained(path, dtype="float16", language_backend="mindnlp")
    prompt = [1, *np.random.default_rng(1).integers(3, reference.image_token, 40).tolist()]
    with reference.rounded(torch.float16):
        wanted = reference.logits(prompt, np.zeros((0, 3, 28, 28), np.float32))
    language = copy.deepcopy(reference.model).half()
    with torch.no_grad():
        half = language(input_ids=torch.tensor([prompt])).logits[0].float().numpy()
    error = np.abs(model([prompt]).logits.asnumpy()[0] - wanted).max()
    assert 0 < error < 2 * np.abs(half - wanted).max()  # rounded in another order
    assert {array.dtype for array in map(model.language_model.array, model.language_model.plain)} == {
        np.dtype("float16")
    }
