"""Peak memory: weights are rounded as they are read, one at a time, and what they came from does not stay."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.warm_processes import warm_python

from mindone.models.share4v import ProjectorConfig, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.checkpoint import save_weights
from mindone.models.share4v.checkpoint.weights import all_plans, expected_shapes
from mindone.models.share4v.kernels.packing import block_bytes

CONFIG = Share4VConfig(
    VisionConfig(64, 128, 1, 2, image_size=28, patch_size=14),
    ProjectorConfig("linear"),
    TextConfig(2000, 1024, 2816, 4, 8, 8, max_position_embeddings=256),
)
MEGABYTE = 2**20
ROOM = 24 * MEGABYTE  # for what Python and MindSpore take besides, and one weight
PROGRAM = """
import sys
from pathlib import Path
from mindone.models.share4v import Share4V
from mindone.models.share4v import convert
from mindone.models.share4v.kernels.library import library

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

library()
Share4V.from_pretrained("sharegpt4v-tiny", dtype="int8")  # all that the first model brings in
Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
before = status("VmRSS")
{what}
print(status("VmHWM") - before)
"""
LOAD = 'model = Share4V.from_pretrained(sys.argv[1], dtype="{dtype}"); assert model.dtype == "{dtype}"'
CONVERT = 'convert(sys.argv[1], sys.argv[1] + "-converted", dtype="{dtype}")'


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 220 MB of random weights, in float32."""
    directory, rng = tmp_path_factory.mktemp("large") / "model", np.random.default_rng(0)
    shapes = expected_shapes(CONFIG)[0]
    save_weights(((name, rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()), directory, "50MB")
    CONFIG.save_pretrained(directory)
    return directory


def growth(what: str, directory: Path) -> int:
    """Return by how many bytes a process grows at most, while it does `what`."""
    done = subprocess.run(
        [warm_python(), "-c", PROGRAM.format(what=what), str(directory)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def size_of(dtype: str) -> int:
    return sum(block_bytes(plan.spec) for plan in all_plans(CONFIG, dtype))


@pytest.mark.parametrize("dtype", ["int8", "int4", "float32"])
def test_loading_takes_little_more_than_the_result(dtype: str, large: Path) -> None:
    stored = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert stored > 200 * MEGABYTE
    if dtype != "float32":
        assert 1.6 * size_of(dtype) + ROOM < 0.6 * stored  # else the bound would say nothing
    assert growth(LOAD.format(dtype=dtype), large) < 1.6 * size_of(dtype) + ROOM


def test_converting_holds_a_block_at_a_time(large: Path) -> None:
    largest = max(block_bytes(plan.spec) for plan in all_plans(CONFIG, "int8"))
    assert growth(CONVERT.format(dtype="int8"), large) < 2 * largest + ROOM < size_of("int8")
    # What was written is mapped: it takes no memory before it is used, and is not copied then.
    converted = large.with_name("model-converted")
    assert growth(LOAD.format(dtype="int8"), converted) < ROOM
