"""Small tokenizers of text encoders, in the files that published ones have."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
from transformers.models.clip.tokenization_clip import bytes_to_unicode

TEXT = (
    "A photo of a red cube on a table. The background is light blue. There are two small cats in the corner.\n"
    "In the top left there is a large green triangle. It looks calm, quiet and rather empty.\n"
    "Three dogs don't run; they'll sleep. A sign says 42, and a café is open.\n"
)


def write_clip(folder: Path) -> Path:
    """Write CLIP's vocab.json and merges.txt with a few merges."""
    folder.mkdir(parents=True)
    merges = ["t h", "th e</w>", "a n", "i n</w>", "o f</w>", "r e", "re d</w>", "l e</w>", "i s</w>", "c u"]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair.split()) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


def write_t5(folder: Path) -> Path:
    """Write a sentencepiece model with T5's special tokens."""
    folder.mkdir(parents=True)
    corpus = folder.parent / f"{folder.name}.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=90,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder
