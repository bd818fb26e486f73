"""LoRA adapters that PEFT and LLaVA write, merged as the checkpoint is read; the reference is PEFT's own merge."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.llava import SMALL, Reference
from helpers.published_formats import write_llava, write_original
from helpers.weights import read_weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from mindone.models.share4v import Share4V, convert
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.checkpoint.weights import is_known, our_name
from mindone.models.share4v.load_options import CheckpointOptions

QUERIES = "model.language_model.layers.0.self_attn.q_proj"
Weights = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(SMALL)


@pytest.fixture(scope="module")
def base(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(reference, tmp_path_factory.mktemp("base") / "llava")


def trained(model: torch.nn.Module, seed: int = 0, **fields: Any) -> PeftModel:
    """Return a model with an adapter whose every trained value is random."""
    torch.manual_seed(seed)
    fields = {"r": 3, "lora_alpha": 6, "init_lora_weights": False, "target_modules": ["q_proj", "down_proj"], **fields}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**fields))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return adapted


def merged_by_peft(adapted: PeftModel) -> Weights:
    merged = copy.deepcopy(adapted).merge_and_unload().state_dict()
    return {our_name(name) or "": tensor.numpy() for name, tensor in merged.items() if is_known(name)}


def merged_by_us(base: Path, adapter: Any, **options: Any) -> Weights:
    return read_weights(Checkpoint.open(base, CheckpointOptions(adapter=adapter, **options)))


def assert_equal(ours: Weights, theirs: Weights) -> None:
    assert ours.keys() == theirs.keys() - {""}
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"language_model\.layers\.\d+\.mlp.*": 1.5}},
        {"rank_pattern": {r"^model\.language_model.layers.0.self_attn.q_proj": 2}, "use_rslora": True},
        {"bias": "all"},
        {"target_modules": ["out_proj", "o_proj"], "bias": "lora_only"},
        {"target_modules": ["fc1"], "lora_bias": True},
        {"modules_to_save": ["multi_modal_projector", "lm_head", "norm"]},
        {"use_dora": True, "target_modules": "all-linear"},
        {"target_modules": ["embed_tokens", "patch_embedding", "lm_head"]},
        {"fan_in_fan_out": True},
        {"target_modules": r".*layers\.0.*(gate|up)_proj", "layers_to_transform": None},
        {"exclude_modules": ["self_attn.v_proj"], "target_modules": ["v_proj", "k_proj"]},
        {"init_lora_weights": "orthogonal", "r": 4},
    ],
    ids=lambda fields: " ".join(fields) or "plain",
)
@pytest.mark.filterwarnings("ignore")
def test_it_is_pefts_merge(reference: Reference, base: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    if "exclude_modules" in fields:
        fields = {**fields, "exclude_modules": r".*vision.*"}
    adapted = trained(reference.model, **fields)
    adapted.save_pretrained(tmp_path)
    theirs = merged_by_peft(adapted)
    ours = merged_by_us(base, tmp_path)
    assert_equal(ours, theirs)
    assert any(not np.array_equal(ours[name], value) for name, value in merged_by_us(base, None).items())


def hf_names(reference: Reference, directory: Path) -> None:
    trained(reference.model).save_pretrained(directory)


def hf_names_until_4_51(reference: Reference, directory: Path) -> None:
    """Those of mindone too: the language model is a LlamaForCausalLM inside the model."""
    hf_names(reference, directory)
    _rename(directory, "model.model.language_model.", "model.language_model.model.")
    _rename(directory, "model.model.vision_tower.", "model.vision_tower.")


def _rename(directory: Path, before: str, after: str) -> None:
    path = directory / "adapter_model.safetensors"
    save_file({name.replace(before, after): tensor for name, tensor in load_file(path).items()}, path)


def as_bin(reference: Reference, directory: Path) -> None:
    hf_names(reference, directory)
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()


@pytest.mark.parametrize("write", [hf_names, hf_names_until_4_51, as_bin])
def test_every_form_of_an_adapter(reference: Reference, base: Path, tmp_path: Path, write: Any) -> None:
    write(reference, tmp_path)
    assert_equal(merged_by_us(base, tmp_path), merged_by_peft(trained(reference.model)))


def llava_model(reference: Reference) -> LlamaForCausalLM:
    """LLaVA's own class: a language model whose inner model has the projector."""
    config = reference.model.config.text_config
    model = LlamaForCausalLM(config)
    inner = reference.model.model
    model.model.load_state_dict(inner.language_model.state_dict())
    model.lm_head.load_state_dict(reference.model.lm_head.state_dict())
    projector = inner.multi_modal_projector
    model.model.mm_projector = torch.nn.Sequential(projector.linear_1, torch.nn.GELU(), projector.linear_2)
    return model


