"""LoRA adapters that PEFT and LLaVA write, merged as the checkpoint is read; the reference is PEFT's own merge."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from helpers.adapters import write_adapter
from helpers.llava import SMALL, Reference
from helpers.published_formats import write_llava, write_original
from helpers.weights import read_weights
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from mindone.models.share4v import Share4V, convert, export_gguf
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.checkpoint.adapter_config import RULES
from mindone.models.share4v.checkpoint.adapter_patterns import NamePattern
from mindone.models.share4v.checkpoint.weights import is_known, our_name
from mindone.models.share4v.load_options import CheckpointOptions

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


def test_biases_that_peft_did_not_save_are_reported(
    reference: Reference, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As PEFT 0.17 to 0.20 wrote `bias="lora_only"`."""
    trained(reference.model, target_modules=["out_proj", "o_proj"], bias="lora_only").save_pretrained(tmp_path)
    merged_by_us(base, tmp_path)
    assert not caplog.records
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if "bias" not in name}, path)
    merged_by_us(base, tmp_path)
    assert "was trained with biases, of which its file lacks 1: vision_tower." in caplog.text


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
    assert next(iter(others)) == "base_model.model.model.mm_projector.0.weight"
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
    assert not Checkpoint.open(tmp_path / "vicuna").config.has_vision  # alone, it answers texts only


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


