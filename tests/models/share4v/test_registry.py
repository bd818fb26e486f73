"""The component registries: lazy names, other packages' entry points, helpful errors, and one contract for all."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.backends import CELLS
from helpers.contract import CONFIG, check_component
from helpers.paths import ROOT
from mindspore import Tensor

from mindone.models.share4v import ProjectorConfig, Share4V
from mindone.models.share4v.checkpoint import CheckpointError, save_weights
from mindone.models.share4v.registry import LANGUAGE_MODELS, PROJECTORS, VISION_TOWERS, Registry

PLUGIN = {
    "their_towers.py": '"""A tower of another package."""\n\nclass Tower:\n    kind = "theirs"\n',
    "their_towers-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: their-towers\nVersion: 1.0\n",
    "their_towers-1.0.dist-info/entry_points.txt": (
        "[mindone.share4v]\nvision_tower.theirs = their_towers:Tower\nprojector.torn = their_towers:Missing\n"
    ),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package, installed: files on sys.path beside their dist-info."""
    for name, text in PLUGIN.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_towers", raising=False)
    return tmp_path


def test_a_name_is_imported_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "late_component.py").write_text("class Late: pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("vision_tower")
    registry.register("late", "late_component:Late")
    assert "late" in registry.names() and "late_component" not in sys.modules
    assert registry.resolve("late") is sys.modules["late_component"].Late
    monkeypatch.delitem(sys.modules, "late_component")


def test_an_installed_package_adds_components_by_entry_points(plugin: Path) -> None:
    towers = Registry("vision_tower")
    assert towers.names() == ["theirs"] and "their_towers" not in sys.modules
    assert towers.resolve("theirs").kind == "theirs"
    assert "theirs" in VISION_TOWERS.names() and "theirs" not in LANGUAGE_MODELS.names()


def test_an_entry_point_that_leads_nowhere_is_named(plugin: Path) -> None:
    with pytest.raises(
        ImportError, match="projector 'torn' stands for 'their_towers:Missing', which cannot be imported"
    ):
        PROJECTORS.resolve("torn")


def test_an_own_name_wins_over_an_entry_point(plugin: Path) -> None:
    towers = Registry("vision_tower")
    towers.register("theirs", "collections:OrderedDict")
    assert towers.resolve("theirs").__name__ == "OrderedDict"


def test_an_unknown_name_raises_with_the_known_and_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown vision_tower 'clipp'; known: .*clip.* Did you mean 'clip'\?"):
        VISION_TOWERS.resolve("clipp")
    with pytest.raises(ValueError, match=r"unknown language_model 'zzz'; known: .*llama[^?]*$"):
        LANGUAGE_MODELS.resolve("zzz")


def test_registering_twice_is_refused_unless_it_is_the_same() -> None:
    registry = Registry("projector")
    registry.register("one", "collections:Counter")
    registry.register("one", "collections:Counter")
    with pytest.raises(ValueError, match="'one' is already registered as 'collections:Counter', cannot become"):
        registry.register("one", "collections:OrderedDict")


@pytest.mark.parametrize("target", ["collections", "collections:", ":Counter", ""])
def test_a_target_of_another_form_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="registered as 'module:attribute'"):
        Registry("projector").register("bad", target)


def test_a_module_that_is_not_there_is_an_import_error() -> None:
    registry = Registry("projector")
    registry.register("gone", "no_such_module_here:Thing")
    with pytest.raises(ImportError, match=r"projector 'gone' stands for .*No module named 'no_such_module_here'"):
        registry.resolve("gone")


def test_a_model_of_unknown_components_says_which_there_are() -> None:
    for backend in ("language_backend", "vision_backend"):
        with pytest.raises(ValueError, match=r"unknown .* 'nothing'; known: "):
            Share4V(CONFIG, **{backend: "nothing"})


