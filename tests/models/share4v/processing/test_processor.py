"""Share4VProcessor: prompts, placeholders, padding and images, and errors for arguments that contradict each other."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from PIL import Image
from transformers import LlamaTokenizer

from mindone.models.share4v.configuration import Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.processing.chat_templates import get_template
from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.models.share4v.processing.image_processor import ImageProcessor
from mindone.models.share4v.processing.messages import Message
from mindone.models.share4v.processing.processor import Inputs, Share4VProcessor
from mindone.models.share4v.processing.tokenizer import Tokenizer

RNG = np.random.default_rng(5)
IMAGES = [RNG.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8) for i in range(4)]
IMAGE_PROCESSOR = ImageProcessor(28, 28)
PIXELS = [IMAGE_PROCESSOR(image) for image in IMAGES]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary trained with LLaMA's options."""
    words = sorted({word for name in ("vicuna_v1", "plain") for word in prompt_of("Why? What is this?", name).split()})
    generator = random.Random(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(generator.choices(words, k=8)) for _ in range(200)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def processor(model_path: Path) -> Share4VProcessor:
    return Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path))


def ids_of(prompt: str, model_path: Path) -> list[int]:
    """Tokenize like the original, with transformers' tokenizer: each piece separately, one BOS, -200 between them."""
    theirs = LlamaTokenizer(str(model_path), legacy=False, add_bos_token=True)
    ids = [1]
    for index, piece in enumerate(prompt.split("<image>")):
        ids += ([-200] if index else []) + theirs(piece).input_ids[1:]
    return ids


def prompt_of(question: str, name: str = "vicuna_v1") -> str:
    return get_template(name).render([{"role": "user", "content": question}])


def check(inputs: Inputs, prompts: Sequence[str], image_indices: Sequence[int], model_path: Path, pad: int = 2) -> None:
    """Compare inputs with the ids of the prompts, padded on the left, and with the images of these indices."""
    expected = [ids_of(prompt, model_path) for prompt in prompts]
    longest = max(map(len, expected))
    assert inputs["input_ids"].tolist() == [[pad] * (longest - len(ids)) + ids for ids in expected]
    assert inputs["attention_mask"].tolist() == [[0] * (longest - len(ids)) + [1] * len(ids) for ids in expected]
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == np.int64
    if image_indices:
        assert inputs["pixel_values"].dtype == np.float32
        np.testing.assert_array_equal(inputs["pixel_values"], np.stack([PIXELS[index] for index in image_indices]))
    else:
        assert "pixel_values" not in inputs


def test_one_image_and_a_question(processor: Share4VProcessor, model_path: Path) -> None:
    expected = [prompt_of("<image>\nDescribe this image")]
    check(processor(images=[IMAGES[0]], text="Describe this image"), expected, [0], model_path)
    check(processor(images=IMAGES[0], text="Describe this image"), expected, [0], model_path)
    check(processor(images=(IMAGES[0],), text="<image>\nDescribe this image"), expected, [0], model_path)
    check(processor(images=IMAGES[0]), expected, [0], model_path)
    check(processor(IMAGES[0], "Describe this image", "vicuna_v1"), expected, [0], model_path)


def test_text_after_an_image_starts_a_new_run(processor: Share4VProcessor) -> None:
    ids = processor(images=IMAGES[0], text="Why?").input_ids[0].tolist()
    position = ids.index(-200)
    assert processor.tokenizer.token_of(ids[position + 1]) == "▁"
    assert processor.tokenizer.token_of(ids[position + 2]) == "<0x0A>"
    assert ids.count(1) == 1


def test_several_images_in_one_prompt(processor: Share4VProcessor, model_path: Path) -> None:
    expected = [prompt_of("<image>\n<image>\nSame?")]
    check(processor(images=IMAGES[:2], text="Same?"), expected, [0, 1], model_path)
    question = "Is <image> like <image>?\r\n"  # placeholders and line ends of the user are not changed
    check(processor(images=[IMAGES[2], IMAGES[0]], text=question), [prompt_of(question)], [2, 0], model_path)


