"""What `share4v convert --dtype int4` calibrates on: a text that the package ships, in sequences of ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .checkpoint.layout import Checkpoint
from .processing.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "assets" / "calibration" / "text.txt"
TOKENS = 13_000  # fewer cost quality: second moments of a layer's widest inputs need as many
SEQUENCE = 512  # tokens of one sequence


def text_ids(checkpoint: Checkpoint) -> list[np.ndarray]:
    """Return the ids, int64 [T] each, of the calibration text; every sequence begins with BOS, as every prompt does.

    Raises:
        FileNotFoundError: the checkpoint has no tokenizer.
        ValueError: its tokenizer has ids beyond the model's vocabulary.
    """
    text = checkpoint.config.text_config
    try:
        tokenizer = Tokenizer.from_pretrained(checkpoint.directory)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"int4 weights are calibrated on text, which needs the checkpoint's tokenizer: {error}; add it, or choose "
            "the faster conversion without calibration (fast, --fast)"
        ) from error
    ids = np.array(tokenizer.encode(TEXT.read_text(encoding="utf-8")), np.int64)[:TOKENS]
    if ids.max() >= text.vocab_size:
        raise ValueError(
            f"{checkpoint.directory}: the tokenizer gives the id {ids.max()}, but the model has only {text.vocab_size} "
            "embeddings: use the tokenizer that belongs to it"
        )
    first, rest = ids[:1], ids[1:]
    length = min(SEQUENCE, text.context_length) - 1
    return [np.concatenate((first, rest[start : start + length])) for start in range(0, len(rest), length)]