NAMES = [(registry, name) for registry in (VISION_TOWERS, PROJECTORS, LANGUAGE_MODELS) for name in registry._targets]
# What needs a package that only an extra installs is held to the contract in that extra's environment.
EXTRA_FOLDERS = {"mindnlp": "tests/models/share4v/integrations/mindnlp"}


@pytest.mark.parametrize(
    "registry, name",
    [(registry, name) for registry, name in NAMES if name not in registry.extras],
    ids=lambda item: item if isinstance(item, str) else item.kind,
)
def test_every_component_keeps_to_its_contract(registry: Registry, name: str) -> None:
    check_component(registry, name)


def test_components_that_need_an_extra_have_tests_in_a_folder_of_their_own() -> None:
    extras = {registry.extras[name] for registry, name in NAMES if name in registry.extras}
    assert extras == set(EXTRA_FOLDERS)
    for folder in EXTRA_FOLDERS.values():
        assert list((ROOT / folder).glob("test_*.py"))


def test_a_component_whose_package_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mindnlp", None)  # as if it were not there
    message = r"language_model 'mindnlp' needs mindnlp, .*not installed: pip install 'mindone-share4v\[mindnlp\]'"
    with pytest.raises(ImportError, match=message):
        Share4V.from_pretrained("sharegpt4v-7b", language_backend="mindnlp", local_files_only=True)


def test_a_component_of_the_kernels_without_weights_says_so() -> None:
    tower = VISION_TOWERS.resolve("packed-clip")(CONFIG, "float32")
    with pytest.raises(RuntimeError, match=r"class_embedding were not loaded: create the model with .*from_pretrained"):
        tower(Tensor(np.ones((1, 3, 28, 28), np.float32)))


def test_the_registries_import_nothing_heavy() -> None:
    code = (
        "import sys, types\n"
        "package = sys.modules['package'] = types.ModuleType('package')\n"
        "package.__path__ = [sys.argv[1]]\n"  # upstream's `mindone` would import MindSpore itself
        "import package.registry\n"
        "print(sorted({'mindspore', 'numpy'} & set(sys.modules)))"
    )
    folder = Path(sys.modules[Registry.__module__].__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_component_of_another_package_is_saved_and_loaded(tmp_path: Path) -> None:
    PROJECTORS.register("gated", "helpers.gated:GatedProjector")
    model = Share4V(replace(CONFIG, projector_config=ProjectorConfig("gated")))
    model.save_pretrained(tmp_path)
    again = Share4V.from_pretrained(tmp_path, **CELLS)
    weights = {name: value.asnumpy() for name, value in model.parameters_and_names()}
    assert {"mm_projector.up.weight", "mm_projector.gate.bias"} <= set(weights)
    loaded = {name: value.asnumpy() for name, value in again.parameters_and_names()}
    assert set(loaded) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name], array)
    # On the kernels the foreign part stays a cell.
    fast, image = Share4V.from_pretrained(tmp_path), np.ones((1, 3, 28, 28), np.float32)
    assert {name for name, _ in fast.parameters_and_names()} == {name for name in weights if "mm_projector" in name}
    np.testing.assert_allclose(fast.encode_images(image).asnumpy(), model.encode_images(image).asnumpy(), atol=1e-5)
    fast.save_pretrained(tmp_path / "again")
    stored = Share4V.from_pretrained(tmp_path / "again", **CELLS)
    for name, value in stored.parameters_and_names():
        np.testing.assert_array_equal(value.asnumpy(), weights[name])
    save_weights([*weights.items(), ("mm_projector.down.weight", np.ones(2, np.float32))], tmp_path)
    with pytest.raises(CheckpointError, match=r"1 not in the model: mm_projector\.down\.weight"):
        Share4V.from_pretrained(tmp_path)
    save_weights([*weights.items(), ("other.down.weight", np.ones(2, np.float32))], tmp_path)
    with pytest.raises(CheckpointError, match=r"1 tensors whose names .*other\.down\.weight"):
        Share4V.from_pretrained(tmp_path)