def write_llava_lora(adapted: PeftModel, directory: Path, config: dict[str, Any]) -> None:
    """What LLaVA's train.py writes: its own config.json, and the projector in a file of its own."""
    adapted.save_pretrained(directory)
    path = directory / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()
    others = {name: value for name, value in adapted.named_parameters() if "mm_projector" in name}
    assert list(others)[0] == "base_model.model.model.mm_projector.0.weight"
    torch.save({name: value.detach() for name, value in others.items()}, directory / "non_lora_trainables.bin")
    (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def llava_lora(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PeftModel]:
    """The original checkpoint, LLaVA's adapter of it, and the adapted model; every layer's linear parts are adapted."""
    folder = tmp_path_factory.mktemp("llava-lora")
    original = write_original(reference, folder)
    targets = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]
    adapted = trained(llava_model(reference), target_modules=targets, r=4, lora_alpha=8)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "mm_projector" in name:
                parameter.add_(0.1)
    config = json.loads((original / "config.json").read_text())
    write_llava_lora(adapted, folder / "lora", {**config, "model_type": "llava", "image_aspect_ratio": "square"})
    return original, folder / "lora", adapted


def test_llavas_adapter_of_a_complete_model(llava_lora: tuple[Path, Path, PeftModel]) -> None:
    original, lora, adapted = llava_lora
    ours, theirs = merged_by_us(original, lora), merged_by_peft(adapted)
    assert_equal({name: ours[name] for name in theirs}, theirs)
    assert len(ours) > len(theirs)  # the tower's weights
    config = Checkpoint.open(original, CheckpointOptions(adapter=lora)).config
    assert config.image_aspect_ratio == "square" and Checkpoint.open(original).config.image_aspect_ratio == "pad"


def test_llavas_adapter_of_a_language_model(
    reference: Reference, llava_lora: tuple[Path, Path, PeftModel], tmp_path: Path
) -> None:
    """As LLaVA publishes them: the base is Vicuna, and config.json and the projector come with the adapter."""
    original, lora, adapted = llava_lora
    plain = llava_model(reference)
    del plain.model.mm_projector
    plain.save_pretrained(tmp_path / "vicuna")
    tower = original.parent / "vit-tiny-l3"
    ours, theirs = merged_by_us(tmp_path / "vicuna", lora, vision_tower=tower), merged_by_peft(adapted)
    assert_equal({name: ours[name] for name in theirs}, theirs)
    with pytest.raises(ValueError, match="language model, which cannot see images by itself"):
        Checkpoint.open(tmp_path / "vicuna")


def test_several_adapters_with_weights(reference: Reference, base: Path, tmp_path: Path) -> None:
    """The reference is the sum of what each adapter changes, which is PEFT's definition for plain LoRA."""
    kinds: list[dict[str, Any]] = [
        {},
        {"use_dora": True, "target_modules": ["q_proj"]},
        {"modules_to_save": ["multi_modal_projector", "q_proj"], "target_modules": ["up_proj"]},
    ]
    before = merged_by_us(base, None)
    theirs = {name: value.astype(np.float64) for name, value in before.items()}
    weights = {str(tmp_path / str(number)): weight for number, weight in enumerate((1.0, 0.5, -0.25))}
    for seed, (fields, (path, weight)) in enumerate(zip(kinds, weights.items(), strict=True)):
        adapted = trained(reference.model, seed, **fields)
        adapted.save_pretrained(path)
        for name, value in merged_by_peft(adapted).items():
            theirs[name] += weight * (value - before[name])
    assert_equal(merged_by_us(base, weights), {name: value.astype(np.float32) for name, value in theirs.items()})