@pytest.fixture(scope="module")
def lora(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora")
    hf_names(reference, directory)
    return directory


@pytest.fixture(scope="module")
def merged(base: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(base, tmp_path_factory.mktemp("merged") / "float32", adapter=lora)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int4"])
def test_a_type_is_rounded_after_the_merge(
    reference: Reference, base: Path, lora: Path, merged: Path, dtype: str
) -> None:
    """Rounding the merged float32 checkpoint gives the same bits; rounding first would not."""
    ids = [[5, 6, 7, 8]]
    ours, same, other = (
        Share4V.from_pretrained(directory, dtype=dtype, adapter=adapter)(input_ids=ids).logits.asnumpy()
        for directory, adapter in ((base, lora), (merged, None), (base, None))
    )
    assert np.array_equal(ours, same) and not np.array_equal(ours, other)


def test_a_converted_checkpoint_keeps_its_types(reference: Reference, lora: Path, tmp_path: Path) -> None:
    half = write_llava(reference, tmp_path / "half", "float16")
    ours = read_weights(Checkpoint.open(convert(half, tmp_path / "merged", adapter=lora)))
    in_float = merged_by_us(half, lora)
    assert {value.dtype.name for value in ours.values()} == {"float16"}
    assert all(np.array_equal(value, in_float[name].astype(np.float16)) for name, value in ours.items())


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_is_merged_in_float32_and_rounded_once(reference: Reference, lora: Path, tmp_path: Path) -> None:
    """PEFT rounds what it adds, and the sum once more, so it may be off by one step; its merge in float32 is exact."""
    brain = write_llava(reference, tmp_path / "brain", "bfloat16")
    torch.manual_seed(0)
    widened = copy.deepcopy(reference.model).to(torch.bfloat16).to(torch.float32)
    exact = merged_by_peft(PeftModel.from_pretrained(widened, str(lora)))
    own = copy.deepcopy(reference.model).to(torch.bfloat16)
    adapted = PeftModel.from_pretrained(own, str(lora)).merge_and_unload()
    rounded_twice = {our_name(name) or "": value for name, value in adapted.state_dict().items() if is_known(name)}
    before = {our_name(name) or "": value for name, value in load_file(brain / "model.safetensors").items()}
    assert_equal(merged_by_us(brain, lora), exact)
    converted = convert(brain, tmp_path / "merged", dtype="bfloat16", adapter=lora)
    ours = load_file(converted / "model.safetensors")
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    for name, value in ours.items():
        once = torch.tensor(exact[name]).to(torch.bfloat16)
        # The float32 sums of two programs differ in the last bits, which may lie on either side of the middle.
        assert (value != once).float().mean() < 1e-3, name
        added = (torch.tensor(exact[name]) - before[name].float()).abs()
        bound = 2.0**-8 * (added + 2 * value.float().abs()) + 1e-6  # half a step of what is added, and one of the sum
        assert ((value.float() - rounded_twice[name].float()).abs() <= bound).all(), name


def test_cells_of_mindspore_have_it_too(base: Path, lora: Path, merged: Path) -> None:
    ours, same = (
        Share4V.from_pretrained(directory, adapter=adapter, language_backend="mindspore", vision_backend="mindspore")
        for directory, adapter in ((base, lora), (merged, None))
    )
    names = ours.parameters_dict()
    assert all(np.array_equal(names[name].asnumpy(), value.asnumpy()) for name, value in same.parameters_dict().items())


def test_gptq_rounds_the_merged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conversion to rotated int4 also calibrates on the merged layers: the file is that of a merged checkpoint."""
    monkeypatch.setattr("mindone.models.share4v.calibration.TOKENS", 600)
    write_adapter(tmp_path / "lora", Checkpoint.open("sharegpt4v-tiny").config.text_config)
    one = convert("sharegpt4v-tiny", tmp_path / "one", dtype="int4", adapter=tmp_path / "lora")
    float32 = convert("sharegpt4v-tiny", tmp_path / "float32", dtype="float32", adapter={tmp_path / "lora": 1})
    two = convert(float32, tmp_path / "two", dtype="int4")
    same = [(directory / "model.safetensors").read_bytes() for directory in (one, two)]
    assert same[0] == same[1]


def changed(lora: Path, directory: Path, change: Any = None, **fields: Any) -> Path:
    """Copy an adapter, with other tensors and other fields of its config."""
    shutil.copytree(lora, directory)
    path = directory / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    if change is not None:
        tensors = load_file(directory / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def refusal(base: str | Path, adapter: Any) -> str:
    """Return the error of opening a checkpoint without its weights: so much is known before any is downloaded."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        Checkpoint.open(base, CheckpointOptions(adapter=adapter), weights=False)
    return str(raised.value)


A = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")
TENSOR_MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "another model's names": (
        lambda tensors: tensors.update(
            {f"base_model.model.transformer.h.{i}.x": tensors.pop(n) for i, n in enumerate(list(tensors))}
        ),
        {},
        r"- \d+ of \d+ changes belong to no weight of the model: base_model\.model\.transformer.*\nIt was made for",
    ),
    "one unknown name": (
        lambda tensors: tensors.update({"base_model.model.extra.weight": tensors[A].clone()}),
        {},
        r"- 1 of \d+ changes belong to no weight of the model: base_model\.model\.extra\.weight",
    ),
    "a layer that the model does not have": (
        lambda tensors: tensors.update({n.replace("layers.0", "layers.9"): tensors[n].clone() for n in (A, B)}),
        {},
        r"belong to no weight of the model: .*layers\.9\.self_attn\.q_proj\.lora_A",
    ),
    "another width": (
        lambda tensors: tensors.update({A: torch.zeros(3, 50)}),
        {},
        r"1 weights have another shape: lang.*q_proj\.weight is \[48, 48\], but the adapter's A is \[3, 50\] and B is",
    ),
    "another rank than the config's": (
        None,
        {"r": 4},
        r"gives .* the rank 4, but its A is \[3, \d+\] and its B \[\d+, 3\]",
    ),
    "A and B of unequal rank": (
        lambda tensors: tensors.update({B: torch.zeros(48, 2)}),
        {},
        r"the rank 3, but its A is \[3, 48\] and its B \[48, 2\]",
    ),
    "a B that is missing": (lambda tensors: tensors.pop(B), {}, r"has lora_A for .*q_proj: expected lora_A and lora_B"),
    "a module that should be saved": (
        None,
        {"modules_to_save": ["lm_head"]},
        r"nothing for 1 weights that its config names: lm_head \(modules_to_save\)",
    ),
    "no magnitudes of DoRA": (None, {"use_dora": True}, r"use_dora is true .* has no lora_magnitude_vector"),
    "an endless name": (
        lambda tensors: tensors.update({A.replace("layers.0", f"layers.{'9' * 5000}"): tensors[A].clone()}),
        {},
        r"a tensor whose name has 5\d\d\d characters, at most 256 are expected: 'base_model\.model.{0,80}'\.\.\.$",
    ),
    "scalars": (
        lambda tensors: tensors.update({A: torch.tensor(1.0), B: torch.tensor(1.0)}),
        {},
        r"its A is \[\] and its B \[\]",
    ),
}


@pytest.mark.parametrize("mistake", TENSOR_MISTAKES)
def test_an_adapter_that_does_not_fit(base: Path, lora: Path, tmp_path: Path, mistake: str) -> None:
    change, fields, message = TENSOR_MISTAKES[mistake]
    directory = changed(lora, tmp_path / "lora", change, base_model_name_or_path="someone/model", **fields)
    text = refusal(base, directory)
    assert re.search(message, text, re.DOTALL) and str(directory) in text


def test_a_layer_that_is_missing_is_named(tmp_path: Path) -> None:
    """A file that was cut off, or of an interrupted training with fewer layers."""
    text = Checkpoint.open("sharegpt4v-tiny").config.text_config
    write_adapter(tmp_path, text, layers=range(text.num_hidden_layers - 1))
    last = f"language_model.model.layers.{text.num_hidden_layers - 1}.mlp.down_proj.weight"
    assert f"it has nothing for 1 weights that its config names: {last}" in refusal("sharegpt4v-tiny", tmp_path)
    write_adapter(tmp_path, text, layers=[1], layers_to_transform=1)
    Checkpoint.open("sharegpt4v-tiny", CheckpointOptions(adapter=tmp_path), weights=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "'peft_type' must be 'LORA', got 'LOHA'; only LoRA adapters can be merged"),
        ({"peft_type": "LOKR"}, "got 'LOKR'"),
        ({"peft_type": "VERA"}, "got 'VERA'"),
        ({"peft_type": "ADALORA"}, "got 'ADALORA'"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication' is set, but repeating layers is not supported: merge"),
        ({"target_parameters": ["experts.w"]}, "'target_parameters' is set, but LoRA of parameters"),
        ({"trainable_token_indices": [1]}, "'trainable_token_indices' is set"),
        ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens' is set"),
        ({"use_qalora": True}, "'use_qalora' is set"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' must be one of .*, got 'pissa': this method changes"),
        ({"init_lora_weights": "pissa_niter_4"}, "got 'pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "got 'loftq'"),
        ({"init_lora_weights": []}, "got a list"),
        ({"use_future": True}, "'use_future' is True, but this field is not known here: delete it if"),
        ({"r": 0}, "'r' must be a positive integer, got 0"),
        ({"r": True}, "'r' must be a positive integer, got True"),
        ({"r": 10**30}, "'r' must be at most 65536, got a number of"),
        ({"r": "8"}, "'r' must be"),
        ({"lora_alpha": float("nan")}, "'lora_alpha' must be a number"),
        ({"lora_alpha": None}, "'lora_alpha' must be a number"),
        ({"use_rslora": "yes"}, "'use_rslora' must be true or false"),
        ({"rank_pattern": [1]}, "'rank_pattern' must be a JSON object, got a list"),
        ({"rank_pattern": {"q_proj": -1}}, "'rank_pattern' 'q_proj' must be a positive integer, got -1"),
        ({"rank_pattern": {"(a+)+$(?=x)": 2}}, "not supported from character"),
        ({"rank_pattern": {"x" * 600: 2}}, "a pattern of 600 characters"),
        ({"alpha_pattern": {f"a.*{i}": 2 for i in range(20)}}, "at most 16 regular expressions, got 20"),
        ({"alpha_pattern": {"((((((a))))))": 2}}, "not supported from character"),
        ({"target_modules": [1]}, "'target_modules' must be a text"),
        ({"modules_to_save": {"a": 1}}, "'modules_to_save' must be a text"),
        ({"layers_to_transform": [-1]}, "'layers_to_transform' must be an integer of at least 0"),
        ({"bias": "some"}, "'bias' must be one of"),
    ],
)
def test_a_config_that_cannot_be_merged(base: Path, lora: Path, tmp_path: Path, fields: Any, message: str) -> None:
    directory = changed(lora, tmp_path / "lora", **fields)
    text = refusal(base, directory)
    assert text.startswith(f"{directory / 'adapter_config.json'}: ") and re.search(message, text) and len(text) < 600


def test_what_every_field_that_peft_writes_means_is_known() -> None:
    assert {item.name for item in dataclasses.fields(LoraConfig)} <= RULES.keys()


def test_files_that_are_missing(base: Path, lora: Path, tmp_path: Path) -> None:
    assert "adapter 'nowhere' is not a directory on this machine" in refusal(base, "nowhere")
    assert f"adapter '{tmp_path}' has no adapter_config.json" in refusal(base, tmp_path)
    shutil.copy(lora / "adapter_config.json", tmp_path)
    assert "has no weights: expected adapter_model.safetensors or adapter_model.bin" in refusal(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    assert "has no peft_type: expected the config of a LoRA adapter" in refusal(base, tmp_path)
    (tmp_path / "adapter_config.json").write_text("[1]")
    assert "expected a JSON object" in refusal(base, tmp_path)
    copy = changed(lora, tmp_path / "lora")
    with (copy / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert str(copy / "adapter_model.safetensors") in refusal(base, copy)


def test_a_base_that_is_already_rounded(base: Path, lora: Path, tmp_path: Path) -> None:
    packed = convert(base, tmp_path / "packed", dtype="int8")
    text = refusal(packed, lora)
    assert "already rounded to int8" in text and "share4v convert ... --adapter DIR --dtype int8" in text


def test_a_tower_that_was_trained_with_the_adapter_is_not_ignored(
    llava_lora: tuple[Path, Path, PeftModel], tmp_path: Path
) -> None:
    original, lora, _ = llava_lora
    copy = Path(shutil.copytree(lora, tmp_path / "lora"))
    shutil.copytree(original.parent / "vit-tiny-l3", copy / "vision_tower")
    assert f"pass {copy / 'vision_tower'} as vision_tower (--vision-tower)" in refusal(original, copy)
    opened = Checkpoint.open(original, CheckpointOptions(adapter=copy, vision_tower=copy / "vision_tower"))
    assert opened.vision_directory == copy / "vision_tower"


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.full((3, 48), torch.inf), "not finite"), (torch.zeros((3, 48), dtype=torch.int32), "is int32, expected")],
)
def test_tensors_that_are_no_numbers(base: Path, lora: Path, tmp_path: Path, value: torch.Tensor, message: str) -> None:
    directory = changed(lora, tmp_path / "lora", lambda tensors: tensors.update({A: value}))
    with pytest.raises(CheckpointError, match=message) as raised:
        merged_by_us(base, directory)
    assert A in str(raised.value) and str(directory) in str(raised.value)


def test_one_adapter_under_two_names_is_refused(base: Path, lora: Path) -> None:
    with pytest.raises(ValueError, match=r"is the same directory as .* with the sum of the weights"):
        Share4V.from_pretrained(base, adapter={str(lora): 1.0, f"{lora}/../{lora.name}": 0.5})


def test_a_pickle_that_would_run_code_is_refused(base: Path, lora: Path, tmp_path: Path) -> None:
    directory = changed(lora, tmp_path / "lora")
    torch.save({"x": Path}, directory / "non_lora_trainables.bin")
    assert "non_lora_trainables.bin" in refusal(base, directory)


@pytest.mark.parametrize(
    ("given", "error"),
    [(5, TypeError), (["a"], TypeError), ({1: 1.0}, TypeError), ({"a": "1"}, ValueError), ({"a": np.nan}, ValueError)],
)
def test_what_is_no_adapter(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="adapter"):
        CheckpointOptions(adapter=given)


@pytest.mark.parametrize("pattern", ["(.*.*.*)*x", "(a|a|a)*" * 4, ".*" * 8 + "x", "((a*)*)*", r"(\w+\.?)+\d"])
def test_patterns_take_bounded_time(pattern: str) -> None:
    """The number of steps is bounded, which a hang would show; what matches is what `re` says, on names so short."""
    parsed = NamePattern.parse(pattern)
    assert not parsed.matches("a." * 100 + "!")
    for name in ("a", "aa.ax", "q.1", ""):
        assert parsed.matches(name) == bool(re.match(rf"(.*\.)?({pattern})$", name))


def test_what_a_hostile_adapter_can_ask_for_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bounds, tensors of no bytes times patterns would take hours."""
    monkeypatch.setattr("mindone.models.share4v.checkpoint.adapter_patterns.MAX_STEPS", 100_000)
    costly = NamePattern.parse("((((.*.*)*)*.*)*.*)*y")
    with pytest.raises(CheckpointError, match="takes more than 100000 steps"):
        for layer in range(4000):
            costly.matches(f"model.layers.{layer}{'1' * 100}.self_attn.q_proj")
    plain = NamePattern.parse(r"(.*\.)?layers\.(1|2|3|4|5|6|7|8|9)?\d\.(self_attn\.[qkvo]_proj|mlp\..*_proj)")
    for layer in range(600):
        assert plain.matches(f"base.model.layers.{layer}.self_attn.q_proj") == (layer < 100)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"
    tensors = {name.format(number): np.zeros((2, 0), np.float32) for number in range(5000)}
    (tmp_path / "lora").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has 5000 tensors, at most 4096 are expected"):
        Checkpoint.open("sharegpt4v-tiny", CheckpointOptions(adapter=tmp_path / "lora"))


def test_gguf_files_are_read_and_written_with_an_adapter(tmp_path: Path) -> None:
    """GGUF has rows of queries and keys in another order. sharegpt4v-tiny's float16 weights are exact in it."""
    text = Checkpoint.open("sharegpt4v-tiny").config.text_config
    modules = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    lora = write_adapter(tmp_path / "lora", text, modules=modules)
    expected = merged_by_us("sharegpt4v-tiny", lora)
    for dtype, adapter in (("f16", None), ("f32", lora)):
        names = tmp_path / dtype / "tiny.gguf", tmp_path / dtype / "mmproj-tiny.gguf"
        export_gguf("sharegpt4v-tiny", *names, dtype=dtype, adapter=adapter)
    read, written = merged_by_us(tmp_path / "f16", lora), merged_by_us(tmp_path / "f32", None)
    changed = [name for name in expected if "layers." in name and name.removesuffix(".weight").endswith(modules)]
    changed = [name for name in changed if name.startswith("language_model.")]
    assert len(changed) == 3 * text.num_hidden_layers
    for name in changed:
        np.testing.assert_array_equal(read[name], expected[name])
        np.testing.assert_array_equal(written[name], expected[name])


def test_integers_of_a_gguf_file_are_not_kept_under_an_adapter(tmp_path: Path) -> None:
    lora = write_adapter(tmp_path / "lora", Checkpoint.open("sharegpt4v-tiny").config.text_config)
    names = tmp_path / "tiny.gguf", tmp_path / "mmproj-tiny.gguf"
    export_gguf("sharegpt4v-tiny", *names, dtype="q8_0")
    merged = convert(names[0], tmp_path / "float32", dtype="float32", adapter=lora)
    ids = [[1, 5, 6, 7]]
    ours, same, other = (
        Share4V.from_pretrained(source, dtype="int8", adapter=adapter)(input_ids=ids).logits.asnumpy()
        for source, adapter in ((names[0], lora), (merged, None), (names[0], None))
    )
    assert np.array_equal(ours, same) and not np.array_equal(ours, other)
