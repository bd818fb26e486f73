"""Models that several test files share: transformers' and ours, with the same weights read from disk."""

from __future__ import annotations

import copy
import io
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sentencepiece
import torch
from helpers.backends import BACKENDS
from helpers.llava import SHAPES, SMALL, Reference
from helpers.published_formats import write_original
from helpers.scripted import ScriptedModel
from mindspore import ops

from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.language.llama import CachedLlama, LlamaForCausalLM
from mindone.models.share4v.processing.tokenizer import Tokenizer
from mindone.models.share4v.registry import LANGUAGE_MODELS

Pair = tuple[Reference, Share4V]
SENTENCES = ["the quick brown fox jumps over the lazy dog", "a red circle and two blue squares on white", "END of it"]


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """Return a function that returns the reference and our model of one of SHAPES, or "small", on one of BACKENDS.

    Ours is read from files in the original format. Every pair is made once; all backends share the reference.
    """
    torch.set_num_threads(1)  # the products are too small for more
    references: dict[str, tuple[Reference, Path]] = {}
    models: dict[tuple[str, str], Share4V] = {}

    def make(name: str, backend: str = "kernels") -> Pair:
        if name not in references:
            reference = Reference(SMALL if name == "small" else SHAPES[name])
            references[name] = reference, write_original(reference, tmp_path_factory.mktemp(name))
        reference, main = references[name]
        if (name, backend) not in models:
            models[name, backend] = Share4V.from_pretrained(main, **BACKENDS[backend])
        return reference, models[name, backend]

    return make


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The kernels, then MindSpore's cells."""
    return str(request.param)


@pytest.fixture(scope="session", params=SHAPES)
def pair(request: pytest.FixtureRequest, pair_of: Callable[..., Pair], backend: str) -> Pair:
    """Every shape on every backend."""
    return pair_of(request.param, backend)


@pytest.fixture(scope="session")
def usual(pair_of: Callable[..., Pair], backend: str) -> Pair:
    """The shape that is closest to ShareGPT4V, on every backend."""
    return pair_of("usual", backend)


@pytest.fixture(scope="session")
def small(pair_of: Callable[..., Pair], backend: str) -> Pair:
    """A shape with one layer, on every backend."""
    return pair_of("small", backend)


@pytest.fixture(scope="session")
def small_cells(pair_of: Callable[..., Pair]) -> Pair:
    """A shape with one layer on MindSpore's cells, so that its weights are Parameters."""
    return pair_of("small", "cells")


@pytest.fixture(scope="module")
def shared_graphs() -> Iterator[None]:
    """Caches of MindSpore's cells that are not needed any more are emptied and used again, with their graphs.

    Every new cache would compile two graphs, which takes seconds, and these tests make many of the same size. Not for
    tests that replace weights: a graph may go on with those that it was compiled with.
    """
    new_cached = LlamaForCausalLM.new_cached
    made: dict[tuple[int, int, int], list[tuple[CachedLlama, weakref.ref[CachedLlama]]]] = {}

    def lend(model: LlamaForCausalLM, batch_size: int, capacity: int) -> CachedLlama:
        known = made.setdefault((id(model), batch_size, capacity), [])
        free = next((number for number, (_, lent) in enumerate(known) if lent() is None), None)
        if free is None:
            cached = new_cached(model, batch_size, capacity)  # which keeps the model alive
        else:
            cached, _ = known.pop(free)
            for layer in cached.caches:
                for stored in (layer.key, layer.value):
                    ops.assign(stored, ops.zeros_like(stored))
        lent = copy.copy(cached)
        known.append((cached, weakref.ref(lent)))
        return lent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "new_cached", lend)
        yield


@pytest.fixture(autouse=True)
def prompts_independent_of_test_order(request: pytest.FixtureRequest) -> None:
    """Seed a test's random prompts and images by its name, whichever tests ran before it."""
    for name in {"pair", "usual", "small", "small_cells"}.intersection(request.fixturenames):
        request.getfixturevalue(name)[0].reseed(zlib.crc32(request.node.name.encode()))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=330,
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


@pytest.fixture(scope="session")
def scripted_model(tokenizer: Tokenizer) -> Share4V:
    """A model whose answers a test sets; everything except the language model is real."""
    LANGUAGE_MODELS.register("scripted", "helpers.scripted:ScriptedModel")
    config = Share4VConfig(
        vision_config=VisionConfig(8, 8, 2, 2, image_size=4, patch_size=2),
        projector_config=ProjectorConfig("identity"),
        text_config=TextConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=48,
        ),
    )
    model = Share4V(config, language_backend="scripted")
    model.tokenizer = tokenizer
    return model


@pytest.fixture
def script(scripted_model: Share4V) -> Callable[..., ScriptedModel]:
    """Return a function that sets the answer for each sequence of a batch."""

    def write(*answers: list[int]) -> ScriptedModel:
        language = scripted_model.language_model
        language.scripts, language.prefills, language.decodes = answers, [], []
        return language

    return write
