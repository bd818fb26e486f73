"""How the suite is distributed over workers, and fixtures of all tests: a small random ShareGPT4V and pictures."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.paths import TESTS

# OpenMP and NumPy's BLAS read these when they are loaded, so before anything imports NumPy. Threads that wait sleep
# instead of spinning, which leaves the CPU to others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each worker; tests of threads set their number themselves
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("hypothesis"):  # not in the environment of mindnlp
    from hypothesis import HealthCheck, settings

    # By default an example that takes more than 200 ms fails, which on a busy machine any of them may.
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
if "SHARE4V_HOME" not in os.environ:  # so that jobs sign with a key of the tests, not with that of the user's home
    os.environ["SHARE4V_HOME"] = tempfile.mkdtemp(prefix="share4v-home-")
    atexit.register(shutil.rmtree, os.environ["SHARE4V_HOME"], ignore_errors=True)

WORKERS = 2
# Files that take more than 20 s each, longest first: started last, one of them would keep one worker busy alone.
LONGEST_FIRST = (
    "docs/test_code_blocks.py",
    "models/share4v/test_parity.py",
    "pipelines/image_to_text/dataset/test_crashes.py",
    "mindone_share4v/test_caption_dataset.py",
    "models/share4v/test_ascend_model.py",
    "models/share4v/nn/test_ascend_frontend.py",
    "models/share4v/training/test_mixed_precision.py",
    "models/share4v/integrations/mindone_transformers/test_vision_tower.py",
    "models/share4v/test_kernel_components.py",
    "models/share4v/generation/test_decoding.py",
    "pipelines/image_to_text/dataset/test_streams.py",
    "mindone_share4v/test_cli.py",
    "models/share4v/integrations/mindone_transformers/test_pipelines.py",
    "pipelines/image_to_text/dataset/executors/test_ray_executor.py",
    "models/share4v/checkpoint/test_packed.py",
    "pipelines/image_to_text/dataset/executors/test_msrun.py",
    "models/share4v/integrations/mindone_transformers/test_registration.py",
    "models/share4v/generation/test_continuous_batch.py",
    "models/share4v/integrations/mindone_transformers/test_auto_classes.py",
    "models/share4v/training/test_trainer.py",
    "models/share4v/test_kernels_missing.py",
    "models/share4v/generation/test_memory_over_time.py",
)

# Fixtures import what they need when they are used, so that a test of pure Python does not wait for MindSpore.
WORDS = "a red green blue circle square left of the large small What is Why where Describe this image in one sentence ."


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return what `-n auto` means: two workers for folders; for files and single tests none, so that -s works."""
    is_folder = any(Path(argument).is_dir() for argument in config.args)
    return WORKERS if is_folder and config.getoption("capture") != "no" else 0


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order of the others, and within a file, stays."""
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(TESTS).as_posix(), len(rank)))


def exempt_from_collection() -> None:
    """Exempt what exists, and is no garbage now, from later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while ten thousand modules are imported, and exempt them from garbage collection afterwards.

    Traversing what is imported again and again would take a fifth of the collection's time. Afterwards MindSpore calls
    `gc.collect()` whenever it compiles a graph, which with PyTorch and transformers loaded takes a quarter of a second
    each time, as long as some graphs take to compile.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        exempt_from_collection()


EXEMPTED: pytest.StashKey[tuple[Path, int]] = pytest.StashKey()  # the current test's file, and how many modules


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Exempt what the tests of another file have imported too, now that what their fixtures made is gone."""
    file, modules = item.session.stash.get(EXEMPTED, (item.path, len(sys.modules)))
    if item.path != file and len(sys.modules) > modules + 200:
        exempt_from_collection()
        modules = len(sys.modules)
    item.session.stash[EXEMPTED] = item.path, modules


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Records of this package too, although mindone.transformers, once imported, keeps those of `mindone` to itself."""
    logger = logging.getLogger("mindone")
    level, propagates = logger.level, logger.propagate
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    yield caplog
    logger.setLevel(level)
    logger.propagate = propagates


@pytest.fixture
def echo_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of this process have no model: each question is its answer."""
    from mindone.pipelines.image_to_text.dataset.executors.base import EXECUTORS

    monkeypatch.setitem(EXECUTORS, "local", "helpers.echo_executor:EchoExecutor")


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of 400 pieces with LLaMA's options, trained on random sentences."""
    import sentencepiece

    from mindone.models.share4v.processing.chat_templates import TEMPLATES

    words = sorted({*WORDS.split(), *(word for template in TEMPLATES.values() for word in template.system.split())})
    generator = random.Random(0)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(generator.choices(words, k=8)) for _ in range(400)]),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def checkpoint(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a Share4V with random weights and its processor, as `save_pretrained` writes them."""
    import mindspore as ms
    import numpy as np

    from mindone.models.share4v import (
        ProjectorConfig,
        Share4V,
        Share4VConfig,
        Share4VProcessor,
        TextConfig,
        VisionConfig,
    )
    from mindone.models.share4v.processing.image_processor import ImageProcessor
    from mindone.models.share4v.processing.tokenizer import Tokenizer

    vision = VisionConfig(32, 64, 2, 2, image_size=28, patch_size=14)
    text = TextConfig(400, 32, 64, 2, 4, 2, max_position_embeddings=512)
    config = Share4VConfig(vision, ProjectorConfig("mlp2x_gelu"), text, image_aspect_ratio="pad")
    model = Share4V(config)
    generator = np.random.default_rng(0)
    for _, parameter in model.parameters_and_names():  # large enough for pictures to change the answers
        parameter.set_data(ms.Tensor(generator.normal(0, 0.4, parameter.shape).astype(np.float32)))
    directory = tmp_path_factory.mktemp("models") / "random-share4v"
    model.save_pretrained(directory)
    processor = Share4VProcessor(ImageProcessor.from_pretrained(directory, config, None), Tokenizer(vocabulary))
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of five small pictures of noise."""
    import numpy as np
    from PIL import Image

    directory = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(1)
    paths = []
    for number in range(5):
        pixels = generator.integers(0, 256, (40 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"picture-{number}.png")
        paths.append(str(directory / f"picture-{number}.png"))
    return paths
