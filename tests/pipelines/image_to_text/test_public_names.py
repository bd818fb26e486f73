"""The public names of mindone.pipelines.image_to_text: all can be imported, and only on first use."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys

import pytest

from mindone.pipelines import image_to_text


def test_every_public_name_exists() -> None:
    assert dir(image_to_text) == sorted(image_to_text.__all__)
    for name in image_to_text.__all__:
        assert getattr(image_to_text, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'caption_data'"):
        _ = image_to_text.caption_data  # type: ignore[attr-defined]


def names_of_options(annotation: str) -> set[str]:
    """Return the dataclasses that an annotation names, and those that the types of their fields name."""
    found: set[str] = set()
    for name in re.findall(r"[A-Z]\w+", annotation):
        one = getattr(image_to_text, name, None)
        if name not in ("None", "Mapping", "Sequence"):
            found.add(name)
        if dataclasses.is_dataclass(one):
            found |= set().union(*(names_of_options(str(field.type)) for field in dataclasses.fields(one)))
    return found


def test_every_options_class_of_caption_dataset_is_public() -> None:
    parameters = inspect.signature(image_to_text.caption_dataset).parameters.values()
    takes_options = [
        one for one in parameters if str(one.annotation).endswith(" | None") and "Callable" not in one.annotation
    ]
    names = set().union(*(names_of_options(str(one.annotation)) for one in takes_options))
    assert {"CaptioningSettings", "ReaderOptions", "JobOptions", "WriterOptions", "TextRules", "PromptPlan"} <= names
    assert names <= set(image_to_text.__all__)


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = (
        "import sys, mindone.pipelines.image_to_text as package\n"
        "print(sorted(name for name in sys.modules if name.startswith(package.__name__ + '.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
