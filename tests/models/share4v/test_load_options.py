"""Load options: defined once, accepted everywhere, and shown by help()."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from mindone.models.share4v import AutoConfig, AutoModel, AutoProcessor, LoadOptions, Share4V, Share4VProcessor
from mindone.models.share4v.load_options import CheckpointArguments, CheckpointOptions, LoadArguments, option_names
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.dataset.options import ModelChoice

OF_A_MODEL = (Share4V.from_pretrained, AutoModel.from_pretrained, pipeline)
OF_A_CHECKPOINT = (Share4VProcessor.from_pretrained, AutoProcessor.from_pretrained, AutoConfig.from_pretrained)


@pytest.mark.parametrize(
    ("options", "arguments"), [(CheckpointOptions, CheckpointArguments), (LoadOptions, LoadArguments)]
)
def test_dataclass_and_typed_dict_have_the_same_fields(options: type, arguments: Any) -> None:
    assert arguments.__optional_keys__ == set(option_names(options)) and not arguments.__required_keys__


@pytest.mark.parametrize(
    ("function", "options"),
    [*((one, LoadOptions) for one in OF_A_MODEL), *((one, CheckpointOptions) for one in OF_A_CHECKPOINT)],
)
def test_signatures_list_every_option_with_its_default(function: Callable[..., Any], options: Any) -> None:
    shown = inspect.signature(function).parameters
    assert {item.name: item.default for item in fields(options)}.items() <= {
        name: parameter.default for name, parameter in shown.items()
    }.items()
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in shown.values())


def test_an_unknown_option_is_refused() -> None:
    for function in (Share4V.from_pretrained, AutoProcessor.from_pretrained):
        with pytest.raises(TypeError, match=r"unknown argument of (model|processor) loading 'dtyp'; known: "):
            function("sharegpt4v-tiny", dtyp="int8")
    with pytest.raises(TypeError, match="Did you mean 'dtype'"):
        pipeline("image-to-text", dtyp="int8")  # type: ignore[call-overload]


def test_native_means_auto() -> None:
    assert LoadOptions(language_backend="native", vision_backend="native") == LoadOptions()


def test_a_model_choice_takes_every_load_option() -> None:
    assert set(option_names(ModelChoice)) == {"model", "conversation", *option_names(LoadOptions)}
