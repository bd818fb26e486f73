"""The same GGUF files, image and prompt in llama.cpp and here: features, logits and greedy captions.

llama.cpp's results are stored (helpers/gguf_reference.py); benchmarks/llama_cpp_captions.py computes them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.gguf_reference import CASES, DATA, NEW_TOKENS, QUESTION, digest, image, write_case

from mindone.models.share4v import Share4V, Share4VProcessor


class Bounds(NamedTuple):
    """How far features and logits may be from llama.cpp's, as shares of their standard deviation.

    llama.cpp computes GELU by its tanh formula and through a table of float16, keeps keys and values as float16, and
    multiplies float16 matrices with inputs rounded to float16, integer ones with inputs rounded to int8.
    """

    features: float
    logits: float


BOUNDS = {"f32": Bounds(5e-3, 2e-2), "f16": Bounds(5e-3, 2e-2), "q8_0": Bounds(5e-3, 0.15), "q4_0": Bounds(5e-3, 0.15)}
# The type that keeps the file's integers.
KEPT = {"q8_0": "int8", "q4_0": "int4"}


@pytest.fixture(scope="module")
def stored() -> Iterator[Mapping[str, Any]]:
    with np.load(DATA) as data:
        yield data


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    write_case(request.param, folder)
    return request.param, folder


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / theirs.std())


def test_the_files_are_those_that_llama_cpp_read(stored: Mapping[str, Any], case: tuple[str, Path]) -> None:
    name, folder = case
    assert digest(folder / "model.gguf", folder / "mmproj.gguf") == str(stored[f"{name}/digest"]), (
        "what export_gguf writes has changed: run benchmarks/llama_cpp_captions.py"
    )


def test_ids_features_logits_and_captions(stored: Mapping[str, Any], case: tuple[str, Path]) -> None:
    name, folder = case
    kind = CASES[name][1]
    theirs = {key: stored[f"{name}/{key}"] for key in ("before", "after", "features", "logits", "generated")}
    processor = Share4VProcessor.from_pretrained(folder)
    inputs = processor(images=image(name), text=QUESTION)
    placeholder = processor.image_token_id
    expected = [*theirs["before"].tolist(), placeholder, *theirs["after"].tolist()]
    assert inputs.input_ids[0].tolist() == expected
    prompt, generated = len(expected), theirs["generated"].tolist()
    for dtype in dict.fromkeys(("float32", KEPT.get(kind, "float32"))):
        model = Share4V.from_pretrained(folder, dtype=dtype)
        bounds = BOUNDS[kind]
        if dtype == "float32":  # otherwise the vision tower is int8
            features = model.encode_images(inputs.pixel_values).asnumpy()[0]
            assert difference(features, theirs["features"]) < bounds.features
        steps = len(theirs["logits"])
        ids = np.array([expected + generated[: steps - 1]])
        logits = model(input_ids=ids, pixel_values=inputs.pixel_values).logits.asnumpy()[0]
        last = prompt - 1 + model.config.num_image_tokens - 1
        assert difference(logits[last : last + steps], theirs["logits"]) < bounds.logits, dtype
        if CASES[name][0] != "random":  # random weights lead to logits that are equal but for rounding
            ours = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
            assert ours == [token for token in generated if token != processor.tokenizer.eos_token_id], dtype
