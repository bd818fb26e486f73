"""CLIP scores of images and captions: how well a caption matches its image, according to CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mindone.models.share4v.configuration import PREPROCESSOR_NAME
from mindone.models.share4v.processing.image_processor import ImageProcessor

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


class ClipScorer:
    """Computes `logits_per_image` of CLIP: the cosine of image and text, times 100 for the published models.

    Args:
        directory: a CLIPModel in transformers' format, with config, weights, tokenizer and, if its preprocessing is not
            CLIP's, preprocessor_config.json.

    Raises:
        FileNotFoundError: config, weights or tokenizer are missing.
        ValueError: the config is not that of a CLIPModel, or does not fit the weights.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation.clip_score import ClipScorer
        >>> scorer = ClipScorer("clip-vit-large-patch14")  # doctest: +SKIP
        >>> scorer.scores([Image.open("cat.jpg")], ["a cat"])  # doctest: +SKIP
        array([24.6], dtype=float32)
    """

    def __init__(self, directory: str | Path) -> None:
        directory = Path(directory)
        if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
            raise FileNotFoundError(f"{directory} has no tokenizer: expected {' or '.join(_TOKENIZER_FILES)}")
        from transformers import AutoTokenizer

        from mindone.models.share4v.integrations.mindone_transformers.clip_model import load_clip

        self.model = load_clip(directory)
        config = self.model.config
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self.max_tokens: int = config.text_config.max_position_embeddings
        edge = config.vision_config.image_size
        if (directory / PREPROCESSOR_NAME).is_file():
            self.processor = ImageProcessor.from_pretrained(directory)
        else:
            self.processor = ImageProcessor(size=edge, crop_size=edge, image_aspect_ratio="square")
        if self.processor.crop_size != edge:
            raise ValueError(
                f"{directory}: {PREPROCESSOR_NAME} makes images of {self.processor.crop_size} pixels, the model needs "
                f"{edge}"
            )

    def scores(self, images: Sequence[PILImage], texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the score of each image with the text of the same index, float32 [N].

        A text that is longer than the model's limit (77 tokens) is cut, as in CLIP's own `tokenize(truncate=True)`.

        Raises:
            ImageLoadError: an image cannot be preprocessed.
        """
        import mindspore as ms

        tokens = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_tokens, padding="max_length", return_tensors="np"
        )
        pixels = np.stack([self.processor(image) for image in images])  # [N, 3, S, S]
        image = self.model.get_image_features(ms.Tensor(pixels)).asnumpy()  # [N, D]
        text = self.model.get_text_features(
            ms.Tensor(tokens["input_ids"].astype(np.int32)), ms.Tensor(tokens["attention_mask"].astype(np.int32))
        ).asnumpy()
        scale = np.exp(self.model.logit_scale.asnumpy())
        return np.asarray(scale * (_unit(image) * _unit(text)).sum(axis=1), np.float32)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
