"""Where image features go among the token embeddings: planned on the host, performed by one gather."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .configuration import IMAGE_TOKEN_INDEX


@dataclass(frozen=True)
class MergePlan:
    """How the embeddings of a batch of prompts are assembled; T is the longest prompt, including image patches.

    Attributes:
        index: int32 [B, T], row of concat(token embeddings [B * L, H], image features [N * P, H]) at each position;
            sequences start at position 0 and are padded with 0 at the end.
        columns: int64 [B, T], column of input_ids that each position comes from; -1 for image patches and padding.
        images: int64 [B, T], index of the image at each position; -1 for text and padding.
        lengths: int64 [B], number of tokens in each prompt.
    """

    index: np.ndarray
    columns: np.ndarray
    images: np.ndarray
    lengths: np.ndarray

    def place(self, values: np.ndarray, fill: int) -> np.ndarray:
        """Move values [B, L] of input_ids (ids, labels) to [B, T]; image patches and padding get `fill`."""
        moved = np.take_along_axis(values, np.maximum(self.columns, 0), 1)
        return np.where(self.columns >= 0, moved, fill)


def plan_merge(
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None,
    num_images: int,
    num_image_tokens: int,
    image_token_id: int = IMAGE_TOKEN_INDEX,
) -> MergePlan:
    """Plan the merge of `num_images` images into a batch of prompts.

    Args:
        input_ids: int [B, L]; one `image_token_id` or IMAGE_TOKEN_INDEX stands for an image, or `num_image_tokens` of
            them in a row, as transformers' processors write it. Images are assigned in order over the batch.
        attention_mask: int [B, L], 0 for padding on either side; None means no padding.
        num_images: number of images.
        num_image_tokens: number of embeddings per image.

    Raises:
        ValueError: shapes disagree, the numbers of placeholders and images differ, or a prompt is empty.
    """
    if input_ids.ndim != 2:
        raise ValueError(f"input_ids must be [batch, length], got shape {input_ids.shape}")
    mask = np.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask has shape {mask.shape}, input_ids has {input_ids.shape}; they must be equal")
    batch, width = input_ids.shape
    is_image = ((input_ids == image_token_id) | (input_ids == IMAGE_TOKEN_INDEX)) & (mask != 0)
    found = int(is_image.sum())
    expanded = found != num_images and found == num_images * num_image_tokens
    if found != num_images and not expanded:
        raise ValueError(f"the prompts name {found} images (id {image_token_id}) and {num_images} images are given")
    if not batch:
        raise ValueError("input_ids contains no prompt")
    rows, next_patch = [], 0
    for row in range(batch):
        positions = np.flatnonzero(mask[row])
        if not positions.size:
            raise ValueError(f"prompt {row} is empty: its attention_mask has no 1")
        if expanded:
            _check_runs(is_image[row, positions], num_image_tokens, row)
        repeats = np.where(is_image[row, positions] & (not expanded), num_image_tokens, 1)
        columns = np.repeat(positions, repeats)
        shows = np.repeat(is_image[row, positions], repeats)
        patches = next_patch + np.cumsum(shows) - 1
        next_patch += int(shows.sum())
        rows.append((np.where(shows, batch * width + patches, row * width + columns), columns, shows, patches))
    lengths = np.array([len(item[0]) for item in rows])
    longest = int(lengths.max())
    plan = MergePlan(
        index=np.zeros((batch, longest), np.int32),
        columns=np.full((batch, longest), -1),
        images=np.full((batch, longest), -1),
        lengths=lengths,
    )
    for row, (index, columns, shows, patches) in enumerate(rows):
        plan.index[row, : len(index)] = index
        plan.columns[row, : len(index)] = np.where(shows, -1, columns)
        plan.images[row, : len(index)] = np.where(shows, patches // max(num_image_tokens, 1), -1)
    return plan


def _check_runs(is_image: np.ndarray, num_image_tokens: int, prompt: int) -> None:
    """Refuse a prompt that splits an image's placeholders, which their total number would not reveal."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_image, [False]))))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        if (end - first) % num_image_tokens:
            raise ValueError(
                f"prompt {prompt} has {end - first} image placeholders in a row, which is not a multiple of the "
                f"{num_image_tokens} per image: keep the placeholders of an image together, or write one per image"
            )


def check_vocabulary(plan: MergePlan, placed: np.ndarray, vocab_size: int) -> None:
    """Check ids that `plan.place` moved; the gather would silently accept an id beyond the table.

    Raises:
        ValueError: a text token's id is not in the vocabulary; the message names it.
    """
    wrong = placed[(plan.columns >= 0) & ((placed < 0) | (placed >= vocab_size))]
    if wrong.size:
        raise ValueError(f"input_ids has id {wrong[0]}; the vocabulary goes from 0 to {vocab_size - 1}")
