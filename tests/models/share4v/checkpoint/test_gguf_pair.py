"""Pairs of GGUF files, read and refused; against llama.cpp's package `gguf`, transformers and sentencepiece."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize
from helpers.weights import read_weights

from mindone.models.share4v import Share4V, Share4VProcessor, Tokenizer, convert, export_gguf, resolve
from mindone.models.share4v.calibration import TEXT
from mindone.models.share4v.checkpoint import Checkpoint, CheckpointError
from mindone.models.share4v.checkpoint.loading import weight_entries
from mindone.models.share4v.checkpoint.packed import unpack
from mindone.models.share4v.configuration import RopeScaling
from mindone.models.share4v.language.weights import LANGUAGE_MODEL, LM_HEAD
from mindone.models.share4v.load_options import CheckpointOptions
from mindone.models.share4v.processing.gguf_vocabulary import template_of_gguf, tokenizer_arguments
from mindone.models.share4v.processing.processor import Share4VProcessor as Processor

TINY = "sharegpt4v-tiny"
OTHERS = ["", " ", "  two  spaces ", "Größe 猫 🦜\n\n\ttab", "<s>a</s>b<unk>", "▁x", "a" * 300, "\x00\x01", "É\u0301"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each type, with sharegpt4v-tiny in it."""
    folder = tmp_path_factory.mktemp("gguf")
    for dtype in ("f32", "f16", "q8_0", "q4_0"):
        export_gguf(TINY, folder / dtype / "model.gguf", folder / dtype / "mmproj-model.gguf", dtype=dtype)
    return folder


def open_file(path: Path, **options: Any) -> Checkpoint:
    return Checkpoint.open(path, CheckpointOptions(**options))


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_float_types_are_exact_both_ways(pairs: Path, dtype: str) -> None:
    """sharegpt4v-tiny's weights are float16."""
    original, ours = Checkpoint.open(TINY), Checkpoint.open(pairs / dtype)
    before, after = read_weights(original), read_weights(ours)
    for name, weight in after.items():
        np.testing.assert_array_equal(weight, before[name])
    assert all(".encoder.layers.3." in name for name in before.keys() - after.keys()), "layers behind the selected one"
    assert ours.config.text_config == original.config.text_config
    assert ours.config.hidden_state_index == original.config.hidden_state_index == 3
    assert (ours.config.image_aspect_ratio, ours.format) == ("pad", "gguf")
    processor, expected = Share4VProcessor.from_checkpoint(ours), Share4VProcessor.from_pretrained(TINY)
    assert processor.image_processor == expected.image_processor
    assert processor.conversation == expected.conversation


