"""The public names of mindone.pipelines.image_to_text: all can be imported, and only on first use."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing

import pytest
import typing_extensions

from mindone.pipelines import image_to_text
from mindone.pipelines.image_to_text.dataset.keywords import DatasetKeywords


def test_every_public_name_exists() -> None:
    assert dir(image_to_text) == sorted(image_to_text.__all__)
    for name in image_to_text.__all__:
        assert getattr(image_to_text, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'caption_data'"):
        _ = image_to_text.caption_data  # type: ignore[attr-defined]


def option_classes(annotation: object, found: set[type]) -> set[type]:
    """Add the dataclasses of this project that an annotation names, and those of their fields, to a set."""
    for part in typing.get_args(annotation) or (annotation,):
        if typing.get_args(part):
            option_classes(part, found)
        elif inspect.isclass(part) and dataclasses.is_dataclass(part) and part not in found:
            found.add(part)
            for hint in typing.get_type_hints(part).values():
                option_classes(hint, found)
    return found


def test_everything_that_caption_dataset_takes_or_returns_is_public() -> None:
    # The keywords are typed for type checkers only; the options classes are what they stand for.
    typed_only = {"Unpack": typing_extensions.Unpack, "DatasetKeywords": DatasetKeywords}
    hints = typing.get_type_hints(image_to_text.caption_dataset, localns=typed_only)
    classes = set().union(*(option_classes(hint, set()) for hint in hints.values()))
    names = {one.__name__ for one in classes}
    assert {"CaptioningSettings", "ReaderOptions", "JobOptions", "WriterOptions", "TextRules"} <= names
    public = {"Prompt", "NamedText"}  # made by PromptPlan.from_options, and of a TextSpec
    assert names - public <= set(image_to_text.__all__)


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = (
        "import sys, mindone.pipelines.image_to_text as package\n"
        "print(sorted(name for name in sys.modules if name.startswith(package.__name__ + '.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
