"""What `share4v convert --dtype int4` calibrates on: a text that the package ships, and pictures of the user's."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .checkpoint.formats import StoredTensor
from .checkpoint.layout import Checkpoint
from .checkpoint.packed import fill, reader_of
from .display import printable
from .embedding_merging import plan_merge
from .home_directory import expand_home
from .language.weights import LANGUAGE_MODEL
from .processing.image_formats import IMAGE_SUFFIXES
from .processing.image_loading import ImageLoadError, load_image
from .processing.processor import Share4VProcessor
from .processing.tokenizer import Tokenizer
from .projector.weights import projector_plans

TEXT = Path(__file__).parent / "assets" / "calibration" / "text.txt"
TOKENS = 25_000  # fewer cost quality: second moments of a layer's widest inputs need as many
SEQUENCE = 512  # tokens of one sequence
PICTURES = 200  # of a folder, evenly spaced; each is some 600 tokens of a 7B
MAX_CAPTION = 1 << 16  # characters of a caption file that are read

logger = logging.getLogger(__name__)


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


def embed_ids(entries: Mapping[str, StoredTensor], sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the embeddings, float32 [T, H], of each sequence of ids."""
    table = entries[f"{LANGUAGE_MODEL}embed_tokens.weight"].read()
    return [np.asarray(table[ids], np.float32) for ids in sequences]


def find_pictures(folder: str | Path, count: int = PICTURES) -> list[Path]:
    """Return at most `count` image files of a folder and the folders in it, evenly spaced in the order of their names.

    Hidden files and folders are left out.

    Raises:
        NotADirectoryError: `folder` is no directory.
        FileNotFoundError: there are no image files in it.

    Example:
        >>> from mindone.models.share4v.calibration import find_pictures
        >>> [path.name for path in find_pictures("photos", 2)]
        ['1.jpg', '3.jpg']
    """
    folder = expand_home(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder: pass a folder of images as calibrate (--calibrate)")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not found:
        raise FileNotFoundError(
            f"{folder} has no image files: pass one with images like those to be captioned as calibrate (--calibrate)"
        )
    chosen = np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int)
    return [found[index] for index in chosen]


def picture_sequences(
    checkpoint: Checkpoint, entries: Mapping[str, StoredTensor], pictures: Sequence[Path], progress: bool = False
) -> list[np.ndarray]:
    """Return what the language model reads for each picture: embeddings, float32 [T, H], of a prompt with the picture.

    The prompt is the default one. The text of a .txt or .caption file beside the picture, if there is one, follows as
    the answer. The tower and the projector compute in float32, and are in memory only meanwhile.

    Args:
        checkpoint: the float checkpoint.
        entries: its weights, which were checked.
        pictures: image files; those that cannot be read are left out, with a logged warning that names them.
        progress: show a progress bar on standard error.

    Raises:
        ValueError: no picture can be read, or the projector is another package's.
    """
    from .projector.mlp_kernels import KernelProjector
    from .vision.clip_kernels import KernelCLIPVisionTower

    config = checkpoint.config
    if projector_plans(config, "float32") is None:
        raise ValueError(
            f"the projector {config.projector_config.projector_type!r} does not run on the CPU kernels, so pictures "
            "cannot be used to calibrate: leave out calibrate (--calibrate)"
        )
    tower, projector = KernelCLIPVisionTower(config, "float32"), KernelProjector(config, "float32")
    parts: tuple[Any, ...] = (tower, projector)
    for part in parts:
        fill(part, entries, False, config.text_config)
    read = reader_of(entries)
    table = read(f"{LANGUAGE_MODEL}embed_tokens.weight")
    processor = Share4VProcessor.from_checkpoint(checkpoint)
    sequences = []
    with tqdm(total=len(pictures), unit="image", desc="calibration", disable=not progress) as bar:
        for inputs in _prompts(processor, pictures, bar):
            sequence = _embeddings(table, tower, projector, *inputs, config.image_token_id)
            sequences.append(sequence[: config.text_config.context_length])  # a long caption is cut
    if not sequences:
        raise ValueError(
            f"none of {len(pictures)} pictures can be read, beginning with {pictures[0]}: pass a folder of images that "
            "can be captioned as calibrate (--calibrate)"
        )
    return sequences


def _prompts(
    processor: Share4VProcessor, pictures: Sequence[Path], bar: tqdm[Any]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids [1, L] and pixel_values [1, 3, S, S] of each picture that can be read."""
    for picture in pictures:
        try:
            image = load_image(picture)
        except (ImageLoadError, OSError) as error:
            logger.warning("left out of the calibration: %s", printable(str(error), keep=""))
            bar.update()
            continue
        inputs = processor(images=image)
        ids, answer = inputs["input_ids"], _caption_beside(picture)
        if answer:
            ids = np.concatenate((ids, [processor.tokenizer.encode(answer, add_bos=False)]), 1)
        yield ids, inputs["pixel_values"]
        bar.update()


def _caption_beside(picture: Path) -> str:
    """Return the text of the caption file beside a picture; empty if there is none."""
    for suffix in (".txt", ".caption"):
        file = picture.with_suffix(suffix)
        if file.is_file():
            with file.open(encoding="utf-8", errors="replace") as opened:
                return opened.read(MAX_CAPTION).strip()
    return ""


def _embeddings(
    table: np.ndarray, tower: Any, projector: Any, ids: np.ndarray, pixels: np.ndarray, image_token_id: int
) -> np.ndarray:
    """ids [1, L] with one placeholder and pixels [1, 3, S, S] -> embeddings [T, H] with the picture's in its place."""
    from mindspore import Tensor

    features = projector(tower(Tensor(pixels))).asnumpy()[0]  # [P, H]
    plan = plan_merge(ids, None, 1, len(features), image_token_id)
    is_text = plan.columns[0] >= 0
    merged = np.empty((int(plan.lengths[0]), table.shape[1]), np.float32)
    merged[is_text] = table[plan.place(ids, 0)[0, is_text]]
    merged[~is_text] = features
    return merged
