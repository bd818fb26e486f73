"""Hostile JSON files of a checkpoint: each wrong value is one clear error, before anything is built from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.limits import run_limited
from helpers.paths import TINY_CHECKPOINT

READ = """
from pathlib import Path
from mindone.models.share4v.checkpoint.layout import Checkpoint
from mindone.models.share4v.processing.processor import Share4VProcessor
def read(directory):
    checkpoint = Checkpoint.open(directory)
    Share4VProcessor.from_checkpoint(checkpoint)
    return checkpoint.format
report(read, sys.argv[1])
"""
DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
ODD: dict[str, Any] = {
    "a huge number": 10**12,
    "a number of 4,000 digits": 10**3999,
    "a negative number": -5,
    "a float": 1.5,
    "infinity": float("inf"),
    "not a number": float("nan"),
    "a text": "7",
    "a long text": "x" * 100_000,
    "true": True,
    "a list": [1, 2],
    "an object": {"a": 1},
    "a deep list": DEEP,
}
COUNTS = [
    ("config.json", "text_config", name)
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "head_dim",
    )
] + [
    ("config.json", "text_config", "max_position_embeddings"),
    ("config.json", "vision_config", "num_hidden_layers"),
    ("config.json", "vision_config", "image_size"),
    ("config.json", "vision_config", "patch_size"),
    ("preprocessor_config.json", None, "size"),
    ("preprocessor_config.json", None, "crop_size"),
]
OTHERS = [
    ("config.json", "text_config", "rope_theta"),
    ("config.json", "text_config", "rms_norm_eps"),
    ("config.json", "text_config", "rope_scaling"),
    ("config.json", "text_config", "eos_token_id"),
    ("config.json", "text_config", "tie_word_embeddings"),
    ("config.json", "projector_config", "projector_type"),
    ("config.json", None, "text_config"),
    ("config.json", None, "vision_config"),
    ("config.json", None, "select_layer"),
    ("config.json", None, "select_feature"),
    ("config.json", None, "image_aspect_ratio"),
    ("config.json", None, "vision_tower"),
    ("config.json", None, "model_type"),
    ("config.json", None, "extra"),
    ("preprocessor_config.json", None, "image_mean"),
    ("preprocessor_config.json", None, "rescale_factor"),
    ("preprocessor_config.json", None, "resample"),
    ("processor_config.json", None, "conversation"),
    ("tokenizer_config.json", None, "added_tokens_decoder"),
    ("tokenizer_config.json", None, "additional_special_tokens"),
    ("tokenizer_config.json", None, "bos_token"),
]
# Values that these fields may have: an odd value is not wrong everywhere.
ALLOWED = {
    "rope_theta": ("a float", "a huge number"),
    "tie_word_embeddings": ("true",),
    "projector_type": ("a text",),  # a package may register it
    "select_layer": ("a negative number",),
    "vision_tower": ("a text",),
    "eos_token_id": ("a negative number", "a list"),
    "extra": ("an object",),
    "rescale_factor": ("a float", "a negative number"),
    "bos_token": ("a text",),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "tiny"
    shutil.copytree(TINY_CHECKPOINT, directory)
    return directory


def changed(tiny: Path, directory: Path, file: str, section: str | None, name: str, value: Any) -> Path:
    """Link a copy of the tiny checkpoint in which one value is another."""
    directory.mkdir()
    for path in tiny.iterdir():
        if path.name != file:
            (directory / path.name).symlink_to(path)
    data = json.loads((tiny / file).read_text()) if (tiny / file).is_file() else {}
    (data if section is None else data.setdefault(section, {}))[name] = value
    (directory / file).write_text(json.dumps(data))
    return directory


@pytest.mark.parametrize(("file", "section", "name"), [*COUNTS, *OTHERS], ids=lambda value: str(value))
def test_odd_values_are_clear_errors(tiny: Path, tmp_path: Path, file: str, section: str | None, name: str) -> None:
    for number, (kind, value) in enumerate(ODD.items()):
        directory = changed(tiny, tmp_path / str(number), file, section, name, value)
        error, message = run_limited(READ, str(directory), megabytes=500)
        if error == "value":
            assert kind in ALLOWED.get(name, ()), f"{name} accepts {kind}"
            continue
        assert error in ("ValueError", "CheckpointError"), f"{name} = {kind}: {error}: {message}"
        assert len(message) < 1500, f"{name} = {kind}: {len(message)} characters"


@pytest.mark.parametrize("depth", ["9" * 9, "9" * 500, "17", "0" * 300 + "5"])
def test_a_projector_of_many_layers(tiny: Path, tmp_path: Path, depth: str) -> None:
    value = f"mlp{depth}x_gelu"
    directory = changed(tiny, tmp_path / "a", "config.json", "projector_config", "projector_type", value)
    error, message = run_limited(READ, str(directory), megabytes=500)
    assert error == "ValueError" and "too many layers" in message


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1", "[]", "\ufeff{}", "{" * 10])
def test_files_that_are_no_json_object(tiny: Path, tmp_path: Path, text: str) -> None:
    directory = changed(tiny, tmp_path / "a", "config.json", None, "x", 1)
    (directory / "config.json").write_text(text, encoding="utf-8")
    error, message = run_limited(READ, str(directory), megabytes=500)
    assert error == "ValueError" and "config.json" in message


def test_two_million_ids_are_rejected_before_they_are_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from mindone.models.share4v import Share4V

    model = Share4V.from_pretrained("sharegpt4v-tiny")

    def embed(ids: object) -> None:
        raise AssertionError("ids were embedded")

    monkeypatch.setattr(model.language_model, "embed", embed)
    with pytest.raises(ValueError, match="2000000 tokens"):
        model.generate(np.ones((1, 2_000_000), np.int64), max_new_tokens=1)
