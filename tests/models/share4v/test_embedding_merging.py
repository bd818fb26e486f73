"""Where image features go: every plan against a merge by hand, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from mindone.models.share4v.configuration import IMAGE_TOKEN_INDEX as IMAGE
from mindone.models.share4v.embedding_merging import MergePlan, check_vocabulary, plan_merge

PATCHES = 3


def by_hand(ids: np.ndarray, mask: np.ndarray, placeholder: int) -> list[list[tuple[str, int, int]]]:
    """Say for each text what stands at each position: ("text", row, column) or ("image", number, patch)."""
    texts, image = [], 0
    for row in range(len(ids)):
        said: list[tuple[str, int, int]] = []
        for column in range(ids.shape[1]):
            if not mask[row, column]:
                continue
            if ids[row, column] in (placeholder, IMAGE):
                said += [("image", image, patch) for patch in range(PATCHES)]
                image += 1
            else:
                said.append(("text", row, column))
        texts.append(said)
    return texts


def assert_plan(plan: MergePlan, wanted: list[list[tuple[str, int, int]]], shape: tuple[int, int]) -> None:
    tokens = np.arange(shape[0] * shape[1]).reshape(shape)
    images = sum(kind == "image" and part == 0 for text in wanted for kind, _, part in text)
    features = (tokens.size + np.arange(images * PATCHES)).reshape(images, PATCHES)
    assert plan.lengths.tolist() == [len(text) for text in wanted]
    assert plan.index.shape == (shape[0], max(map(len, wanted)))
    for row, text in enumerate(wanted):
        for position, (kind, first, second) in enumerate(text):
            is_text = kind == "text"
            assert plan.index[row, position] == (tokens if is_text else features)[first, second]
            assert plan.columns[row, position] == (second if is_text else -1)
            assert plan.images[row, position] == (-1 if is_text else first)
        behind = np.arange(len(text), plan.index.shape[1])
        assert (plan.index[row, behind] == 0).all()
        assert (plan.columns[row, behind] == -1).all() and (plan.images[row, behind] == -1).all()


@pytest.mark.parametrize("seed", range(40))
def test_a_random_batch_is_merged_as_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, width = rng.integers(1, 5), rng.integers(2, 12)
    placeholder = int(rng.choice([IMAGE, 500]))
    ids = rng.integers(0, 100, (batch, width))
    ids[rng.random(ids.shape) < 0.25] = placeholder
    mask = np.ones_like(ids)
    for row in range(batch):
        cut = rng.integers(0, width)
        mask[row, (slice(0, cut), slice(width - cut, None))[rng.integers(2)]] = 0
    wanted = by_hand(ids, mask, placeholder)
    count = int(((ids == placeholder) & (mask == 1)).sum())
    plan = plan_merge(ids, mask, count, PATCHES, placeholder)
    assert_plan(plan, wanted, ids.shape)
    if mask.all():
        assert (plan_merge(ids, None, count, PATCHES, placeholder).index == plan.index).all()


def test_placeholders_written_out_give_the_same_prompt_as_one_for_each_image() -> None:
    single = np.array([[1, IMAGE, 5, IMAGE, IMAGE], [0, 0, 1, IMAGE, 7]])
    single_mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    full = [[1, *[IMAGE] * 3, 5, *[IMAGE] * 6], [0] * 6 + [1, *[IMAGE] * 3, 7]]
    full_mask = [[1] * 11, [0] * 6 + [1] * 5]
    one = plan_merge(single, single_mask, 4, PATCHES)
    other = plan_merge(np.array(full), np.array(full_mask), 4, PATCHES)
    assert one.lengths.tolist() == other.lengths.tolist()
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.place(single, -1), other.place(np.array(full), -1))


def test_place_carries_labels_over() -> None:
    ids, labels = np.array([[1, IMAGE, 5, 6]]), np.array([[-100, -100, 5, 6]])
    assert plan_merge(ids, None, 1, PATCHES).place(labels, -7).tolist() == [[-100, -7, -7, -7, 5, 6]]


REFUSED = {
    "too few images": ([[1, IMAGE, IMAGE]], None, 1, "the prompts name 2 images .* and 1 images are given"),
    "no placeholder": ([[1, 2]], None, 1, "the prompts name 0 images .* and 1 images are given"),
    "placeholder in the padding": ([[IMAGE, 2]], [[0, 1]], 1, "name 0 images"),
    "torn apart": ([[IMAGE] * 2 + [5] + [IMAGE] * 4], None, 2, "prompt 0 has 2 image placeholders in a row"),
    "over two texts": ([[1] + [IMAGE] * 2, [IMAGE, 1, 2]], None, 1, "prompt 0 has 2 image placeholders in a row"),
    "empty prompt": ([[1, 2], [3, 4]], [[1, 1], [0, 0]], 0, "prompt 1 is empty"),
    "one dimension": ([1, 2], None, 0, r"must be \[batch, length\], got shape \(2,\)"),
    "another mask": ([[1, 2]], [[1, 1, 1]], 0, r"attention_mask has shape \(1, 3\), input_ids has \(1, 2\)"),
    "no prompt": (np.zeros((0, 4), np.int64), None, 0, "contains no prompt"),
}


@pytest.mark.parametrize("ids, mask, images, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(ids: list, mask: list | None, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_merge(np.array(ids), None if mask is None else np.array(mask), images, PATCHES)


def test_ids_outside_the_vocabulary_are_refused_but_not_in_padding() -> None:
    ids, mask = np.array([[99, 1, 2]]), np.array([[0, 1, 1]])
    plan = plan_merge(ids, mask, 0, PATCHES)
    check_vocabulary(plan, plan.place(ids, -1), 3)
    for wrong in (3, -1):
        ids[0, 2] = wrong
        with pytest.raises(ValueError, match=f"id {wrong}; the vocabulary goes from 0 to 2"):
            check_vocabulary(plan, plan.place(ids, 0), 3)
