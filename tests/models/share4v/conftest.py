"""Models that several test files share: transformers' and ours, with the same weights read from disk."""

from __future__ import annotations

import copy
import gc
import io
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
def pair_models() -> dict[tuple[str, str], Share4V]:
    """Our models that `pair_of` has made, by shape and backend."""
    return {}


@pytest.fixture(scope="session")
def pair_of(
    tmp_path_factory: pytest.TempPathFactory, pair_models: dict[tuple[str, str], Share4V]
) -> Callable[..., Pair]:
    """Return a function that returns the reference and our model of one of SHAPES, or "small", on one of BACKENDS.

    Ours is read from files in the original format. Every pair is made once; all backends share the reference.
    """
    torch.set_num_threads(1)  # the products are too small for more
    references: dict[str, tuple[Reference, Path]] = {}

    def make(name: str, backend: str = "kernels") -> Pair:
        if name not in references:
            reference = Reference(SMALL if name == "small" else SHAPES[name])
            references[name] = reference, write_original(reference, tmp_path_factory.mktemp(name))
        reference, main = references[name]
        if (name, backend) not in pair_models:
            pair_models[name, backend] = Share4V.from_pretrained(main, **BACKENDS[backend])
        return reference, pair_models[name, backend]

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


@dataclass
class _Lent:
    """A cache that is lent out, and the shallow copy that its user has, as long as that exists."""

    cached: CachedLlama
    copy: weakref.ref[CachedLlama]


class LentCaches:
    """Caches of MindSpore's cells that are not needed any more are emptied and used again, with their graphs.

    Every new cache would compile two graphs, which takes seconds, and these tests make many of the same size.
    """

    def __init__(self) -> None:
        self._new_cached = LlamaForCausalLM.new_cached
        # By the model's id (a cache keeps its model alive) and size.
        self._made: dict[tuple[int, int, int], list[_Lent]] = {}
        self._models: dict[int, LlamaForCausalLM] = {}
        self._addresses: dict[int, tuple[int, ...]] = {}

    def lend(self, model: LlamaForCausalLM, batch_size: int, capacity: int) -> CachedLlama:
        """Do what `model.new_cached` does, in its place."""
        # A graph goes on with the memory of weights that `set_data` replaced.
        addresses = tuple(parameter.data_ptr() for parameter in model.get_parameters())
        if self._addresses.get(id(model)) != addresses:
            self.keep(lambda known: known is not model)
        self._models[id(model)], self._addresses[id(model)] = model, addresses
        known = self._made.setdefault((id(model), batch_size, capacity), [])
        if known and all(lent.copy() is not None for lent in known):
            gc.collect()  # what is left of an engine or a stream may be a cycle
        lent = next((lent for lent in known if lent.copy() is None), None)
        if lent is None:
            cached = self._new_cached(model, batch_size, capacity)
        else:
            known.remove(lent)
            cached = lent.cached
            for layer in cached.caches:
                for stored in (layer.key, layer.value):
                    ops.assign(stored, ops.zeros_like(stored))
        copied = copy.copy(cached)
        known.append(_Lent(cached, weakref.ref(copied)))
        return copied

    def keep(self, is_kept: Callable[[LlamaForCausalLM], bool]) -> None:
        """Forget the caches of all other models; who has one may go on with it."""
        for number, model in list(self._models.items()):
            if not is_kept(model):
                del self._models[number], self._addresses[number]
                self._made = {key: lent for key, lent in self._made.items() if key[0] != number}


@pytest.fixture(scope="session")
def lent_caches() -> LentCaches:
    return LentCaches()


@pytest.fixture(scope="module")
def shared_graphs(lent_caches: LentCaches, pair_models: dict[tuple[str, str], Share4V]) -> Iterator[None]:
    """The caches of this module's tests are lent; those of `pair_of`'s models to later modules too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "new_cached", lambda *arguments: lent_caches.lend(*arguments))
        yield
    models = [model.language_model for model in pair_models.values()]
    lent_caches.keep(lambda known: any(known is model for model in models))


@pytest.fixture
def shared_graphs_here(lent_caches: LentCaches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caches of this test are lent; for modules with other tests in which a new cache is the point."""
    monkeypatch.setattr(LlamaForCausalLM, "new_cached", lambda *arguments: lent_caches.lend(*arguments))


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
