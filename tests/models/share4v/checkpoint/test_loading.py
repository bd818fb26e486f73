"""Checkpoints of every published form, written by transformers and torch, found and loaded strictly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.weights import read_weights
from mindspore import Parameter, float16, float32, nn
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError, load_weights
from mindone.models.share4v.checkpoint.weights import expected_shapes
from mindone.models.share4v.load_options import CheckpointOptions

VISION = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = "someone/some-tower"
ORIGINAL = {
    "model_type": "share4v",
    **TEXT,
    "mm_hidden_size": 8,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": TOWER,
    "unknown_field": 7,
}


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def llava(tied: bool = False) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, tie_word_embeddings=tied),
        image_token_index=19,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():  # norms are all ones and zeros at first: two of them could be exchanged unseen
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


def expected(model: LlavaForConditionalGeneration) -> dict[str, np.ndarray]:
    """Name the weights of transformers' model as ours, in this test's own way."""
    prefixes = {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.linear_1.": "mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "mm_projector.2.",
        "lm_head.": "language_model.lm_head.",
    }
    named = {}
    for name, tensor in model.state_dict().items():
        prefix = next(item for item in prefixes if name.startswith(item))
        named[prefixes[prefix] + name[len(prefix) :]] = tensor.float().numpy()
    return named


def parts_of_the_original(model: LlavaForConditionalGeneration) -> tuple[dict, dict]:
    """Return the main checkpoint's tensors and the vision tower's, under the original's names."""
    main, tower = {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith("model.vision_tower."):
            tower[name.removeprefix("model.vision_tower.")] = tensor
        else:
            name = name.replace("model.language_model.", "model.")
            name = name.replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
            main[name.replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")] = tensor
    main["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    tower["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    return main, tower


def write_json(path: Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def write_tower(directory: Path, tower: dict) -> Path:
    write_json(directory / "config.json", {"model_type": "clip_vision_model", **VISION})
    torch.save(tower, directory / "pytorch_model.bin")
    return directory


def write_original(directory: Path, model: LlavaForConditionalGeneration, dtype=torch.float32, **config) -> Path:
    """Write the original form: two .bin shards with an index, no tower."""
    main, _ = parts_of_the_original(model)
    write_json(directory / "config.json", {**ORIGINAL, **config})
    names = sorted(main)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, members in shards.items():
        torch.save({name: main[name].to(dtype) for name in members}, directory / shard)
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
    return directory


class Weights(nn.Cell):
    """A cell with nothing but the parameters that a config asks for."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.insert_param_to_cell(name.replace(".", "_"), Parameter(initializer("zeros", shape, float32), name))


def cell_for(checkpoint) -> Weights:
    with no_init_parameters():
        return Weights(expected_shapes(checkpoint.config)[0])


def assert_loads(checkpoint, want: dict[str, np.ndarray], dtype: str | None = None) -> None:
    cell = cell_for(checkpoint)
    load_weights(cell, checkpoint, dtype)
    got = {parameter.name: parameter for parameter in cell.get_parameters()}
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].dtype == (float16 if dtype == "float16" else float32)
        np.testing.assert_array_equal(got[name].asnumpy(), array.astype(dtype or "float32"), err_msg=name)


@pytest.mark.parametrize("dtype", [None, "float16"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "4KB"}, {"safe_serialization": False}])
def test_what_transformers_saves_of_llava(tmp_path: Path, options: dict, dtype: str | None) -> None:
    model = llava()
    model.save_pretrained(tmp_path, **options)
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.format, checkpoint.vision_directory, checkpoint.config.image_token_id) == ("llava", None, 19)
    assert_loads(checkpoint, expected(model), dtype)


def test_llava_under_its_new_names(tmp_path: Path) -> None:
    model = llava()
    model.config.save_pretrained(tmp_path)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "model.safetensors"
    )
    assert_loads(Checkpoint.open(tmp_path), expected(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_original_form_with_the_tower_beside_it(tmp_path: Path, dtype: torch.dtype) -> None:
    model = llava().to(dtype)
    directory = write_original(tmp_path / "main", model, dtype)
    tower = write_tower(tmp_path / "some-tower", parts_of_the_original(model)[1])
    checkpoint = Checkpoint.open(directory)
    assert (checkpoint.format, checkpoint.vision_directory) == ("original", tower)
    assert checkpoint.config.vision_config.hidden_size == 8 and checkpoint.config.extra["unknown_field"] == 7
    assert_loads(checkpoint, expected(model))


@pytest.mark.parametrize("place", ["someone/some-tower", "../someone/some-tower", "some-tower", "absolute", "given"])
def test_the_places_where_a_tower_is_looked_for(tmp_path: Path, place: str) -> None:
    model = llava()
    directory = tmp_path / "main"
    at = tmp_path / "elsewhere" if place in ("absolute", "given") else directory / place
    named = str(at) if place == "absolute" else TOWER
    write_original(directory, model, mm_vision_tower=named)
    write_tower(at, parts_of_the_original(model)[1])
    checkpoint = Checkpoint.open(directory, CheckpointOptions(vision_tower=at if place == "given" else None))
    assert checkpoint.vision_directory is not None and checkpoint.vision_directory.samefile(at)


def test_a_tower_that_cannot_be_had_says_what_was_tried(tmp_path: Path) -> None:
    directory = write_original(tmp_path / "main", llava())
    (tmp_path / "some-tower").mkdir()
    with pytest.raises(CheckpointError) as raised:
        Checkpoint.open(directory)
    message = str(raised.value)
    assert f"directory {tmp_path / 'some-tower'}: has no config.json" in message
    assert f"hub {TOWER}" in message and "Pass vision_tower (--vision-tower)" in message
    with pytest.raises(CheckpointError, match="'nowhere' was not found"):
        Checkpoint.open(directory, CheckpointOptions(vision_tower="nowhere"))


def test_a_tower_without_weights_is_enough_for_the_configs_alone(tmp_path: Path) -> None:
    directory = write_original(tmp_path / "main", llava())
    for weights in directory.glob("*.bin*"):
        weights.unlink()
    write_json(tmp_path / "some-tower" / "config.json", VISION)
    checkpoint = Checkpoint.open(directory, weights=False)
    assert checkpoint.config.vision_config.image_size == 28 and checkpoint.vision_directory == tmp_path / "some-tower"
    with pytest.raises(FileNotFoundError, match="no weights"):
        Checkpoint.open(directory)


def test_without_a_tower_the_configs_alone_are_those_of_every_published_checkpoint(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {**ORIGINAL, "mm_hidden_size": 1024})
    checkpoint = Checkpoint.open(tmp_path, weights=False)
    assert checkpoint.vision_directory is None and checkpoint.config.vision_config.image_size == 336
    write_json(tmp_path / "config.json", ORIGINAL)
    with pytest.raises(CheckpointError, match="mm_hidden_size 8 contradicts"):
        Checkpoint.open(tmp_path, weights=False)


def test_a_tower_inside_the_checkpoint_is_used(tmp_path: Path) -> None:
    model = llava()
    directory = write_original(tmp_path / "main", model)
    main, tower = parts_of_the_original(model)
    inside = {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in {**main, **inside}.items()}, directory / "model.safetensors"
    )
    write_json(tmp_path / "some-tower" / "config.json", VISION)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.vision_directory is None
    assert_loads(checkpoint, expected(model))


def test_a_tower_that_is_asked_for_replaces_the_one_inside(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path / "main")
    other = {name: tensor.float() + 1 for name, tensor in parts_of_the_original(model)[1].items()}
    tower = write_tower(tmp_path / "other", other)
    want = {name: array + 1 if name.startswith("vision_tower") else array for name, array in expected(model).items()}
    assert_loads(Checkpoint.open(tmp_path / "main", CheckpointOptions(vision_tower=tower)), want)


def test_the_earlier_ports_ckpt_files(tmp_path: Path) -> None:
    import mindspore as ms

    model = llava()
    main, tower = parts_of_the_original(model)
    write_json(tmp_path / "config.json", ORIGINAL)
    write_json(tmp_path / "some-tower" / "config.json", VISION)
    for name, tensors in {"llama.ckpt": main, "vit.ckpt": tower}.items():
        renamed = {}
        for key, tensor in tensors.items():
            key = key.replace("self_attn.q_proj", "attention.wq") if key.startswith("model.layers") else key
            key = key.replace("embed_tokens.weight", "embed_tokens.embedding_table").replace(
                "model.norm", "model.norm_out"
            )
            if key.startswith("vision_model"):
                key = "vision_tower." + key
                key = key.replace("weight", "gamma").replace("bias", "beta") if "norm" in key else key
            renamed[key] = ms.Tensor(tensor.numpy())
        ms.save_checkpoint([{"name": key, "data": value} for key, value in renamed.items()], str(tmp_path / name))
    assert_loads(Checkpoint.open(tmp_path), expected(model))


@pytest.mark.parametrize("written", [False, True])
def test_tied_embeddings_with_and_without_an_output_layer(tmp_path: Path, written: bool) -> None:
    model = llava(tied=True)
    model.save_pretrained(tmp_path)
    want = expected(model)
    head = want.pop("language_model.lm_head.weight")
    if written:
        save_file(
            {name: torch.from_numpy(array) for name, array in {**want, "lm_head.weight": head.copy()}.items()},
            tmp_path / "model.safetensors",
        )
    assert_loads(Checkpoint.open(tmp_path), want)


def test_tied_embeddings_that_differ_are_an_error(tmp_path: Path) -> None:
    model = llava(tied=True)
    model.save_pretrained(tmp_path)
    tensors = {name: torch.from_numpy(array) for name, array in expected(model).items()}
    tensors["language_model.lm_head.weight"] = tensors["language_model.lm_head.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="sets tie_word_embeddings"):
        read_weights(Checkpoint.open(tmp_path))


def write_ours(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file({name: torch.from_numpy(array) for name, array in tensors.items()}, directory / "model.safetensors")


def test_missing_extra_and_misshapen_weights_are_all_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    tensors = expected(model)
    checkpoint = Checkpoint.open(tmp_path)
    cell = cell_for(checkpoint)
    del tensors["language_model.model.norm.weight"]
    tensors["language_model.model.layers.9.mlp.up_proj.weight"] = np.ones((1, 1), np.float32)
    tensors["mm_projector.0.weight"] = np.ones((8, 16), np.float32)
    write_ours(tmp_path, tensors)
    with pytest.raises(CheckpointError) as raised:
        load_weights(cell, checkpoint)
    message = str(raised.value)
    assert "1 missing: language_model.model.norm.weight" in message
    assert "1 not in the model: language_model.model.layers.9.mlp.up_proj.weight" in message
    assert "mm_projector.0.weight is [8, 16], expected [16, 8]" in message
    assert all(parameter.has_init for parameter in cell.get_parameters())


def test_ten_of_many_missing_weights_are_shown(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    count = len(expected(model))
    write_ours(tmp_path, {"mm_projector.0.bias": np.ones(16, np.float32)})
    with pytest.raises(CheckpointError, match=rf"{count - 1} missing: .* and {count - 11} more"):
        load_weights(cell_for(checkpoint), checkpoint)


def test_an_unknown_name_and_two_sources_are_errors(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    tensors = expected(model)
    write_ours(tmp_path, {**tensors, "model.layers.0.q.lora_A": np.ones(1, np.float32), "x": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match=r"2 tensors whose names .*model\.layers\.0\.q\.lora_A"):
        read_weights(Checkpoint.open(tmp_path))
    write_ours(tmp_path, {**tensors, "model.norm.weight": np.ones(16, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"two tensors have the name language_model\.model\.norm\.weight: .*norm\.weight in"
    ):
        read_weights(Checkpoint.open(tmp_path))


def test_a_value_too_large_for_float16_is_an_error(tmp_path: Path) -> None:
    model = llava()
    model.save_pretrained(tmp_path)
    tensors = expected(model)
    tensors["mm_projector.0.bias"][3] = 1e5
    write_ours(tmp_path, tensors)
    checkpoint = Checkpoint.open(tmp_path)
    with pytest.raises(CheckpointError, match=r"mm_projector\.0\.bias has values up to 100000"):
        load_weights(cell_for(checkpoint), checkpoint, "float16")
    with pytest.raises(ValueError, match="dtype 'float8' is not supported"):
        load_weights(cell_for(checkpoint), checkpoint, "float8")


def test_a_saved_file_may_be_replaced_after_loading(tmp_path: Path) -> None:
    """The parameters hold copies, not views of the file."""
    model = llava()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    cell = cell_for(checkpoint)
    load_weights(cell, checkpoint)
    path = tmp_path / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(0)
        file.write(b"\0" * path.stat().st_size)
    shutil.rmtree(tmp_path)
    want = expected(model)
    for parameter in cell.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), want[parameter.name])


@pytest.mark.parametrize("projector", ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp4x_gelu"])
@pytest.mark.parametrize("switch", [False, True])
def test_the_expected_shapes_are_those_of_the_model(projector: str, switch: bool) -> None:
    from mindone.models.share4v import Share4V, Share4VConfig

    changes = {"mm_projector_type": projector, "tie_word_embeddings": switch, "attention_bias": switch}
    config = Share4VConfig.from_dict({**ORIGINAL, **changes, "head_dim": 6}, VISION)
    parameters = Share4V(config).parameters_dict()
    assert {name: tuple(parameter.shape) for name, parameter in parameters.items()} == expected_shapes(config)[0]
