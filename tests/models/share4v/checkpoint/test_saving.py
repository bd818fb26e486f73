"""Saving and converting: round trips, shards, and that nothing half-written is ever seen."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.weights import read_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mindone.models.share4v import Share4VConfig, convert
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError, save_weights
from mindone.models.share4v.checkpoint.formats import find_weights, stored_tensors
from mindone.models.share4v.checkpoint.saving import byte_count
from mindone.models.share4v.checkpoint.weights import expected_shapes

VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
ORIGINAL = {"model_type": "share4v", "vocab_size": 20, "hidden_size": 16, "intermediate_size": 24}
ORIGINAL |= {"num_hidden_layers": 2, "num_attention_heads": 4, "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 8}
ORIGINAL |= {"mm_vision_tower": "tower", "image_aspect_ratio": "pad", "freeze_backbone": False}


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "a": random.standard_normal((10, 25)).astype(np.float32),
        "b": random.standard_normal((4, 6)).astype(np.float16).T,
        "c": np.float32(3).reshape(()),
        "d": np.arange(7, dtype=np.int8)[::-1],
        "e": np.zeros((0, 3), np.float32),
        "f": random.standard_normal(500).astype(np.float32),
    }


def read_all(directory: Path) -> dict[str, np.ndarray]:
    return {item.name: item.read() for item in stored_tensors(find_weights(directory))}


def assert_equal(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert set(got) == set(want)
    for name in want:
        assert got[name].dtype == want[name].dtype and got[name].shape == want[name].shape
        np.testing.assert_array_equal(got[name], want[name])


def test_one_file_round_trips_and_the_library_reads_it(tmp_path: Path) -> None:
    save_weights(arrays().items(), tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]
    assert_equal(read_all(tmp_path / "new"), arrays())
    loaded = load_file(tmp_path / "new" / "model.safetensors")
    assert_equal({name: tensor.numpy() for name, tensor in loaded.items()}, arrays())
    with safe_open(tmp_path / "new" / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "ms"}


def test_shards_keep_to_their_size_and_round_trip(tmp_path: Path) -> None:
    save_weights(arrays().items(), tmp_path, max_shard_size="1.2KB")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)] + ["model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in arrays().values())
    assert index["weight_map"]["f"] == names[1]  # 2000 bytes: larger than a shard, so alone in one
    assert sum(array.nbytes for name, array in arrays().items() if name != "f") <= 1200
    assert_equal(read_all(tmp_path), arrays())


def test_one_shard_at_a_time_is_held(tmp_path: Path) -> None:
    count, size = 12, 2**20
    torch.save({f"{i}": torch.full((size // 4,), i).bfloat16() for i in range(count)}, tmp_path / "pytorch_model.bin")
    tracemalloc.start()  # NumPy tells it of every array
    pairs = ((item.name, item.read()) for item in stored_tensors(find_weights(tmp_path)))
    save_weights(pairs, tmp_path / "out", max_shard_size=2 * size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 2 * size <= peak < 4 * size  # of 12: a shard of two tensors, and the next tensor
    for index, (_, array) in enumerate(sorted(read_all(tmp_path / "out").items(), key=lambda pair: int(pair[0]))):
        assert array.dtype == np.float32 and (array == index).all()


def test_saving_again_replaces_every_old_shard(tmp_path: Path) -> None:
    save_weights(arrays().items(), tmp_path, max_shard_size=300)
    (tmp_path / "config.json").write_text("{}")
    save_weights([("z", np.ones(3, np.float32))], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert list(read_all(tmp_path)) == ["z"]
    save_weights(arrays().items(), tmp_path, max_shard_size=300)
    assert_equal(read_all(tmp_path), arrays())


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    save_weights(arrays().items(), tmp_path, max_shard_size=300)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def broken() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", np.ones(1000, np.float32)
        yield "b", np.ones(1000, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_weights(broken(), tmp_path, max_shard_size=300)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_while_writing_no_checkpoint_is_seen(tmp_path: Path) -> None:
    def watched() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in arrays().items():
            with pytest.raises(FileNotFoundError):
                find_weights(tmp_path)
            yield name, array

    save_weights(watched(), tmp_path, max_shard_size=300)
    assert_equal(read_all(tmp_path), arrays())


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a is given twice"):
        save_weights([("a", np.ones(1)), ("a", np.ones(1))], tmp_path)
    with pytest.raises(CheckpointError, match="a has the unsupported dtype complex128"):
        save_weights([("a", np.ones(1, complex))], tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "count"), [("5GB", 5 * 10**9), ("1.5 KB", 1500), ("2MiB", 2 * 2**20), (77, 77), ("77", 77)]
)
def test_sizes(size: str | int, count: int) -> None:
    assert byte_count(size) == count


@pytest.mark.parametrize("size", ["", "5XB", "-1GB", 0, -3, "1.2.3GB", "GB", "0GB"])
def test_wrong_sizes(size: str | int) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        byte_count(size)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An original checkpoint in bfloat16 with its tower beside it."""
    shapes = expected_shapes(Share4VConfig.from_dict(ORIGINAL, VISION))[0]
    generator = torch.Generator().manual_seed(0)
    main, tower = {}, {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator).bfloat16()
        if name.startswith("vision_tower."):
            tower[name.removeprefix("vision_tower.")] = tensor
        else:
            name = name.replace("language_model.model.", "model.").replace("language_model.lm_head", "lm_head")
            main["model." + name if name.startswith("mm_") else name] = tensor
    directory = tmp_path / "source"
    for place, tensors, config in ((directory, main, ORIGINAL), (tmp_path / "tower", tower, VISION)):
        place.mkdir()
        torch.save(tensors, place / "pytorch_model.bin")
        (place / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.model").write_bytes(b"pieces")
    (directory / "special_tokens_map.json").write_text("{}")
    (tmp_path / "tower" / "preprocessor_config.json").write_text('{"size": 28}')
    return directory


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_a_converted_checkpoint_holds_the_same_numbers(source: Path, tmp_path: Path, dtype: str | None) -> None:
    assert convert(source, tmp_path / "out", dtype=dtype, max_shard_size="3KB") == tmp_path / "out"
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    assert (before.format, after.format, after.vision_directory) == ("original", "own", None)
    want = {name: array.astype(dtype or array.dtype) for name, array in read_weights(before).items()}
    assert_equal(read_weights(after), want)
    assert after.config.torch_dtype == (dtype or "float32") and after.config.vision_tower is None
    assert after.config.vision_config == before.config.vision_config
    assert after.config.text_config == before.config.text_config
    assert after.config.extra["freeze_backbone"] is False and after.config.image_aspect_ratio == "pad"
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text()) == {"size": 28}
    assert not any(path.name.startswith(".") for path in (tmp_path / "out").iterdir())


