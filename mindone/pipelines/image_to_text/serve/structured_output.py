"""Structured output in requests: the ways in which APIs and their servers ask for a schema or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.generation.grammar_trial import Trial

from .errors import invalid
from .value_types import Choice, Structure

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.base import Pipeline

Shape = dict[str, Any]  # {"schema": ...}, {"regex": ...} or {}
_JSON_OBJECT: Shape = {"schema": {"type": "object"}}


def openai_shape(values: Mapping[str, Any]) -> tuple[Shape, str]:
    """Return what `response_format`, or one of vLLM's fields, asks for, and which of them does.

    Raises:
        ApiError: (400) a field is malformed, or more than one asks for something.
    """
    vllm_shape, name = _vllm_shape(values)
    asked = ((_response_format(values), "response_format"), (vllm_shape, name))
    found = [(shape, param) for shape, param in asked if shape]
    if len(found) > 1:
        raise invalid("give either response_format or a guided_ field, not both", "response_format")
    return found[0] if found else ({}, "response_format")


def ollama_shape(given: Any) -> Shape:
    """Return what Ollama's `format` asks for: "json" or a schema."""
    if given in (None, ""):
        return {}
    if given == "json":
        return _JSON_OBJECT
    return {"schema": Structure().check(given, "format")}


def anthropic_shape(given: Any) -> Shape:
    """Return what Anthropic's `output_config` asks for."""
    config = Structure(("format",)).check(given or {}, "output_config")
    if config.get("format") is None:
        return {}
    form = Structure(("type", "schema")).check(config["format"], "output_config.format")
    Choice(("json_schema",)).check(form.get("type"), "output_config.format.type")
    return {"schema": Structure().check(form.get("schema"), "output_config.format.schema")}


def compile_shape(pipeline: Pipeline, shape: Shape, param: str, seconds: float, trial: Trial) -> None:
    """Compile what is asked for, so that the engine finds it compiled.

    Args:
        pipeline: with the model's compiler.
        shape: what is asked for.
        param: the field that asks for it.
        seconds: after which the compilation is given up.
        trial: compiles it first in a process; `trial.end` gives it up.

    Raises:
        ApiError: (400) it is invalid, too large or not supported, it takes too long, or llguidance is not installed.
        TrialEndedError: it was given up.
    """
    from mindone.models.share4v.generation.constraints import GrammarError, grammar_of

    compiler = pipeline.model.grammars
    try:
        text = grammar_of(shape.get("schema"), shape.get("regex"))
        if text is not None and not compiler.has(text) and (reason := trial.refusal(text, seconds)):
            raise GrammarError(reason)
        trial.check()
        compiler.constraint(shape.get("schema"), shape.get("regex"))
    except GrammarError as error:
        raise invalid(f"{param}: {error}", param, "invalid_schema") from error
    except ImportError as error:
        message = f"{param} needs llguidance, which this server does not have: leave it out"
        raise invalid(message, param, "unsupported_parameter") from error


def _response_format(values: Mapping[str, Any]) -> Shape:
    given = values.get("response_format")
    if given is None:
        return {}
    kind = Choice(("text", "json_object", "json_schema")).check(given.get("type"), "response_format.type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return _JSON_OBJECT
    keys = ("name", "description", "schema", "strict")
    inner = Structure(keys).check(given.get("json_schema"), "response_format.json_schema")
    return {"schema": Structure().check(inner.get("schema"), "response_format.json_schema.schema")}


def _vllm_shape(values: Mapping[str, Any]) -> tuple[Shape, str]:
    """Return what one of vLLM's fields asks for, and its name."""
    nested = Structure(("json", "regex", "choice")).check(values.get("structured_outputs", {}), "structured_outputs")
    given = {f"guided_{name}": value for name, value in nested.items() if value is not None}
    given |= {name: values[name] for name in ("guided_json", "guided_regex", "guided_choice") if name in values}
    if len(given) > 1:
        raise invalid(f"give only one of {', '.join(given)}", next(iter(given)))
    if "guided_json" in given:
        return {"schema": Structure().check(given["guided_json"], "guided_json")}, "guided_json"
    if "guided_regex" in given:
        return {"regex": given["guided_regex"]}, "guided_regex"
    if "guided_choice" in given:
        choices = given["guided_choice"]
        if not isinstance(choices, (list, tuple)) or not choices or not all(isinstance(one, str) for one in choices):
            raise invalid("guided_choice must be a list of one or more strings", "guided_choice")
        return {"regex": "|".join(map(re.escape, choices))}, "guided_choice"
    return {}, ""
