"""Accuracy of sharegpt4v-tiny with rounded weights: how far its logits move on captions of held-out scenes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from captions import caption, parse_caption, question
from scenes import Scene, render, sample_scene, scene_rng

from mindone.models.share4v import IGNORE_INDEX, Share4V, Share4VProcessor
from mindone.models.share4v.training.labels import TrainingText, collate, tokenize_conversation
from mindone.pipelines import pipeline

SEED, COUNT, WIDTH = 777, 32, 92
Example = tuple[np.ndarray, TrainingText]


def held_out(count: int, seed: int) -> list[tuple[Scene, object, object]]:
    """Return held-out scenes, their images, and their random generators."""
    rngs = [scene_rng(seed, index) for index in range(count)]
    scenes = [sample_scene(rng, held_out=True) for rng in rngs]
    return [(scene, render(scene, rng), rng) for scene, rng in zip(scenes, rngs, strict=True)]


@cache
def examples() -> list[Example]:
    """Return pixel values of held-out scenes, each with a question and a correct caption."""
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    made = []
    for scene, picture, rng in held_out(COUNT, SEED):
        messages = [
            {"role": "user", "content": f"<image>\n{question(rng)}"},
            {"role": "assistant", "content": caption(scene, rng)},
        ]
        made.append((processor.image_processor(picture), tokenize_conversation(processor, messages)))
    return made


@cache
def log_probabilities(dtype: str) -> np.ndarray:
    """Return the log probabilities [N, V] at every token of the captions, given all tokens before it."""
    model = Share4V.from_pretrained("sharegpt4v-tiny", dtype=dtype)
    pixels, texts = zip(*examples(), strict=True)
    ids, mask, labels = collate(texts, WIDTH)
    logits = model(ids, np.stack(pixels), attention_mask=mask).logits.asnumpy().astype(np.float64)
    rows, columns = np.nonzero(labels != IGNORE_INDEX)
    # An image is one id in the labels but num_image_tokens positions in the logits, and the logits of a position
    # predict the next token.
    chosen = logits[rows, columns + model.config.num_image_tokens - 2]
    chosen -= chosen.max(-1, keepdims=True)
    return chosen - np.log(np.exp(chosen).sum(-1, keepdims=True))


def divergence(dtype: str) -> float:
    """Return the mean KL divergence per token of `dtype` from float32, in nats."""
    wide, narrow = log_probabilities("float32"), log_probabilities(dtype)
    return float((np.exp(wide) * (wide - narrow)).sum(-1).mean())


def test_the_model_is_confident_on_these_captions() -> None:
    """Otherwise a divergence over them would mean little."""
    wide = log_probabilities("float32")
    assert len(wide) > 20 * COUNT
    assert np.exp(wide.max(-1)).mean() > 0.9


@pytest.mark.parametrize("dtype, bound", [("float16", 1e-5), ("int8", 1e-3), ("int4", 5e-2)])
def test_rounded_weights_move_the_logits_little(dtype: str, bound: float) -> None:
    assert 0 < divergence(dtype) < bound


def test_fewer_bits_move_the_logits_more() -> None:
    assert divergence("float16") < divergence("int8") < divergence("int4")


@pytest.mark.parametrize("dtype, lost", [("int8", 0.01), ("int4", 0.03)])
def test_rounded_weights_caption_scenes_as_well(dtype: str, lost: float) -> None:
    """One of 60 scenes is more than one percentage point; the bounds allow only as many losses as chance explains."""
    scenes = held_out(60, 4242)
    captioner = pipeline("image-to-text", dtype=dtype)
    answers = captioner([picture for _, picture, _ in scenes], batch_size=16)
    right = sum(parse_caption(a[0]["generated_text"]) == s for a, (s, *_) in zip(answers, scenes, strict=True))
    assert right >= (0.95 - lost) * len(scenes)