def test_converting_again_replaces_the_result_and_nothing_else(source: Path, tmp_path: Path) -> None:
    out = convert(source, tmp_path / "out", max_shard_size="3KB")
    (out / "notes.txt").write_text("mine")
    convert(source, out, dtype="float16")
    assert find_weights(out).files == (out / "model.safetensors",)
    assert (out / "notes.txt").read_text() == "mine"
    assert {array.dtype.name for array in read_weights(Checkpoint.open(out)).values()} == {"float16"}


def test_a_directory_with_other_things_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert(source, tmp_path / "out")
    with pytest.raises(FileExistsError, match="is a file"):
        convert(source, tmp_path / "out" / "thesis.tex")
    with pytest.raises(FileExistsError, match="is not empty"):
        convert(source, source)
    own = convert(source, tmp_path / "own")
    with pytest.raises(FileExistsError, match="is the source itself"):
        convert(own, own)


def test_what_a_killed_run_left_is_no_hindrance(source: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / ".writing-abc"
    left.mkdir(parents=True)
    (left / "shard-0").write_bytes(b"half")
    assert_equal(read_all(convert(source, tmp_path / "out")), read_all(convert(source, tmp_path / "fresh")))


def test_a_checkpoint_that_does_not_fit_its_config_is_not_converted(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps({**ORIGINAL, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"9 missing: language_model\.model\.layers\.2"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="dtype 'int2' is not supported"):
        convert(source, tmp_path / "out", dtype="int2")


def test_a_tower_can_be_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "tower").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"vision_tower \(--vision-tower\)"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", vision_tower=tmp_path / "moved")
    assert Checkpoint.open(tmp_path / "out").config.vision_config.hidden_size == 8


def test_float16_that_would_overflow_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    big = torch.load(source / "pytorch_model.bin", weights_only=True)
    big["model.norm.weight"][0] = 1e6
    (source / "pytorch_model.bin").unlink()
    save_file(big, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"norm\.weight has values up to 999424"):
        convert(source, tmp_path / "out", dtype="float16")
    assert not list((tmp_path / "out").iterdir())


def test_weights_may_be_read_by_whoever_may_read_other_files(tmp_path: Path) -> None:
    save_weights([("mm_projector.weight", np.ones((2, 3), np.float32))], tmp_path / "out")
    (tmp_path / "plain").touch()
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
