"""What docs/architecture.md promises: imports go one way, importing costs nothing, files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = "mindone.models.share4v"
# A room: the modules (or packages) that belong to it, and the rooms whose modules it may import.
ROOMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "configuration": (("configuration", "configuration_forms", "tower_places"), ("quantization",)),
    "registry": (("registry",), ()),
    "protocols": (("protocols",), ("configuration",)),
    "devices": (("device_operators", "eager"), ()),
    "layers": (("layers", "fused"), ("devices",)),
    "kernels": (("kernels",), ()),
    "packed": (("packed_component",), ("kernels", "checkpoint")),
    "quantization": (("quantization",), ()),
    "vision": (("vision",), ("configuration", "devices", "layers", "kernels", "checkpoint", "packed")),
    "projector": (
        ("projector", "packed_projector"),
        ("configuration", "layers", "registry", "kernels", "checkpoint", "packed"),
    ),
    "language": (
        ("language",),
        ("configuration", "devices", "layers", "kernels", "quantization", "checkpoint", "packed"),
    ),
    "hub": (("hub",), ()),
    "pictures": (("image_loading", "image_modes", "image_processing"), ("configuration",)),
    "checkpoint": (("checkpoint",), ("configuration", "hub", "pictures", "kernels", "quantization")),
    "processing": (("processing", "tokenization", "conversation"), ("configuration", "checkpoint", "pictures")),
    "generation": (
        (
            "generation",
            "generation_mixin",
            "beam_search",
            "continuous_batch",
            "sampling",
            "streaming",
            "cache",
            "prefill",
        ),
        ("configuration", "devices", "protocols", "processing"),
    ),
    "modeling": (
        ("modeling", "merging", "backends", "image_features"),
        (
            "configuration",
            "devices",
            "registry",
            "layers",
            "projector",
            "generation",
            "processing",
            "checkpoint",
            "kernels",
            "quantization",
            "packed",
        ),
    ),
    "auto": (("auto",), ("configuration", "registry", "hub", "checkpoint", "processing", "modeling")),
    "zoo": (("zoo",), ("configuration", "hub", "pictures", "processing", "generation", "modeling")),
    "training": (("training",), ("configuration", "processing", "modeling")),
}
# Where nothing may bring MindSpore with it: a server that only prepares inputs, or `share4v --help`, has no use for it.
WITHOUT_MINDSPORE = ("configuration", "registry", "hub", "checkpoint", "pictures", "processing")
COMMAND_LINE = (ROOT / "mindone_share4v", ROOT / "mindone" / "pipelines" / "image_to_text" / "commands")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = sources("mindone", "mindone_share4v")
MODEL_FILES = sources("mindone/models/share4v")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (item for other in node.orelse for item in (other, *run_time_nodes(other)))
            continue
        yield node
        yield from run_time_nodes(node)


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in run_time_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    inside = module.removeprefix(f"{PACKAGE}.").split(".")[0]
    return next((room for room, (names, _) in ROOMS.items() if inside in names), None)


@pytest.mark.parametrize("path", MODEL_FILES, ids=name_of)
def test_a_module_imports_only_from_the_rooms_below(path: Path) -> None:
    if name_of(path) == PACKAGE:
        assert not {name for name in imports(path) if name.startswith("mindone")}  # all public names are lazy
        return
    room = room_of(name_of(path))
    assert room is not None, f"{name_of(path)} belongs to no room: add it to ROOMS"
    for name in imports(path):
        assert not name.startswith(("mindone.pipelines", "mindone_share4v")), f"{path.name} looks up to {name}"
        if name.startswith(PACKAGE) and name != PACKAGE:
            assert room_of(name) in (room, *ROOMS[room][1]), f"{room}: {path.name} must not import {name}"


def test_no_rooms_import_each_other() -> None:
    list(TopologicalSorter({room: below for room, (_, below) in ROOMS.items()}).static_order())


@pytest.mark.parametrize("path", sources("mindone/pipelines"), ids=name_of)
def test_pipelines_do_not_know_the_command_line(path: Path) -> None:
    if "commands" not in path.parts:  # what a command does is the command line's, wherever its file lies
        assert not {name for name in imports(path) if name.startswith("mindone_share4v") or ".commands" in name}


def isolated(code: str, *options: str) -> str:
    """Run code where `mindone` is this repository's alone, since the upstream package imports MindSpore itself."""
    start = (
        "import sys, types\n"
        "for name in ('mindone', 'mindone.models', 'mindone.pipelines'):\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        f"    module.__path__ = [{str(ROOT)!r} + '/' + name.replace('.', '/')]\n"
    )
    command = [sys.executable, *options, "-c", start + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(sys.executable).parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_else() -> None:
    code = f"import {PACKAGE} as package; print(package.__version__, len(dir(package)))\nprint(*sys.modules)"
    first, modules = isolated(code, "-S").splitlines()  # -S: there are no installed packages at all
    assert int(first.split()[1]) > 10
    assert {name for name in modules.split() if name.startswith(f"{PACKAGE}.")} == set()


def test_rooms_without_mindspore_work_without_it() -> None:
    modules = [name_of(path) for path in MODEL_FILES if room_of(name_of(path)) in WITHOUT_MINDSPORE]
    assert len(modules) > 20
    heavy = "{'mindspore', 'transformers', 'torch', 'mindone.transformers'}"
    imported = isolated(
        f"import importlib\nfor name in {modules}: importlib.import_module(name)\nprint({heavy} & set(sys.modules))"
    )
    assert imported == "set()"


def test_the_upstream_package_keeps_its_own_files() -> None:
    for folder in ("mindone", "mindone/models"):
        assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_only_the_command_line_prints_and_parses_arguments(path: Path) -> None:
    if any(folder in path.parents for folder in COMMAND_LINE):
        return
    assert "argparse" not in imports(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not is_print, f"{path.name}:{node.lineno} prints"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_user_errors_are_no_assertions(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has, its docstring left out."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - has_docstring * (first.end_lineno - first.lineno + 1)


@pytest.mark.parametrize("path", sources("mindone", "mindone_share4v", "examples", "benchmarks"), ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert lines_of(node) <= 60, f"{node.name} has {lines_of(node)} lines"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring and docstring.splitlines()[0].endswith((".", "!"))
