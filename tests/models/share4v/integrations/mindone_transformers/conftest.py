"""mindone.transformers after registration, images, and this project's own pipelines as the reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import transformers
from PIL import Image, ImageDraw

from mindone import pipelines
from mindone.models.share4v import register_auto_classes
from mindone.models.share4v.hub import resolve

NAME = "sharegpt4v-tiny"
COLORS = ("red", "blue", "yellow", "black", "purple")


@pytest.fixture(scope="module", autouse=True)
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """mindone.transformers after registration, with a temporary Hugging Face cache and without network."""
    patch = pytest.MonkeyPatch()
    patch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path_factory.mktemp("hub")))
    patch.setattr(transformers.utils.hub, "_is_offline_mode", True)
    register_auto_classes()
    import mindone.transformers

    yield mindone.transformers
    patch.undo()


@pytest.fixture(scope="module")
def directory() -> str:
    return str(resolve(NAME))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of images like those that sharegpt4v-tiny was trained on; none is square, so padding matters."""
    folder = tmp_path_factory.mktemp("scenes")
    paths = []
    for number, color in enumerate(COLORS):
        picture = Image.new("RGB", (150 + 20 * number, 100), "white")
        ImageDraw.Draw(picture).ellipse((10 + 20 * number, 20, 70 + 20 * number, 80), fill=color)
        picture.save(folder / f"{number}.png")
        paths.append(str(folder / f"{number}.png"))
    return paths


@pytest.fixture(scope="module")
def captioner() -> Any:
    """This project's own pipeline, the reference."""
    return pipelines.pipeline("image-to-text", model=NAME)


@pytest.fixture(scope="module")
def answerer() -> Any:
    return pipelines.pipeline("image-text-to-text", model=NAME)


@pytest.fixture(scope="module")
def zoo_captioner(zoo: Any, directory: str) -> Any:
    return zoo.pipeline("image-to-text", model=directory)


@pytest.fixture(scope="module")
def zoo_answerer(zoo: Any, directory: str) -> Any:
    return zoo.pipeline("image-text-to-text", model=directory)