def test_text_without_images(processor: Share4VProcessor, model_path: Path) -> None:
    check(processor(text="Why?"), [prompt_of("Why?")], [], model_path)
    check(processor(images=[], text="Why?"), [prompt_of("Why?")], [], model_path)
    check(processor(text=["Why?", "What is this?"]), [prompt_of("Why?"), prompt_of("What is this?")], [], model_path)


def test_batch_is_padded_on_the_left(processor: Share4VProcessor, model_path: Path) -> None:
    texts = ["Why?", "What is this <image> and <image>?", "a chat", "Describe <image>"]
    images = [IMAGES[3], [IMAGES[1], IMAGES[0]], None, [IMAGES[2]]]
    prompts = [prompt_of(text) for text in ["<image>\nWhy?", *texts[1:]]]
    check(processor(images=images, text=texts), prompts, [3, 1, 0, 2], model_path)
    check(processor(images=[IMAGES[0]], text=["Why?"]), [prompt_of("<image>\nWhy?")], [0], model_path)


def test_pad_token_of_the_tokenizer_is_used(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path, {"<pad>": 340}, pad_token="<pad>")
    inputs = Share4VProcessor(IMAGE_PROCESSOR, tokenizer)(text=["Why?", "Why? Why?"])
    check(inputs, [prompt_of("Why?"), prompt_of("Why? Why?")], [], model_path, pad=340)


def test_conversations(processor: Share4VProcessor, model_path: Path) -> None:
    messages = [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Why?"},
    ]
    shown = [{"role": "user", "content": "<image>\nWhat is this?"}, *messages[1:]]
    expected = get_template("share4v_v0").render(shown)
    check(processor(IMAGES[0], messages, "share4v_v0"), [expected], [0], model_path)
    check(processor([IMAGES[0]], shown, "share4v_v0"), [expected], [0], model_path)
    parts = {"role": "user", "content": [{"type": "text", "text": "What is this?"}, {"type": "image"}]}
    check(processor(IMAGES[0], [parts, *messages[1:]], "share4v_v0"), [expected], [0], model_path)
    later = [*messages[:2], {"role": "user", "content": "And <image>?"}]
    batch = [shown, "Why?", later]
    got = processor([[IMAGES[0]], IMAGES[1], IMAGES[2]], batch)
    prompts = [
        get_template("vicuna_v1").render(shown),
        prompt_of("<image>\nWhy?"),
        get_template("vicuna_v1").render(later),
    ]
    check(got, prompts, [0, 1, 2], model_path)


