"""CLIP with both towers: scores equal those of transformers' CLIPModel and its own preprocessing and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers.models.clip.tokenization_clip import bytes_to_unicode

from mindone.models.share4v.checkpoint.errors import CheckpointError
from mindone.pipelines.image_to_text.evaluation.clip_score import ClipScorer
from mindone_share4v.cli import main

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXTS = ["a red cat", "A photo of two blue squares, on a white background.", "word " * 100, "!"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model with random weights, and a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = list(bytes_to_unicode().values())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: index for index, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    config = transformers.CLIPConfig(
        text_config={**SIZES, **ends, "vocab_size": len(names), "hidden_act": "quick_gelu"},
        vision_config={**SIZES, "image_size": 28, "patch_size": 14, "hidden_act": "gelu"},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():
        if parameter.ndim:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(40, 60, 3), (50, 90, 3), (28, 28, 3), (100, 100, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]


def test_scores_equal_those_of_transformers(directory: Path, images: list[Image.Image]) -> None:
    reference = transformers.CLIPModel.from_pretrained(directory).eval()
    processor = transformers.CLIPProcessor.from_pretrained(directory)
    inputs = processor(text=TEXTS, images=images, return_tensors="pt", padding=True, truncation=True, max_length=77)
    with torch.no_grad():
        expected = reference(**inputs).logits_per_image.diagonal().numpy()
    scores = ClipScorer(directory).scores(images, TEXTS)
    assert expected.std() > 0.5
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


def test_a_model_that_does_not_fit_is_refused(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    visual = {name: value for name, value in weights.items() if "text" not in name}
    save_file(visual, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="no text tower"):
        ClipScorer(tmp_path)
    save_file(
        {**weights, "visual_projection.weight": weights["text_projection.weight"][:3]}, tmp_path / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 are missing, unexpected or of another shape: visual_projection"):
        ClipScorer(tmp_path)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        ClipScorer(tmp_path)


def test_the_command(
    directory: Path, images: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for number, (image, text) in enumerate(zip(images, TEXTS, strict=True)):
        image.save(tmp_path / f"{number}.png")
        rows.append({"path": f"{number}.png", "text": text})
    table = tmp_path / "t.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"path": "gone.png", "text": "x"}]))
    assert main(["match", str(table), "--clip", str(directory), "--batch-size", "3", "--json"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["scores"] == 4 and "gone.png" in output.err
    written = [json.loads(line)["match"] for line in (tmp_path / "t_match.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(written[:4], ClipScorer(directory).scores(images, TEXTS), rtol=0, atol=2e-4)
    assert written[4] is None
    assert main(["match", str(table), "--clip", str(tmp_path), "--overwrite"]) == 2
    assert "has no tokenizer" in capsys.readouterr().err
