"""A live server of sharegpt4v-tiny for the tests of this folder, and what its own pipeline answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.serving import MODEL, SCENE, Live, data_uri, serving

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.answering import ImageTextToTextPipeline


@pytest.fixture(scope="session")
def tiny() -> ImageTextToTextPipeline:
    return pipeline("image-text-to-text", model=MODEL)


@pytest.fixture(scope="session")
def live(tiny: ImageTextToTextPipeline) -> Iterator[Live]:
    """A server with the usual options, for all tests that need no others."""
    with serving(tiny) as running:
        yield running


@pytest.fixture(scope="session")
def scene() -> str:
    """A scene as a data URI."""
    return data_uri(SCENE)


@pytest.fixture(scope="session")
def ask(tiny: ImageTextToTextPipeline) -> Callable[..., str]:
    """What the pipeline answers to a question about the scene."""

    def answer(question: str, image: Path | str | None = SCENE, **settings: Any) -> str:
        found = tiny(
            images=None if image is None else str(image),
            text=question,
            return_full_text=False,
            generate_kwargs=settings or None,
        )
        return str(found[0]["generated_text"])

    return answer