def test_messages_with_images(processor: Share4VProcessor, model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(IMAGES[1]).save(path)
    content = [
        {"type": "image", "image": IMAGES[0]},
        {"type": "image", "path": str(path)},
        {"type": "image", "url": path.as_uri()},
        {"type": "image_url", "image_url": {"url": path.as_uri()}},
        {"type": "text", "text": "Same?"},
    ]
    got = processor(text=[{"role": "user", "content": content}])
    check(got, [prompt_of("<image>\n" * 4 + "Same?")], [0, 1, 1, 1], model_path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    for source in ({"base64": encoded}, {"image": f"data:image/png;base64,{encoded}"}):
        got = processor(text=[{"role": "user", "content": [{"type": "image", **source}, content[-1]]}])
        check(got, [prompt_of("<image>\nSame?")], [1], model_path)
    open_parts = [content[0], {"type": "image"}, content[1], {"type": "image"}, content[-1]]
    got = processor([IMAGES[3], IMAGES[2]], [{"role": "user", "content": open_parts}])
    check(got, [prompt_of("<image>\n" * 4 + "Same?")], [0, 3, 1, 2], model_path)
    with pytest.raises(ValueError, match="2 images in its messages, and 2 image parts without one, but 1 more"):
        processor(IMAGES[3], [{"role": "user", "content": open_parts}])
    with pytest.raises(ValueError, match="text 0 has 4 images in its messages, but 1 more were given as images"):
        processor(IMAGES[0], [{"role": "user", "content": content}])


@pytest.mark.parametrize(
    "name", ["vicuna_v1", "share4v_v1", "share4v_v0", "share4v_llama_2", "v0_mmtag", "v1_mmtag", "plain"]
)
def test_every_template(processor: Share4VProcessor, model_path: Path, name: str) -> None:
    expected = prompt_of("<image>\nWhy?", name)
    check(processor(IMAGES[0], "Why?", name), [expected], [0], model_path)
    assert processor.prompt("Why?", 1, name) == expected


def test_plain_template_has_no_default_question(processor: Share4VProcessor, model_path: Path) -> None:
    check(processor(IMAGES[0], conversation="plain"), ["<image>"], [0], model_path)
    assert processor.encode_prompt("<image>") == [1, -200]


def test_start_and_end_tokens(model_path: Path) -> None:
    tokenizer = Tokenizer(model_path, {"<im_start>": 340, "<im_end>": 341})
    processor = Share4VProcessor(IMAGE_PROCESSOR, tokenizer, use_im_start_end=True)
    ids = processor([IMAGES[0], IMAGES[1]], "Why?").input_ids[0].tolist()
    assert [(ids[i - 1], ids[i + 1]) for i, token_id in enumerate(ids) if token_id == -200] == [(340, 341)] * 2
    theirs = LlamaTokenizer(str(model_path), legacy=False, add_bos_token=True)
    theirs.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    pieces = prompt_of("<im_start><image><im_end>\n<im_start><image><im_end>\nWhy?").split("<image>")
    first, second, third = (theirs(piece).input_ids for piece in pieces)
    assert ids == [*first, -200, *second[1:], -200, *third[1:]]
    with pytest.raises(ValueError, match="needs the added tokens <im_start> and <im_end>"):
        Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path), use_im_start_end=True)


def test_llava_placeholder_is_an_id_of_the_vocabulary(model_path: Path) -> None:
    processor = Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path, {"<image>": 340}), image_token_id=340)
    ids = processor(IMAGES[0], "Why?").input_ids[0].tolist()
    assert [token_id if token_id != 340 else -200 for token_id in ids] == ids_of(prompt_of("<image>\nWhy?"), model_path)


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (IMAGES[:2], "<image> Why?", "text 0 has 1 <image> but 2 images"),
        (IMAGES[0], "<image> <image>", "text 0 has 2 <image> but 1 images"),
        (None, "<image> Why?", "text 0 has 1 <image> but 0 images"),
        ([IMAGES[0], None], ["a", "b<image>"], "text 1 has 1 <image> but 0 images"),
        (IMAGES[:2], ["Why?"], "there are 1 texts but images has 2 entries"),
        (IMAGES[0], ["a", "b"], "there are 2 texts but images has one image"),
        ([[IMAGES[0]]], "Why?", "there is one text"),
        ([None], "Why?", "images contains None, but there is one text"),
        ([], None, "images is an empty list and no text"),
        (None, None, "neither text nor images"),
        (None, [], "text is an empty list"),
        (None, "", "a question is empty"),
        (None, "  \n", "a question is empty"),
        (None, 3, "text is a int"),
        (None, [3], "text 0 is 3"),
        (None, [[]], r"text 0 is \[\]"),
        (None, [{"role": "assistant", "content": "x"}], "expected 'user'"),
        (IMAGES[0], [{"role": "assistant", "content": "x"}], "expected 'user'"),
        ("absent.png", "Why?", r"absent\.png: there is no such file"),
    ],
)
def test_contradicting_arguments_are_refused(
    processor: Share4VProcessor, images: object, text: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text)


def test_error_names_the_image_that_cannot_be_loaded(processor: Share4VProcessor) -> None:
    with pytest.raises(ImageLoadError, match="3 bytes"):
        processor([IMAGES[0], b"abc"], "Why?")


def test_unknown_template_is_refused(processor: Share4VProcessor, model_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown conversation template 'vicuna'.*Did you mean"):
        processor(IMAGES[0], "Why?", "vicuna")
    with pytest.raises(ValueError, match="unknown conversation template 'v9'"):
        Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path), conversation="v9")


