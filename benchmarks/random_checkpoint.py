"""Write a checkpoint of a named shape with random weights and a tokenizer, for what needs files: servers, GGUF.

python benchmarks/random_checkpoint.py 7b-8l DIRECTORY [DTYPE]
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from random_model import random_model
from shapes import SHAPES

TEXTS = Path(__file__).with_name("texts")
LEARNED = 3000  # pieces that are trained on the texts; the others are placeholders that no text contains


def write_tokenizer(path: Path, size: int) -> None:
    """Write a sentencepiece model with LLaMA's options and `size` pieces."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    lines = [line for file in sorted(TEXTS.iterdir()) for line in file.read_text(encoding="utf-8").splitlines() if line]
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        model_type="bpe",
        vocab_size=min(LEARNED, size),
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(trained.getvalue())
    for number in range(len(model.pieces), size):
        model.pieces.add(piece=f"▁placeholder{number}", score=-float(number), type=1)  # 1: a normal piece
    path.write_bytes(model.SerializeToString())


def write_checkpoint(shape: str, directory: Path, dtype: str = "float16") -> None:
    """Write config, weights, tokenizer and preprocessor, as `save_pretrained` does."""
    from mindone.models.share4v import Share4VProcessor
    from mindone.models.share4v.processing.image_processor import ImageProcessor
    from mindone.models.share4v.processing.tokenizer import Tokenizer

    model = random_model(shape, dtype)
    model.save_pretrained(directory)
    vocabulary = directory / "tokenizer.model"
    write_tokenizer(vocabulary, SHAPES[shape].language.vocab_size)
    images = ImageProcessor.from_pretrained(directory, model.config, None)
    Share4VProcessor(images, Tokenizer(vocabulary)).save_pretrained(directory)


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
