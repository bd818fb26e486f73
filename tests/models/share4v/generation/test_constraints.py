"""Schemas and regular expressions: every text matches, in any batch, and nothing is left unchecked."""

from __future__ import annotations

import json
import re
from typing import Any

import hypothesis
import jsonschema
import numpy as np
import pytest
from hypothesis import strategies as st

from mindone.models.share4v import Share4V, Share4VProcessor
from mindone.models.share4v.generation.constraints import GrammarCompiler, GrammarError, grammar_of
from mindone.models.share4v.generation.decoding import GenerationSettings, RunningSequence
from mindone.models.share4v.generation.engine import Engine, Request
from mindone.models.share4v.processing.tokenizer import Tokenizer
from mindone.pipelines import pipeline

SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string", "maxLength": 12}, "count": {"enum": [1, 2]}},
    "required": ["caption", "count"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Share4V:
    return Share4V.from_pretrained("sharegpt4v-tiny")


@pytest.fixture(scope="module")
def processor() -> Share4VProcessor:
    return Share4VProcessor.from_pretrained("sharegpt4v-tiny")


@pytest.fixture
def compiler(model: Share4V) -> GrammarCompiler:
    return GrammarCompiler(model.tokenizer, model.config.text_config.vocab_size, (2,))


def check(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"caption", "count"} and found["count"] in (1, 2) and len(found["caption"]) <= 12


def walk(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int, **grammar: Any) -> str:
    """A text that chooses any of the allowed tokens at random."""
    constraint = compiler.constraint(grammar.get("schema"), grammar.get("regex"))
    assert constraint is not None
    random, ids = np.random.default_rng(seed), []
    for _ in range(500):
        token_id = int(random.choice(np.flatnonzero(constraint.allowed(ids))))
        if token_id == 2:
            return tokenizer.decode(ids).strip()
        ids.append(token_id)
    raise AssertionError("the text does not end")


@pytest.mark.parametrize("seed", range(20))
def test_random_walks_match(compiler: GrammarCompiler, model: Share4V, seed: int) -> None:
    check(walk(compiler, model.tokenizer, seed, schema=SCHEMA))
    assert re.fullmatch("(ab|c/d)+e", walk(compiler, model.tokenizer, seed, regex="(ab|c/d)+e"))


def test_generate_and_the_engine_agree(model: Share4V, processor: Share4VProcessor) -> None:
    inputs = processor(text=["What is this?", "Where?", "Why is it so?"])
    for settings in ({}, {"do_sample": True, "temperature": 3.0, "seed": 5}):
        generated = model.generate(**inputs, schema=SCHEMA, max_new_tokens=150, **settings)
        for ids in generated:
            check(processor.decode(ids))
        assert generated.finish_reasons == ["eos"] * 3
        engine: Engine[int] = Engine(model, 2)
        chosen = GenerationSettings.from_arguments({"schema": SCHEMA, "max_new_tokens": 150, **settings})
        for number, text in enumerate(("What is this?", "Where?", "Why is it so?")):
            engine.submit(Request(number, processor(text=text)["input_ids"], chosen))
        engine.submit(Request(9, inputs["input_ids"][:1], GenerationSettings(max_new_tokens=5)))  # free of any schema
        done = {}
        while len(engine):
            done |= {one.request_id: one for one in engine.step()}
        assert [list(done[number].token_ids) for number in range(3)] == list(generated)
        assert done[9].error is None


def test_several_answers_and_pipelines(model: Share4V, processor: Share4VProcessor) -> None:
    settings: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "seed": 1, "num_return_sequences": 3}
    for ids in model.generate(**processor(text="What?"), regex="(yes|no), [0-9]{2}", **settings):
        assert re.fullmatch("(yes|no), [0-9]{2}", processor.decode(ids))
    answerer = pipeline("image-text-to-text", model, processor)
    check(answerer(text="What?", generate_kwargs={"schema": SCHEMA}, return_full_text=False)[0]["generated_text"])


NAMES = st.sampled_from(["a", "b c", "\u00e9t\u00e9", 'q"', "long name"])
LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "number"}, {"const": {"x": [1, "y"]}}]),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-50, 50),
        st.integers(0, 99),
    ),
    st.builds(
        lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
        st.integers(0, 9),
        st.integers(0, 20),
    ),
    st.sampled_from(["^[a-z]{3,9}$", "^(ab|cd)*e$", "^[0-9]{2}-[A-F]+$", "^\u65e5\u672c.?$"]).map(
        lambda one: {"type": "string", "pattern": one}
    ),
    st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda one: {"type": "string", "format": one}),
    st.lists(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=4)), min_size=1, max_size=4).map(
        lambda ones: {"enum": ones}
    ),
)


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(properties: dict[str, Any], required: list[str], more: Any) -> dict[str, Any]:
        names = [name for name in properties if name in required]
        return {"type": "object", "properties": properties, "required": names, "additionalProperties": more}

    return st.builds(
        build, st.dictionaries(NAMES, inner, max_size=3), st.lists(NAMES), st.one_of(st.just(False), inner)
    )


def arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(items: Any, low: int, more: int | None) -> dict[str, Any]:
        limits = {"minItems": low} if more is None else {"minItems": low, "maxItems": low + more}
        return {"type": "array", "items": items, **limits}

    return st.builds(build, inner, st.integers(0, 2), st.one_of(st.none(), st.integers(0, 2)))


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        objects(inner), arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda ones: {"anyOf": ones})
    ),
    max_leaves=6,
)