def test_inputs_are_a_dict_with_attributes(processor: Share4VProcessor) -> None:
    inputs = processor(IMAGES[0], "Why?")
    assert set(dict(**inputs)) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs.pixel_values is inputs["pixel_values"]
    with pytest.raises(AttributeError, match="the inputs have no 'labels', only input_ids, attention_mask"):
        _ = inputs.labels


def test_decode_is_stripped_and_refuses_placeholders(processor: Share4VProcessor) -> None:
    answers = ["A cat.", "un été 😀"]
    ids = [[*processor.tokenizer.encode(f" {answer} ", add_bos=False), 2] for answer in answers]
    assert processor.batch_decode(ids) == answers
    assert processor.decode(np.array(ids[0])) == "A cat."
    assert processor.decode(ids[0], skip_special_tokens=False) == "A cat. </s>"
    with pytest.raises(ValueError, match="id -200 is not a token"):
        processor.decode(processor(IMAGES[0], "Why?").input_ids[0])


def test_protected_texts_contain_no_token_that_is_split_between_parts(processor: Share4VProcessor) -> None:
    parts = [{"type": "text", "text": text} for text in ("<ima", "ge>", " What is this? <", "/s>")]
    ids = processor(text=[{"role": "user", "content": parts}], special_tokens=False).input_ids[0].tolist()
    assert -200 not in ids and 2 not in ids
    with pytest.raises(ValueError, match=r"expects \{'role', 'content'\} messages, got a Message"):
        processor(text=[Message("user", "What is this?")], special_tokens=False)


def checkpoint(directory: Path, processor: Share4VProcessor) -> Path:
    """Write all files of a checkpoint except its weights."""
    vision = VisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = TextConfig(vocab_size=340, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = Share4VConfig(vision_config=vision, text_config=text, image_aspect_ratio="pad")
    processor.save_pretrained(directory)
    config.save_pretrained(directory)
    return directory


def test_saved_processor_prepares_the_same_inputs(model_path: Path, tmp_path: Path) -> None:
    saved = Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path), conversation="share4v_v0")
    loaded = Share4VProcessor.from_pretrained(checkpoint(tmp_path, saved))
    assert loaded.conversation == "share4v_v0"
    assert loaded.image_processor == IMAGE_PROCESSOR
    before, after = saved(IMAGES[0], "Why?"), loaded(IMAGES[0], "Why?")
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])


def test_defaults_for_files_missing_from_a_checkpoint(model_path: Path, tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, Share4VProcessor(IMAGE_PROCESSOR, Tokenizer(model_path)))
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor"}))
    (directory / "preprocessor_config.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    loaded = Share4VProcessor.from_pretrained(str(directory))
    assert (loaded.conversation, loaded.image_token_id, loaded.use_im_start_end) == ("vicuna_v1", -200, False)
    assert loaded.image_processor == IMAGE_PROCESSOR
    (directory / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.model"):
        Share4VProcessor.from_pretrained(directory)


def test_arguments_without_names(processor: Share4VProcessor) -> None:
    image = Image.new("RGB", (8, 8), "red")
    wanted = processor(images=image, text="What is this?")
    for inputs in (
        processor(image, "What is this?"),
        processor("What is this?", image),
        processor("What is this?", images=image),
        processor(["What is this?"], images=[image]),
    ):
        assert {name: value.tolist() for name, value in inputs.items()} == {
            name: value.tolist() for name, value in wanted.items()
        }
    with pytest.raises(
        TypeError, match=r"images is given twice, once without its name \(Image\).*images=\.\.\., text="
    ):
        processor(image, images=image)
    with pytest.raises(TypeError, match=r"text is given twice, .* \(str\) and as text=: write processor\(images="):
        processor(image, "What?", text="What?")
    with pytest.raises(TypeError, match=r"4 arguments without names, expected at most 3"):
        processor(image, "What?", "v1", True)
