"""Trains the tokenizer of sharegpt4v-tiny: a sentencepiece model like LLaMA's, on captions, questions and prompts."""

from __future__ import annotations

import argparse
import string
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
from captions import FORMS, QUESTIONS, caption, question
from scenes import sample_scene, scene_rng

VOCABULARY_SIZE = 640  # unk, bos, eos, 256 bytes, the ASCII characters, and one piece for each common word
CAPTIONS = 20_000
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def sentences(count: int = CAPTIONS, seed: int = 0) -> Iterator[str]:
    """Yield the captions of training scenes and, now and then, a question in the vicuna_v1 prompt."""
    for index in range(count):
        rng = scene_rng(seed, index)
        scene = sample_scene(rng)
        yield caption(scene, rng)
        if index % len(FORMS) == 0:  # often enough for the words of the prompt to become pieces
            yield f"{SYSTEM} USER: "
            yield f"{question(rng)} ASSISTANT:"
    yield from QUESTIONS


def train_vocabulary(path: Path, size: int = VOCABULARY_SIZE) -> None:
    """Write a sentencepiece model with LLaMA's settings: BPE, byte fallback, no text normalization.

    Ids 0, 1 and 2 are unk, bos and eos; there is no pad id.

    Raises:
        RuntimeError: from sentencepiece, if `size` is too small.
    """
    with path.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(),
            model_writer=writer,
            model_type="bpe",
            vocab_size=size,
            character_coverage=1.0,
            required_chars=string.ascii_letters + string.digits + string.punctuation,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            unk_surface=" \u2047 ",
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            minloglevel=2,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tokenizer.model"), help="file to write")
    parser.add_argument("--size", type=int, default=VOCABULARY_SIZE, help="number of pieces")
    args = parser.parse_args()
    train_vocabulary(args.out, args.size)
    print(f"{args.out}: {args.size} pieces, {args.out.stat().st_size / 1024:.1f} KB")


if __name__ == "__main__":
    main()