def test_a_caption_is_the_same(pairs: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
    captions = []
    for name in (TINY, pairs / "f16" / "model.gguf"):
        model, processor = Share4V.from_pretrained(name), Share4VProcessor.from_pretrained(name)
        inputs = processor(images=image, text="Describe this image")
        captions.append(model.generate(**inputs, max_new_tokens=40))
        assert model.tokenizer.decode(captions[-1][0]) == processor.tokenizer.decode(captions[-1][0])
    assert captions[0] == captions[1]


def test_version_2_is_read_like_version_3(pairs: Path, tmp_path: Path) -> None:
    """The two differ in the number only: version 3 added big-endian files, which are refused. GGUFReader reads both."""
    files = []
    for name in ("model.gguf", "mmproj-model.gguf"):
        data = bytearray((pairs / "f16" / name).read_bytes())
        assert data[4:8] == (3).to_bytes(4, "little")
        data[4:8] = (2).to_bytes(4, "little")
        files.append(tmp_path / name)
        files[-1].write_bytes(data)
        assert GGUFReader(files[-1]).fields["GGUF.version"].contents() == 2
    before = read_weights(open_file(pairs / "f16"))
    after = read_weights(open_file(files[0], vision_tower=files[1]))
    assert before.keys() == after.keys()
    for name, weight in after.items():
        np.testing.assert_array_equal(weight, before[name])


@pytest.mark.parametrize(("file", "dtype"), [("q4_0", "int4"), ("q4_0", "int8"), ("q8_0", "int8")])
def test_integers_are_kept(pairs: Path, tmp_path: Path, file: str, dtype: str) -> None:
    """The kernels' blocks hold exactly the values that llama.cpp's package reads, also in a converted directory."""
    source = pairs / file
    expected = values_by_our_names(source / "model.gguf")
    lines: list[str] = []
    convert(source, tmp_path / "converted", dtype=dtype, on_note=lines.append)
    assert any("exact, since its integers and scales are kept" in line for line in lines)
    loaded, converted = (
        Share4V.from_pretrained(source, dtype=dtype),
        Share4V.from_pretrained(tmp_path / "converted"),
    )
    for model in (loaded, converted):
        language = model.packed_components()[-1]
        compared = set()
        for plan in language.plans[1:]:  # the table of embeddings is float16
            for name, weight in unpack(plan, language.array(plan.name)):
                np.testing.assert_array_equal(weight, expected[name].astype(weight.dtype), err_msg=name)
                compared.add(name)
        assert len(compared) == 3 * 9 + 2
    for plan in loaded.packed_components()[-1].plans:
        blocks = [model.packed_components()[-1].array(plan.name) for model in (loaded, converted)]
        np.testing.assert_array_equal(*blocks)


def values_by_our_names(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a language model's file as llama.cpp's package reads it, rows in Hugging Face's order."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    reader = GGUFReader(path)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2}
    processor = LlamaTensorProcessor(config=config)
    names = {theirs: ours for ours, theirs in our_names().items()}
    values = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type)
        result = processor.process(weights=weight, name=tensor.name)
        values[names[tensor.name]] = result.weights
    return values


def our_names() -> dict[str, str]:
    from mindone.models.share4v.checkpoint.gguf.writing import gguf_name

    names = [name for name in weight_entries(Checkpoint.open(TINY)) if name.startswith((LANGUAGE_MODEL, LM_HEAD))]
    return {name: gguf_name(name) for name in names}


def test_transformers_reads_the_language_model(pairs: Path) -> None:
    """transformers' own reader undoes the order of rows and the types; the vocabulary it ignores here."""
    before = read_weights(Checkpoint.open(TINY))
    for name, value in values_by_our_names(pairs / "f16" / "model.gguf").items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


Change = Callable[[dict[str, Any], dict[str, tuple[np.ndarray, GGMLQuantizationType]]], None]


def rewrite(source: Path, target: Path, change: Change, **options: Any) -> None:
    """Write a file anew with llama.cpp's package, after `change` has changed its metadata and tensors."""
    reader = GGUFReader(source)
    metadata = {
        name: (field.contents(), field.types[0], field.types[-1])
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    tensors = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in reader.tensors}
    values = {name: value for name, (value, *_) in metadata.items()}
    change(values, tensors)
    target.parent.mkdir(exist_ok=True)
    writer = GGUFWriter(target, values.pop("general.architecture"), **options)
    for name, value in values.items():
        kinds = metadata.get(name)
        if kinds is not None and not isinstance(value, (list, str)) and type(value) is type(kinds[0]):
            writer.add_key_value(name, value, kinds[1])
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        else:
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(name, value)
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_old_converter(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
    """What llama.cpp's first converter wrote: no feature_layer, and the MLP's matrices with each other's names."""
    for key in ("clip.vision.feature_layer", "clip.vision.image_aspect_ratio", "general.type"):
        del metadata[key]


def as_new_names(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
    """Give the MLP's matrices the names that current converters write."""
    for number in range(3):
        for kind in ("weight", "bias"):
            up, down = f"v.blk.{number}.ffn_up.{kind}", f"v.blk.{number}.ffn_down.{kind}"
            tensors[up], tensors[down] = tensors[down], tensors[up]


def test_either_generation_of_mmproj_files_is_recognised(pairs: Path, tmp_path: Path) -> None:
    rewrite(pairs / "f16" / "mmproj-model.gguf", tmp_path / "old.gguf", as_old_converter)
    rewrite(pairs / "f16" / "mmproj-model.gguf", tmp_path / "new.gguf", as_new_names)
    new, old = (
        open_file(pairs / "f16" / "model.gguf", vision_tower=tmp_path / tower) for tower in ("new.gguf", "old.gguf")
    )
    assert old.gguf is not None and "each other's names" in old.gguf.notes[-1]
    assert new.gguf is not None and not any("each other's names" in note for note in new.gguf.notes)
    assert new.config == old.config, "three layers run: none is dropped again"
    for name, weight in read_weights(new).items():
        np.testing.assert_array_equal(read_weights(old)[name], weight, err_msg=name)


def test_of_a_complete_clip_the_last_layer_is_not_used(pairs: Path, tmp_path: Path) -> None:
    from mindone.models.share4v.checkpoint.formats.gguf import open_gguf
    from mindone.models.share4v.checkpoint.gguf import metadata
    from mindone.models.share4v.configuration import VisionConfig

    rewrite(pairs / "f16" / "mmproj-model.gguf", tmp_path / "old.gguf", as_old_converter)
    file = open_gguf(tmp_path / "old.gguf")
    sizes = {"hidden_size": 1024, "num_attention_heads": 16}
    for layers, selected in ((24, 23), (23, 23)):
        config = VisionConfig(num_hidden_layers=layers, **sizes)
        assert metadata._selected_layer(file, config)[0] == selected


def test_a_split_model_is_read(pairs: Path, tmp_path: Path) -> None:
    whole = pairs / "q8_0" / "model.gguf"
    rewrite(whole, tmp_path / "model.gguf", lambda metadata, tensors: None, split_max_tensors=12)
    parts = sorted(tmp_path.glob("model-*.gguf"))
    assert len(parts) == 3
    shutil.copy(pairs / "q8_0" / "mmproj-model.gguf", tmp_path)
    before = read_weights(Checkpoint.open(whole))
    for source in (tmp_path, parts[0], parts[2]):
        after = read_weights(Checkpoint.open(source))
        assert after.keys() == before.keys()
        assert all(np.array_equal(after[name], before[name]) for name in before)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003.gguf is missing"):
        Checkpoint.open(tmp_path)
    shutil.copy(parts[2], parts[1])
    with pytest.raises(CheckpointError, match=r"not part 2 of 3"):
        Checkpoint.open(tmp_path)
    shutil.copy(parts[0], tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"one of 3 parts, but its name"):
        Checkpoint.open(tmp_path / "renamed.gguf")


def texts() -> list[str]:
    return [*OTHERS, *(line for line in TEXT.read_text(encoding="utf-8").splitlines() if line)]


def test_the_tokenizer_equals_sentencepiece_on_a_corpus(pairs: Path) -> None:
    ours, original = Tokenizer.from_pretrained(pairs / "f16"), Tokenizer.from_pretrained(resolve(TINY))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(resolve(TINY) / "tokenizer.model"))
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=ours.model)
    for text in texts():
        assert rebuilt.encode(text) == reference.encode(text), text
        assert ours.encode(text) == original.encode(text), text
        assert rebuilt.decode(reference.encode(text)) == reference.decode(reference.encode(text))
    for piece in range(640):
        assert rebuilt.id_to_piece(piece) == reference.id_to_piece(piece)
        assert rebuilt.get_score(piece) == reference.get_score(piece)
        assert rebuilt.is_byte(piece) == reference.is_byte(piece)
        assert rebuilt.is_control(piece) == reference.is_control(piece)


def test_added_tokens_and_padding_survive(tmp_path: Path) -> None:
    from mindone.models.share4v.processing.gguf_vocabulary import vocabulary_metadata

    added = Tokenizer(
        resolve(TINY) / "tokenizer.model",
        {"<image>": 640, "<pad>": 641, "<note>": 642},
        special_tokens=["<image>", "<pad>"],
        pad_token="<pad>",
    )
    stated = vocabulary_metadata(added, 650, "vicuna_v1")
    arrays = {key: np.array(stated[key]) for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")}
    rebuilt = Tokenizer(**tokenizer_arguments({**stated, **arrays}))
    assert (rebuilt.added_tokens, rebuilt.pad_token_id) == (added.added_tokens, 641)
    assert (rebuilt.special_ids, len(rebuilt)) == (added.special_ids, len(added))
    text = "a <image><note> <pad>b"
    assert rebuilt.encode(text) == added.encode(text)
    with pytest.raises(ValueError, match="has the id 642, but the model has only 641"):
        vocabulary_metadata(added, 641, "vicuna_v1")


@pytest.mark.parametrize(
    ("metadata", "name", "why"),
    [
        ({}, "vicuna_v1", "has no chat template"),
        ({"share4v.conversation": "plain"}, "plain", "names it"),
        ({"tokenizer.chat_template": "{{ 'USER: ' }}{{ 'ASSISTANT:' }}"}, "vicuna_v1", "contains 'USER:'"),
        ({"tokenizer.chat_template": "[INST] {{ m }} [/INST]"}, "share4v_llama_2", "contains '.INST.'"),
        ({"tokenizer.chat_template": "<|im_start|>{{ m }}"}, "vicuna_v1", "none of the known ones.*--conversation"),
        ({"tokenizer.chat_template": 7, "share4v.conversation": "what"}, "vicuna_v1", "has no chat template"),
    ],
)
def test_how_the_template_was_chosen_is_said(metadata: Mapping[str, Any], name: str, why: str) -> None:
    import re

    chosen, said = template_of_gguf(metadata)
    assert chosen == name and re.search(why, said)


def test_jinja_renders_what_our_template_does(pairs: Path) -> None:
    from jinja2 import Environment

    from mindone.models.share4v.processing.chat_templates import get_template

    (written,) = (
        field.contents()
        for name, field in GGUFReader(pairs / "f16" / "model.gguf").fields.items()
        if name == "tokenizer.chat_template"
    )
    turns = (("user", "Why?"), ("assistant", "So."), ("user", "Oh."))
    messages = [{"role": role, "content": text} for role, text in turns]
    for chat in (messages, [{"role": "system", "content": "It's brief."}, *messages]):
        rendered = Environment().from_string(written).render(messages=chat, add_generation_prompt=True)
        assert rendered == get_template("vicuna_v1").render(chat)


def put(key: str, value: Any) -> Change:
    return lambda metadata, tensors: metadata.update({key: value})


def without(key: str) -> Change:
    def change(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        (metadata if key in metadata else tensors).pop(key)

    return change


def wider(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
    for kind in ("weight", "bias"):
        array, number = tensors[f"mm.2.{kind}"]
        tensors[f"mm.2.{kind}"] = np.concatenate([array, array]), number


def extra(name: str) -> Change:
    return lambda metadata, tensors: tensors.update({name: (np.zeros(8, np.float32), GGMLQuantizationType.F32)})


MMPROJ_ERRORS = {
    "width": (wider, r"do not belong together.*mmproj.* width 256.*model.gguf has width 128"),
    "projector": (put("clip.projector_type", "ldp"), "the projector 'ldp', expected 'mlp'"),
    "no projector": (without("mm.0.weight"), "has no projector"),
    "one layer": (without("mm.2.weight"), "projector of 1 layers"),
    "tiles": (put("clip.vision.image_aspect_ratio", "anyres"), "into tiles"),
    "newline": (extra("v.image_newline"), "LLaVA-1.6"),
    "layer": (put("clip.vision.feature_layer", [9]), "feature_layer .* from 0 to 3"),
    "layers": (put("clip.vision.feature_layer", [1, 2]), "feature_layer .* from 0 to 3"),
    "silu": (put("clip.use_silu", True), "use_silu"),
    "key": (without("clip.vision.block_count"), "has no clip.vision.block_count"),
    "type": (put("clip.vision.block_count", "3"), "block_count '3', expected an integer"),
    "size": (put("clip.vision.image_size", 2**31), "image_size"),
    "missing": (without("v.blk.1.ln1.bias"), "1 missing"),
    "foreign": (extra("v.blk.0.scale"), "in no known format.*scale"),
}
LANGUAGE_ERRORS = {
    "architecture": (put("general.architecture", "qwen2"), "architecture 'qwen2', expected 'llama'"),
    "experts": (put("llama.expert_count", 8), "mixture of experts"),
    "frequencies": (extra("rope_freqs.weight"), "LLaMA 3"),
    "partial": (put("llama.rope.dimension_count", 16), "rotates 16 of each head's 32"),
    "yarn": (put("llama.rope.scaling.type", "yarn"), "scaling.type 'yarn'"),
    "heads": (put("llama.attention.head_count", 0), "num_attention_heads"),
    "embeddings": (without("token_embd.weight"), "has no tensor token_embd.weight"),
    "end": (put("tokenizer.ggml.eos_token_id", True), "eos_token_id True, expected an integer"),
}
TOKENIZER_ERRORS = {
    "kind": (put("tokenizer.ggml.model", "bert"), "tokenizer 'bert', expected 'llama'.* or 'gpt2'"),
    "split": (put("tokenizer.ggml.model", "gpt2"), "tokenizer.ggml.pre, .* is 'default'|no complete vocabulary"),
    "prefix": (put("tokenizer.ggml.add_space_prefix", False), "add_space_prefix is False"),
    "scores": (put("tokenizer.ggml.scores", [0.0]), "no complete vocabulary"),
    "infinite": (put("tokenizer.ggml.scores", [float("inf")] * 640), "not finite"),
    "twice": (put("tokenizer.ggml.tokens", ["a"] * 640), "not a sentencepiece model"),
    "unknown": (put("tokenizer.ggml.unknown_token_id", 640), "unknown_token_id is 640, expected .* 0 to 639"),
}


@pytest.mark.parametrize(("change", "said"), MMPROJ_ERRORS.values(), ids=MMPROJ_ERRORS)
def test_an_mmproj_file_that_does_not_fit_is_refused(pairs: Path, tmp_path: Path, change: Change, said: str) -> None:
    rewrite(pairs / "f16" / "mmproj-model.gguf", tmp_path / "mmproj.gguf", change)
    with pytest.raises(ValueError, match=said):
        Share4V.from_pretrained(pairs / "f16" / "model.gguf", vision_tower=tmp_path / "mmproj.gguf")


@pytest.mark.parametrize(("change", "said"), LANGUAGE_ERRORS.values(), ids=LANGUAGE_ERRORS)
def test_a_language_model_that_is_not_supported_is_refused(
    pairs: Path, tmp_path: Path, change: Change, said: str
) -> None:
    rewrite(pairs / "f16" / "model.gguf", tmp_path / "model.gguf", change)
    with pytest.raises(ValueError, match=said):
        open_file(tmp_path / "model.gguf", vision_tower=pairs / "f16" / "mmproj-model.gguf")


@pytest.mark.parametrize("key", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_scaled_positions_without_a_type_are_linear(pairs: Path, tmp_path: Path, key: str) -> None:
    """llama.cpp reads them so; the second key is the first one's old name. Vicuna-16K has the factor 4."""
    rewrite(pairs / "f16" / "model.gguf", tmp_path / "model.gguf", put(key, 4.0))
    opened = open_file(tmp_path / "model.gguf", vision_tower=pairs / "f16" / "mmproj-model.gguf")
    assert opened.config.text_config.rope_scaling == RopeScaling("linear", 4.0)


@pytest.mark.parametrize(("change", "said"), TOKENIZER_ERRORS.values(), ids=TOKENIZER_ERRORS)
def test_a_vocabulary_that_is_not_supported_is_refused(pairs: Path, tmp_path: Path, change: Change, said: str) -> None:
    rewrite(pairs / "f16" / "model.gguf", tmp_path / "model.gguf", change)
    checkpoint = open_file(tmp_path / "model.gguf", vision_tower=pairs / "f16" / "mmproj-model.gguf")
    with pytest.raises(ValueError, match=said):
        Processor.from_checkpoint(checkpoint)


def test_files_that_are_not_what_was_asked_for(pairs: Path, tmp_path: Path) -> None:
    model, mmproj = pairs / "f16" / "model.gguf", pairs / "f16" / "mmproj-model.gguf"
    cases: list[tuple[Path | str, dict[str, Any], str]] = [
        (mmproj, {}, "is an mmproj file.*as the model"),
        (model, {"vision_tower": model}, "architecture 'llama', expected 'clip'"),
        (model, {"vision_tower": tmp_path / "none.gguf"}, "none.gguf' was not found.*mmproj"),
        (TINY, {"vision_tower": mmproj}, "which only a GGUF language model can use"),
        (tmp_path / "none.gguf", {}, "there is no file"),
        ("owner/none.gguf", {}, "there is no file"),
        (model, {"revision": "v2"}, "revision 'v2' was given"),
    ]
    for source, options, said in cases:
        with pytest.raises((ValueError, OSError), match=said):
            Share4V.from_pretrained(source, **options)
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(model, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"2 language models: a.gguf, b.gguf; give the file's path"):
        Checkpoint.open(tmp_path)
    assert not Checkpoint.open(tmp_path / "a.gguf").config.has_vision, "there is no mmproj file beside it"
    with pytest.raises(CheckpointError, match=r"no mmproj files; give .*--vision-tower"):
        open_file(tmp_path / "a.gguf", vision_tower=tmp_path)
    assert open_file(tmp_path / "a.gguf", vision_tower=pairs / "q8_0").format == "gguf", "a directory with one"


def test_what_cannot_be_exported_is_said_before_anything_is_written(pairs: Path, tmp_path: Path) -> None:
    convert(TINY, tmp_path / "int8", dtype="int8")
    out, mmproj = tmp_path / "m.gguf", tmp_path / "v.gguf"
    cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((TINY, out, mmproj), {"dtype": "q5_0"}, "use one of f32, f16, q8_0, q4_0"),
        ((TINY, tmp_path / "m.bin", mmproj), {}, "ends in .gguf"),
        ((TINY, out, out), {}, "are both"),
        ((TINY, pairs / "f16" / "model.gguf", mmproj), {}, "exists"),
        ((tmp_path / "int8", out, mmproj), {}, "already rounded to int8"),
    ]
    for arguments, options, said in cases:
        with pytest.raises((ValueError, OSError), match=said):
            export_gguf(*arguments, **options)
    assert not out.exists() and not mmproj.exists()


def test_half_a_pair_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mindone.models.share4v.gguf_export.vision_plan", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_gguf(TINY, tmp_path / "m.gguf", tmp_path / "v.gguf")
    assert not list(tmp_path.iterdir())


def test_the_command_line_converts_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mindone_share4v.cli import main

    model, mmproj = str(tmp_path / "m.gguf"), str(tmp_path / "v.gguf")
    assert main(["convert", TINY, "--out", model, "--mmproj", mmproj, "--dtype", "q8_0"]) == 0
    assert "m.gguf: " in capsys.readouterr().out
    assert main(["convert", model, "--vision-tower", mmproj, "--out", str(tmp_path / "out"), "--dtype", "int4"]) == 0
    printed = capsys.readouterr().out
    for said in ("hidden state 3 of 3", "template: vicuna_v1; share4v.conversation names it", "rounded again to int4"):
        assert said in printed
    wrong = {
        "--mmproj FILE is missing": ["--out", str(tmp_path / "n.gguf")],
        "--mmproj is for GGUF only": ["--out", str(tmp_path / "n"), "--mmproj", mmproj],
        "--fast has no effect": ["--out", str(tmp_path / "n.gguf"), "--mmproj", str(tmp_path / "w.gguf"), "--fast"],
        "--calibrate has no effect": [
            "--out", str(tmp_path / "n.gguf"), "--mmproj", str(tmp_path / "w.gguf"), "--calibrate", str(tmp_path),
        ],
        "--dtype int4 is not a type of GGUF": [
            "--out", str(tmp_path / "n.gguf"), "--mmproj", str(tmp_path / "w.gguf"), "--dtype", "int4",
        ],
        "--dtype q8_0 is not a type of a directory": ["--out", str(tmp_path / "n"), "--dtype", "q8_0"],
    }  # fmt: skip
    for said, flags in wrong.items():
        assert main(["convert", TINY, *flags]) == 2
        assert said in capsys.readouterr().err
