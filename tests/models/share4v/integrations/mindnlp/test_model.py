"""The backend "mindnlp" beyond its numbers: caches, what it refuses, and that it leaves this process alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from helpers.contract import check_component
from helpers.llava import IMAGE, Reference
from helpers.paths import SCENE
from mindspore import Tensor
from PIL import Image

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.generation.decoding import GenerationSettings
from mindone.models.share4v.integrations.mindnlp.process import WorkerError
from mindone.models.share4v.registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS
from mindone.pipelines import pipeline

MINDNLP = {"language_backend": "mindnlp"}
NAMES = [
    (registry, name)
    for registry in (VISION_TOWERS, PROJECTORS, LANGUAGE_MODELS)
    for name, extra in registry.extras.items()
    if extra == "mindnlp"
]


@pytest.fixture(scope="module")
def trio(
    written: Callable[[str], tuple[Reference, Path]], warm_workers: Callable[[], AbstractContextManager[None]]
) -> tuple[Reference, Share4V, Share4V]:
    """transformers' model, ours, and ours with mindnlp's LLaMA."""
    reference, path = written("small")
    with warm_workers():
        return reference, Share4V.from_pretrained(path), Share4V.from_pretrained(path, **MINDNLP)


# This test's process is a new one, which imports mindnlp itself; most others are forked from one that did.
@pytest.mark.parametrize("registry, name", NAMES, ids=lambda item: item if isinstance(item, str) else item.kind)
def test_every_component_keeps_to_its_contract(registry: object, name: str) -> None:
    check_component(registry, name)


def test_prefill_by_chunks_and_decoding_equal_the_uncached_pass(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, _, model = trio
    language = model.language_model
    ids = np.array([reference.text(70), reference.text(70)])
    embeds = language.embed(Tensor(ids.astype(np.int32)))
    lengths = np.array([70, 66])
    wanted = language(embeds, lengths).asnumpy()
    cached = language.new_cached(2, 128)
    for first in range(0, 64, 16):
        positions = np.tile(np.arange(first, first + 16), (2, 1))
        part = Tensor(embeds.asnumpy()[:, first : first + 16])
        step = cached.prefill(part, positions, lengths, np.array([15, 15])).asnumpy()
        np.testing.assert_allclose(step, wanted[:, first + 15], rtol=0, atol=1e-5)
    for place in range(64, 70):
        positions = np.where(place < lengths, place, -1)
        step = cached.decode(ids[:, place], positions).asnumpy()
        for text in np.flatnonzero(positions >= 0):
            np.testing.assert_allclose(step[text], wanted[text, place], rtol=0, atol=1e-5)


def test_a_cache_is_used_again_with_the_same_answers(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, model = trio
    start, images = [1, IMAGE, *reference.text(90)], reference.images(1)
    cache = model.new_cache()
    endings = (reference.text(9), reference.text(3), [])
    for prompt in (*([*start, *ending] for ending in endings), [1, IMAGE, 7, 8]):  # each shorter than what was kept
        wanted = ours.generate([prompt], images, max_new_tokens=4)
        assert model.generate([prompt], images, past_key_values=cache, max_new_tokens=4) == wanted


def test_beams_equal(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, model = trio
    prompt, images = [1, IMAGE, *reference.text(5)], reference.images(1)
    settings = {"num_beams": 3, "max_new_tokens": 5, "length_penalty": 0.5}
    wanted = reference.generate([prompt], images, **settings)
    assert ours.generate([prompt], images, **settings) == wanted
    assert model.generate([prompt], images, **settings) == wanted


def test_pipelines_captions_and_late_texts_equal(warm_workers: Callable[[], AbstractContextManager[None]]) -> None:
    with warm_workers():
        captioner = pipeline("image-to-text", model="sharegpt4v-tiny", **MINDNLP)
    ours, model = Share4V.from_pretrained("sharegpt4v-tiny"), captioner.model
    processor = Share4VProcessor.from_pretrained("sharegpt4v-tiny")
    scene = Image.open(SCENE)
    wanted = ours.generate(**processor(images=[scene]), max_new_tokens=8)[0]
    batch = model.continuous_batch(2)
    batch.join("early", model.prepare_inputs(**processor(images=[scene])), GenerationSettings(max_new_tokens=8))
    assert batch.step() == []
    batch.join("late", model.prepare_inputs(**processor(images=[scene])), GenerationSettings(max_new_tokens=4))
    finished = [text for _ in range(8) for text in batch.step()]
    assert {one.request_id: list(one.token_ids) for one in finished} == {"early": wanted, "late": wanted[:4]}
    assert captioner(str(SCENE), max_new_tokens=8)[0]["generated_text"] == processor.batch_decode([wanted])[0]


def test_what_is_saved_is_the_checkpoint(trio: tuple[Reference, Share4V, Share4V], tmp_path: Path) -> None:
    reference, ours, model = trio
    model.save_pretrained(tmp_path)
    again = Share4V.from_pretrained(tmp_path)
    prompt = [[1, *reference.text(6)]]
    np.testing.assert_array_equal(again(prompt).logits.asnumpy(), ours(prompt).logits.asnumpy())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dtype": "int8"},
            r"dtype 'int8' needs the CPU kernels, but the language model is 'mindnlp': .*leave lang",
        ),
        ({"dtype": "int4"}, r"dtype 'int4' needs the CPU kernels, but the language model is 'mindnlp'"),
        ({"kv_cache_dtype": "int8"}, r"kv_cache_dtype 'int8' needs the CPU kernels"),
    ],
)
def test_integers_are_refused_before_anything_is_fetched(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Share4V.from_pretrained("sharegpt4v-7b", local_files_only=True, **MINDNLP, **settings)


def test_a_model_without_weights_says_so(
    trio: tuple[Reference, Share4V, Share4V], warm_workers: Callable[[], AbstractContextManager[None]]
) -> None:
    with warm_workers():
        empty = Share4V(trio[1].config, **MINDNLP)
    with pytest.raises(
        RuntimeError, match=r"language_model\..* were not loaded: create the model with .*from_pretrained"
    ):
        empty.generate([[1, 5]], max_new_tokens=1)


def test_damaged_weights_are_told_and_not_turned_into_text(trio: tuple[Reference, Share4V, Share4V]) -> None:
    model = trio[2]
    name = "language_model.model.norm.weight"
    whole = model.language_model.array(name)
    model.language_model.put(name, np.full_like(whole, np.nan))
    try:
        with pytest.raises(FloatingPointError, match="not finite"):
            model.generate([[1, 5, 6]], max_new_tokens=2)
    finally:
        model.language_model.put(name, whole)


def test_this_process_stays_as_it_was(trio: tuple[Reference, Share4V, Share4V]) -> None:
    trio[2].generate([[1, 5, 6]], max_new_tokens=1)
    assert not {"mindnlp", "mindtorch"} & set(sys.modules)
    assert torch is sys.modules["torch"] and "mindtorch" not in str(torch.__file__)
    assert Tensor(np.zeros((2, 3, 4), np.float32)).transpose(2, 0, 1).shape == (4, 2, 3)  # PyTorch's takes two axes
    assert ms.Tensor.__module__.startswith("mindspore")


def test_mindnlp_is_imported_on_request_alone() -> None:
    code = (
        "import sys, subprocess; from mindone.models.share4v import Share4V\n"
        "Share4V.from_pretrained('sharegpt4v-tiny').generate([[1, 300, 301]], max_new_tokens=1)\n"
        "print({'mindnlp', 'mindtorch', 'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "set()"


def test_where_torch_is_imported_first_mindnlp_says_what_to_do() -> None:
    code = (
        "import torch; from mindone.models.share4v.integrations.mindnlp.worker import import_torch\n"
        "try: import_torch()\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert "was imported before mindnlp" in done.stdout and "torch/__init__.py" in done.stdout
    assert "must be imported first: remove what imports torch when Python starts" in done.stdout


def test_an_interpreter_that_begins_with_torch_is_told_through_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trio: tuple[Reference, Share4V, Share4V]
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import torch\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with pytest.raises(WorkerError, match="was imported before mindnlp"):
        Share4V(trio[1].config, **MINDNLP)
