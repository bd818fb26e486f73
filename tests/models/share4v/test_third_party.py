"""A vision tower and a projector of a package that this one has never heard of, installed by pip beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.warm_processes import warm_python
from safetensors.numpy import load_file

from mindone.models.share4v import Share4V

# Everything that its authors write; the entry points are all that leads here.
PACKAGE = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools"]
        build-backend = "setuptools.build_meta"

        [project]
        name = "acme-towers"
        version = "1.0"

        [project.entry-points."mindone.share4v"]
        "vision_tower.acme" = "acme_towers.components:MeanTower"
        "projector.acme-scaled" = "acme_towers.components:ScaledProjector"
        """,
    "acme_towers/__init__.py": "",
    "acme_towers/components.py": """
        import numpy as np
        from mindone.models.share4v.nn.layers import Linear, weight_dtype
        from mindspore import Parameter, Tensor, nn


        class MeanTower(nn.Cell):
            def __init__(self, config, dtype="float32"):
                super().__init__()
                vision = config.vision_config
                self.patch, self.grid = vision.patch_size, vision.image_size // vision.patch_size
                self.mix = Linear(vision.num_channels, vision.hidden_size, dtype=weight_dtype(dtype))

            def construct(self, pixel_values):
                grid, patch = self.grid, self.patch
                means = pixel_values.reshape(-1, 3, grid, patch, grid, patch).mean((3, 5))  # [B, 3, G, G]
                return self.mix(means.reshape(-1, 3, grid * grid).transpose(0, 2, 1))


        class ScaledProjector(nn.Cell):
            def __init__(self, config, dtype="float32"):
                super().__init__()
                sizes = config.vision_config.hidden_size, config.text_config.hidden_size
                self.linear = Linear(*sizes, dtype=weight_dtype(dtype))
                self.scale = Parameter(Tensor(np.full(sizes[1], 3.0, np.float32)))

            def construct(self, features):
                return self.linear(features) * self.scale
        """,
}
MAKE = """
import sys
from mindone.models.share4v import ProjectorConfig, Share4V, Share4VConfig, TextConfig, VisionConfig
from mindone.models.share4v.training.initialization import initialize

config = Share4VConfig(
    VisionConfig(16, 16, 1, 2, image_size=28, patch_size=14),
    ProjectorConfig("acme-scaled"),
    TextConfig(60, 32, 48, 1, 4),
)
model = Share4V(config, vision_backend="acme")
initialize(model, seed=0)
model.save_pretrained(sys.argv[1])
"""
USE = """
import sys
import numpy as np
from mindone.models.share4v import Share4V

pixels = np.load(sys.argv[2])
model = Share4V.from_pretrained(sys.argv[1], vision_backend="acme")
cells = Share4V.from_pretrained(sys.argv[1], vision_backend="acme", language_backend="llama")
prompt = [[1, 7, -200, 9]]
answers = [one.generate(prompt, pixels, max_new_tokens=8) for one in (model, cells)]
np.savez(sys.argv[3], features=model.encode_images(pixels).asnumpy(), answers=answers)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip put the package; no network, nothing of this environment changed."""
    source, target = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        path = source / name
        path.parent.mkdir(exist_ok=True)
        lines = text.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
        path.write_text("\n".join(line[indent:] for line in lines), encoding="utf-8")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target))
    run("-m", "pip", "install", *options, str(source))
    return target


def run(*arguments: str, path: Path | None = None) -> None:
    """Run Python in another process, in which `path` is searched for packages too."""
    python, more = (sys.executable, {}) if path is None else (warm_python(), {"PYTHONPATH": str(path)})
    done = subprocess.run([python, *arguments], env={**os.environ, **more}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_its_components_are_found_built_loaded_and_run(installed: Path, tmp_path: Path) -> None:
    checkpoint, pixels, results = tmp_path / "model", tmp_path / "pixels.npy", tmp_path / "results.npz"
    images = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32)
    np.save(pixels, images)
    run("-c", MAKE, str(checkpoint), path=installed)
    run("-c", USE, str(checkpoint), str(pixels), str(results), path=installed)
    found, weights = np.load(results), load_file(checkpoint / "model.safetensors")
    tower, projector = "vision_tower.mix", "mm_projector.linear"
    means = images.reshape(3, 2, 14, 2, 14).mean((2, 4)).reshape(3, 4).T  # [P, 3]
    features = means @ weights[f"{tower}.weight"].T + weights[f"{tower}.bias"]
    wanted = features @ weights[f"{projector}.weight"].T + weights[f"{projector}.bias"]
    np.testing.assert_allclose(found["features"][0], wanted * weights["mm_projector.scale"], rtol=0, atol=1e-5)
    assert found["answers"][0].tolist() == found["answers"][1].tolist() and found["answers"].size > 2

    with pytest.raises(ValueError, match=r"unknown vision_tower 'acme'; known: .*clip"):  # it is not installed here
        Share4V.from_pretrained(checkpoint, vision_backend="acme")
    with pytest.raises(ValueError, match="unknown projector 'acme-scaled'; known: "):  # which config.json names
        Share4V.from_pretrained(checkpoint)