@hypothesis.settings(
    max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
)
@hypothesis.given(schema=SCHEMAS, spare=st.integers(0, 30), seed=st.integers(0, 2**32), greedy=st.booleans())
def test_every_text_validates_however_short_it_must_be(
    model: Share4V, schema: Any, spare: int, seed: int, greedy: bool
) -> None:
    """With logits at random, which would seldom end a text, and from no token more than the schema needs."""
    try:
        constraint = model.grammars.constraint(schema, None)
    except GrammarError as error:  # the search for a short text gives up, which is an error, not a wrong text
        hypothesis.assume("no text of at most 4096 tokens" not in str(error))
        raise
    assert constraint is not None
    tokenizer, random = model.tokenizer, np.random.default_rng(seed)
    limit = len(constraint.ending) + spare
    hypothesis.assume(limit < 4000)  # otherwise the context ends first
    settings = GenerationSettings.from_arguments({"max_new_tokens": limit, "do_sample": not greedy, "seed": seed})
    sequence = RunningSequence(np.zeros(1, np.int64), settings, 4096, constraint=constraint)
    reason = None
    while reason is None:
        _, reason = sequence.advance(random.normal(0, 5, 640).astype(np.float32))
    assert len(sequence.token_ids) <= limit and reason in ("eos", "length")
    assert reason == "length" or not constraint.is_cut
    jsonschema.validate(
        json.loads(tokenizer.decode(sequence.token_ids)),
        schema,
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


def test_a_cut_answer_is_complete_and_says_so(model: Share4V, processor: Share4VProcessor) -> None:
    inputs = processor(text=["What is this?", "Where?"])
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 2}
    for settings in ({}, {"do_sample": True, "temperature": 3.0, "seed": 5}):
        generated = model.generate(**inputs, schema=schema, max_new_tokens=12, **settings)
        for ids in generated:
            jsonschema.validate(json.loads(processor.decode(ids)), schema)
        assert "length" in generated.finish_reasons
    with pytest.raises(GrammarError, match=r"needs [0-9]+ tokens, but only 2 are allowed: increase max_new_tokens"):
        model.generate(**inputs, schema=schema, max_new_tokens=2)


def test_a_forbidden_token_gives_way_to_the_schema(model: Share4V, processor: Share4VProcessor) -> None:
    everything = range(model.config.text_config.vocab_size)
    engine: Engine[int] = Engine(model, 1)
    settings = GenerationSettings.from_arguments({"schema": SCHEMA})
    engine.submit(Request(1, processor(text="What?")["input_ids"], settings, forbidden=lambda ids: everything))
    while len(engine):
        for completion in engine.step():
            check(completion.text)


def test_a_minimum_length_gives_way_to_the_end_of_the_grammar(model: Share4V, processor: Share4VProcessor) -> None:
    ids = model.generate(**processor(text="What?"), regex="yes", min_new_tokens=50, max_new_tokens=60)[0]
    assert processor.decode(ids) == "yes"


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({"schema": {"type": "objec"}}, "Invalid type: objec"),
        ({"schema": {"$ref": "https://example.org/x"}}, "https://example.org/x"),
        ({"schema": {"enum": ["x" * 40_000]}}, "more than 32,768 bytes"),
        ({"schema": {"const": float("nan")}}, "no JSON"),
        ({"schema": "json"}, "must be an object"),
        ({"regex": "(a|b"}, "unclosed group|regex parse error"),
        ({"regex": ""}, "at least one character"),
        ({"regex": "a\ud800"}, "half of a surrogate pair"),
        ({"schema": {"properties": {"const": {"minProperties": 2}}}}, "^minProperties above 1"),
        ({"schema": {}, "regex": "a"}, "not both"),
        ({"schema": {"type": "object", "minProperties": 2}}, "minProperties above 1 needs additionalProperties: false"),
    ],
)
def test_bad_grammars(compiler: GrammarCompiler, grammar: dict[str, Any], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        compiler.constraint(grammar.get("schema"), grammar.get("regex"))


@pytest.mark.parametrize("keyword", ["const", "default", "enum", "examples"])
def test_data_in_a_schema_is_no_schema(keyword: str) -> None:
    data = {"minProperties": 2}
    value = [data] if keyword in ("enum", "examples") else data
    assert grammar_of({"properties": {"a": {keyword: value}}}, None) is not None


def test_an_answer_with_a_schema_ends_with_the_models_own_tokens_alone() -> None:
    with pytest.raises(ValueError, match=r"eos_token_id .* and a schema or regex cannot be combined"):
        GenerationSettings.from_arguments({"schema": SCHEMA, "eos_token_id": [2, 29892]})
    assert GenerationSettings.from_arguments({"schema": SCHEMA, "eos_token_id": 2}).eos_token_ids == (2,)


def test_contradicting_settings(model: Share4V, processor: Share4VProcessor) -> None:
    inputs = processor(text="What?")
    with pytest.raises(ValueError, match="schema and regex cannot be combined"):
        model.generate(**inputs, schema={}, regex="a")
    with pytest.raises(ValueError, match="num_beams and a schema or regex cannot be combined"):
        model.generate(**inputs, regex="a", num_beams=2)


def test_grammars_are_compiled_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    compile_grammar = compiler._compile
    monkeypatch.setattr(compiler, "_compile", lambda text, *more: compiled.append(text) or compile_grammar(text, *more))
    first, second = (compiler.constraint(SCHEMA, None) for _ in range(2))
    assert len(compiled) == 1 and first is not second
    assert first is not None and second is not None
    first.allowed([int(np.flatnonzero(first.allowed([]))[0])])
    assert second.allowed([]).sum() == compiler.constraint(SCHEMA, None).allowed([]).sum()  # type: ignore[union-attr]
