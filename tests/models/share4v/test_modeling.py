"""Share4V beyond its numbers: what it refuses, and that a refused call leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.backends import CELLS

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.hub import HubError
from mindone.models.share4v.processing.image_loading import ImageLoadError


@pytest.fixture(scope="module")
def tiny() -> tuple[Share4V, Share4VProcessor]:
    return Share4V.from_pretrained("sharegpt4v-tiny"), Share4VProcessor.from_pretrained("sharegpt4v-tiny")


def test_pixels_that_are_no_numbers_are_refused_and_leave_no_trace(tiny: tuple[Share4V, Share4VProcessor]) -> None:
    model, processor = tiny
    inputs = processor(images=[np.full((96, 96, 3), 128, np.uint8)])
    before = model.generate(**inputs, max_new_tokens=12)
    broken = {**inputs, "pixel_values": np.full_like(inputs["pixel_values"], np.nan)}
    with pytest.raises(ValueError, match="pixel_values of image 0 are not all finite"):
        model.generate(**broken)
    embeds = np.full((1, 4, model.config.text_config.hidden_size), np.inf, np.float32)
    with pytest.raises(ValueError, match="inputs_embeds are not all finite"):
        model.generate(inputs_embeds=embeds)
    assert model.generate(**inputs, max_new_tokens=12) == before


def test_damaged_weights_are_told_and_not_turned_into_text() -> None:
    model = Share4V.from_pretrained("sharegpt4v-tiny", **CELLS)
    weight = model.language_model.model.norm.weight
    weight.set_data(ms.Tensor(np.full(weight.shape, np.nan, np.float32)))
    with pytest.raises(FloatingPointError, match="not finite"):
        model.generate(input_ids=[[1, 300, 301]])
    with pytest.raises(FloatingPointError, match="not finite"):
        model.generate(input_ids=[[1, 300, 301]], num_beams=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int3"}, "dtype 'int3' is not supported"),
        ({"vision_backend": "clap"}, "unknown vision_tower 'clap'"),
        ({"language_backend": "lama"}, "Did you mean 'llama'"),
    ],
)
def test_what_cannot_be_built_is_said_before_anything_is_fetched(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share4V.from_pretrained("sharegpt4v-7b", local_files_only=True, **arguments)


def test_a_checkpoint_that_is_nowhere_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="local_files_only"):
        Share4V.from_pretrained("nobody/nothing-of-this-name", cache_dir=tmp_path, local_files_only=True)


def test_graph_mode_generates_and_says_what_it_cannot_do(tiny: tuple[Share4V, Share4VProcessor]) -> None:
    model, processor = tiny
    inputs = processor(text="What do you see?")
    expected = model.generate(**inputs, max_new_tokens=8)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        assert model.generate(**inputs, max_new_tokens=8) == expected
        with pytest.raises(RuntimeError, match="PYNATIVE_MODE"):
            model(**inputs)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_what_is_saved_names_its_own_type_and_no_other_tower(
    tiny: tuple[Share4V, Share4VProcessor], tmp_path: Path
) -> None:
    half = Share4V.from_pretrained("sharegpt4v-tiny", dtype="float16")
    half.save_pretrained(tmp_path)
    again = Share4V.from_pretrained(tmp_path)
    assert (again.config.torch_dtype, again.config.vision_tower) == ("float16", None)
    inputs = tiny[1](images=[np.zeros((96, 96, 3), np.uint8)])
    assert again.generate(**inputs, max_new_tokens=20) == tiny[0].generate(**inputs, max_new_tokens=20)


def test_ids_beyond_the_tokenizers_are_left_out_of_texts(tiny: tuple[Share4V, Share4VProcessor]) -> None:
    processor = tiny[1]
    word = processor.tokenizer.encode("circle", add_bos=False)
    assert processor.batch_decode([[*word, 5000]]) == ["circle"]
    with pytest.raises(ValueError, match="-200"):
        processor.decode([-200])


def test_a_picture_too_thin_to_be_made_square_is_refused(tiny: tuple[Share4V, Share4VProcessor]) -> None:
    with pytest.raises(ImageLoadError, match="which is too large; crop the image"):
        tiny[1](images=[np.zeros((1, 20_000_000), np.uint8)])
