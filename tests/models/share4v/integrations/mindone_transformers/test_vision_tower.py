"""The vision tower "mindone": CLIP of mindone.transformers 0.5 with weights in the original format."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from helpers.backends import CELLS
from helpers.llava import IMAGE, SHAPES, Reference, padded
from helpers.paths import SCENE
from helpers.published_formats import write_original
from helpers.warm_processes import warm_python
from mindspore import Tensor
from PIL import Image

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.checkpoint import CheckpointError, save_weights
from mindone.models.share4v.checkpoint.weights import expected_shapes
from mindone.models.share4v.registry import VISION_TOWERS

Pair = tuple[Reference, Share4V]
TOLERANCE = 1e-4
ZOO = {"vision_backend": "mindone"}


@pytest.fixture(scope="module", params=SHAPES)
def trio(
    request: pytest.FixtureRequest, pair_of: Callable[..., Pair], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Reference, Share4V, Share4V]:
    """transformers' model, ours, and ours with mindone's tower, loaded from the original format."""
    reference, ours = pair_of(request.param)
    path = write_original(reference, tmp_path_factory.mktemp("zoo"))
    return reference, ours, Share4V.from_pretrained(path, **ZOO)


def random_images(reference: Reference, count: int) -> np.ndarray:
    size = reference.model.config.vision_config.image_size
    return np.random.default_rng(3).standard_normal((count, 3, size, size)).astype(np.float32)


def test_features_equal_ours_and_transformers(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, zoo = trio
    images = random_images(reference, 3)
    features = zoo.vision_tower(Tensor(images)).asnumpy()
    assert features.std() > 0.3
    np.testing.assert_allclose(features, reference.vision_features(images), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(features, ours.vision_tower(Tensor(images)).asnumpy(), rtol=0, atol=TOLERANCE)
    projected = zoo.encode_images(images).asnumpy()
    np.testing.assert_allclose(projected, reference.projected(images), rtol=0, atol=TOLERANCE)


def test_greedy_ids_are_equal(trio: tuple[Reference, Share4V, Share4V]) -> None:
    reference, ours, zoo = trio
    images, words = random_images(reference, 3), np.random.default_rng(4).integers(3, 90, 9).tolist()
    prompts = [[1, IMAGE, *words[:5]], [1, *words[5:], IMAGE, words[0], IMAGE, words[1]]]
    own = images[:1], images[1:]
    wanted = [
        reference.generate([prompt], mine, max_new_tokens=16)[0] for prompt, mine in zip(prompts, own, strict=True)
    ]
    assert max(map(len, wanted)) > 4
    ids, mask = padded(prompts, "left")
    for model in (zoo, ours):
        assert model.generate(ids, images, attention_mask=mask, max_new_tokens=16) == wanted


def test_tower_and_projector_become_one_graph(pair_of: Callable[..., Pair], tmp_path: Path) -> None:
    reference, ours = pair_of("odd-grouped-gelu")
    cells = Share4V.from_pretrained(write_original(reference, tmp_path), **{**CELLS, **ZOO})
    images = random_images(reference, 2)
    wanted = ours.encode_images(images).asnumpy()
    np.testing.assert_allclose(cells.encode_images(images).asnumpy(), wanted, rtol=0, atol=TOLERANCE)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        zoo = Share4V.from_pretrained(tmp_path / "ShareGPT4V-tiny", **ZOO)
        np.testing.assert_allclose(zoo.encode_images(images).asnumpy(), wanted, rtol=0, atol=TOLERANCE)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_caption_of_the_tiny_model_is_the_same() -> None:
    inputs = Share4VProcessor.from_pretrained("sharegpt4v-tiny")(images=[Image.open(SCENE)])
    wanted = Share4V.from_pretrained("sharegpt4v-tiny").generate(**inputs)
    assert Share4V.from_pretrained("sharegpt4v-tiny", **ZOO).generate(**inputs) == wanted
    assert len(wanted[0]) > 20


def test_weights_have_hugging_face_names_and_are_read_strictly(pair_of: Callable[..., Pair], tmp_path: Path) -> None:
    reference, ours = pair_of("small")
    zoo = Share4V.from_pretrained(write_original(reference, tmp_path / "original"), **ZOO)
    names = {name for name in expected_shapes(zoo.config)[0] if name.startswith("vision_tower.")}
    weights = {name: value.asnumpy() for name, value in zoo.parameters_dict().items()}
    assert {name for name in weights if name.startswith("vision_tower.")} == names
    zoo.save_pretrained(tmp_path / "saved")
    images = random_images(reference, 1)
    wanted = ours.encode_images(images).asnumpy()
    for backends in ({}, CELLS, ZOO):
        again = Share4V.from_pretrained(tmp_path / "saved", **backends)
        np.testing.assert_allclose(again.encode_images(images).asnumpy(), wanted, rtol=0, atol=TOLERANCE)
    ours.save_pretrained(tmp_path / "torn")
    everything = Share4V.from_pretrained(tmp_path / "torn", **CELLS).parameters_dict()
    lost = "vision_tower.vision_model.pre_layrnorm.bias"
    save_weights([(name, value.asnumpy()) for name, value in everything.items() if name != lost], tmp_path / "torn")
    with pytest.raises(CheckpointError, match=rf"1 missing: {lost}"):
        Share4V.from_pretrained(tmp_path / "torn", **ZOO)


def test_float16_weights_are_computed_in_float16(pair_of: Callable[..., Pair], tmp_path: Path) -> None:
    reference, _ = pair_of("usual")
    zoo = Share4V.from_pretrained(write_original(reference, tmp_path), dtype="float16", **ZOO)
    assert {value.dtype for value in zoo.vision_tower.get_parameters()} == {ms.float16}
    images = random_images(reference, 2)
    features = zoo.vision_tower(Tensor(images))
    wanted = reference.vision_features(images)
    assert features.dtype == ms.float32  # the type that the projector expects
    assert 0 < np.abs(features.asnumpy() - wanted).max() < 8 * 2**-11 * np.abs(wanted).max()  # a few rounding errors
    with pytest.raises(ValueError, match="'int8' is not supported"):
        VISION_TOWERS.resolve("mindone")(zoo.config, "int8")


def run(code: str) -> str:
    done = subprocess.run([warm_python(), "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_mindone_transformers_is_imported_on_use_and_not_patched() -> None:
    output = run(
        "import sys\n"
        "from mindone.models.share4v import Share4V\n"
        "heavy = ('mindone.transformers', 'transformers', 'torch')\n"
        "Share4V.from_pretrained('sharegpt4v-tiny').generate([[1, 300, 301]], max_new_tokens=2)\n"
        "early = [name for name in heavy if name in sys.modules]\n"
        "from mindspore import mint\n"
        "before = mint.nn.Conv2d\n"
        "model = Share4V.from_pretrained('sharegpt4v-tiny', vision_backend='mindone')\n"
        "from mindone.transformers import CLIPVisionModel\n"
        "from transformers import CLIPVisionConfig\n"
        "other = CLIPVisionModel(CLIPVisionConfig(num_hidden_layers=1)).vision_model.embeddings.patch_embedding\n"
        "mine = model.vision_tower.vision_model.embeddings.patch_embedding\n"
        "print(early, before is mint.nn.Conv2d, type(other) is before, type(mine) is before)\n"
    )
    assert output.splitlines()[-1] == "[] True True False"
