"""What docs/architecture.md promises: imports go one way, importing costs nothing, files and functions stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from helpers.paths import ROOT

PACKAGE = "mindone.models.share4v"
DATASET = "mindone.pipelines.image_to_text.dataset"
SERVE = "mindone.pipelines.image_to_text.serve"
# The layers of each package, from the bottom up. A line holds groups; a group is one or more modules (or folders) that
# may import each other. A module may import its own group and every group of a lower line, and nothing else.
LAYERS: dict[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    PACKAGE: (
        (
            ("concurrency",),
            ("file_locks",),
            ("bfloat16",),
            ("suggestions", "hugging_face"),
            ("home_directory",),
            ("display",),
            ("child_process",),
            ("cpu_cores",),
        ),
        (("load_options",), ("hub",), ("kernels",), ("nn",), ("quantization",), ("registry",)),
        (("configuration", "configuration_formats", "configuration_schema"),),
        (("protocols",), ("vision",), ("language",), ("projector",), ("embedding_merging",)),
        (("rounding",),),
        (("checkpoint",),),
        (("processing",),),
        (("conversion", "calibration"), ("gguf_export",), ("generation",), ("device_memory",)),
        (("modeling", "backends", "inputs", "pretrained_model"),),
        (("auto",), ("training",), ("integrations",)),
    ),
    DATASET: (
        (("state",),),
        (("readers",), ("rules",)),
        (("prompts",),),
        (("writers",),),
        (("report", "audit"),),  # of what the writers write
        (("options", "keywords", "text_specs"),),
        (("inference",),),
        (("executors",),),
        (("near_equal",),),
        (("job",), ("preflight_checks",), ("preview",)),
        (("adoption",), ("review",)),
        (("api",),),
        (("config",),),
    ),
    SERVE: (
        (("errors",), ("options",), ("connection",), ("model_thread",), ("cpu_time",), ("cancellation",)),
        (("page",), ("metrics",)),
        (("value_types",), ("json_text",), ("admission",), ("remote_images",), ("sampling",)),
        (("fields",), ("images",), ("http",), ("structured_output",)),
        (("tokens",), ("caption_styles",)),
        (("chat",),),
        (("generation",),),
        (("endpoint",), ("openai_requests",), ("anthropic_api",), ("ollama_api",)),
        (("openai_responses",), ("api_description",), ("middleware",)),
        (("service",), ("review_routes",)),
        (("generation_route",),),
        (("routes",),),
        (("app",),),
        (("server",),),
    ),
}
# What must not import MindSpore: a server that only prepares inputs, or `share4v --help`, has no use for it.
WITHOUT_MINDSPORE = {
    PACKAGE: (
        *(
            "configuration",
            "configuration_formats",
            "home_directory",
            "load_options",
            "registry",
            "suggestions",
            "quantization",
        ),
        *("bfloat16", "concurrency", "display", "hub", "hugging_face", "checkpoint", "processing", "rounding"),
        *("child_process", "cpu_cores", "file_locks"),
    ),
    DATASET: ("state", "readers", "rules", "prompts", "writers", "report", "audit", "options", "keywords"),
    SERVE: tuple(group[0] for layer in LAYERS[SERVE] for group in layer),  # /health answers while MindSpore is imported
}
COMMAND_LINE = (ROOT / "mindone_share4v",)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


OURS = sources("mindone", "mindone_share4v")
MODEL_FILES = sources("mindone/models/share4v")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (item for other in node.orelse for item in (other, *run_time_nodes(other)))
            continue
        yield node
        yield from run_time_nodes(node)


@cache
def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in run_time_nodes(syntax(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


def top_of(module: str, package: str) -> str:
    """The module or folder directly below `package` that a module belongs to."""
    return module.removeprefix(f"{package}.").split(".")[0]


def files_of(package: str) -> list[Path]:
    return [path for path in sources(package.replace(".", "/")) if name_of(path) != package]


def layer_and_group(top: str, package: str) -> tuple[int, tuple[str, ...]]:
    found = [(layer, group) for layer, groups in enumerate(LAYERS[package]) for group in groups if top in group]
    assert len(found) == 1, f"{package}.{top} belongs to no layer: add it to LAYERS"
    return found[0]


@pytest.mark.parametrize(
    ("package", "path"),
    [(package, path) for package in LAYERS for path in files_of(package)],
    ids=lambda value: name_of(value) if isinstance(value, Path) else "",
)
def test_a_module_imports_only_from_lower_layers(package: str, path: Path) -> None:
    layer, group = layer_and_group(top_of(name_of(path), package), package)
    for name in imports(path):
        if package == PACKAGE:
            assert not name.startswith(("mindone.pipelines", "mindone_share4v")), f"{path.name} imports {name}"
        if name.startswith(f"{package}."):
            other = layer_and_group(top_of(name, package), package)
            assert other[1] == group or other[0] < layer, f"{name_of(path)} must not import {name}"


def modules_in(package: str) -> dict[str, set[str]]:
    """Each module of a package with the modules of it that it imports when it is imported itself."""
    names = {name_of(path): path for path in sources(package.replace(".", "/"))}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = {module if module in names else module.rpartition(".")[0] for module in imports(path)}
        graph[name] = {module for module in found if module in names and module != name}
    return graph


@pytest.mark.parametrize("package", ["mindone.models.share4v", "mindone.pipelines", "mindone_share4v"])
def test_no_modules_import_each_other(package: str) -> None:
    list(TopologicalSorter(modules_in(package)).static_order())


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


@pytest.mark.parametrize("package", WITHOUT_MINDSPORE)
def test_what_needs_no_mindspore_does_not_import_it(package: str) -> None:
    modules = [
        name_of(path) for path in files_of(package) if top_of(name_of(path), package) in WITHOUT_MINDSPORE[package]
    ]
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
    for node in ast.walk(syntax(path)):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        assert not is_print, f"{path.name}:{node.lineno} prints"


PRINTING = {  # what may write to the terminal itself: the filter, and a signal handler's fixed message
    "mindone_share4v.printing": {"sys.stdout.write", "sys.stderr.write"},
    "mindone_share4v.signals": {"os.write"},
    "mindone_share4v.status_line": {"sys.stderr.write"},
}
WRITES = {"print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "sys.stderr.buffer.write"}
WRITES |= {"os.write", "stdout.write", "stderr.write", "sys.__stdout__.write", "sys.__stderr__.write", "tqdm.write"}


@pytest.mark.parametrize("path", sources("mindone_share4v"), ids=name_of)
def test_the_command_line_prints_through_one_filter(path: Path) -> None:
    calls = [node for node in ast.walk(syntax(path)) if isinstance(node, ast.Call)]
    found = {ast.unparse(call.func) for call in calls} & WRITES
    assert found <= PRINTING.get(name_of(path), set())


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_user_errors_are_no_assertions(path: Path) -> None:
    tree = syntax(path)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)] == []


FORMATS = sources("mindone/models/share4v/checkpoint/formats")


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_numbers_from_files_are_checked_in_one_place(path: Path) -> None:
    """Nothing unpickles; only `arranged` makes a view by strides; whatever lists tensors calls `checked_layout`."""
    text = path.read_text(encoding="utf-8")
    assert not {"pickle", "marshal", "shelve", "dill", "cloudpickle"} & imports(path)
    if path.name != "tensor.py":
        assert "numpy.lib.stride_tricks" not in imports(path)
    if path in FORMATS and "StoredTensor(" in text and path.name != "tensor.py":
        assert "checked_layout(" in text


# Opened by name elsewhere: a prompt file or a schema that the user named,
# a lock, and files of the user's own home or directory.
OPENERS = (
    "prompts/plan.py",
    "prompts/schema_file.py",
    "executors/work_queue.py",
    "state/atomic_files.py",
    "state/signature.py",
)
OPENING = ("open", "read_bytes", "read_text", "write_bytes", "write_text", "touch")


@pytest.mark.parametrize("path", files_of(DATASET), ids=name_of)
def test_files_of_a_data_set_are_opened_in_one_place(path: Path) -> None:
    """state/regular_files.py opens them: it waits for no FIFO and follows no link that somebody else made."""
    inside = path.relative_to(ROOT / DATASET.replace(".", "/")).as_posix()
    if inside in ("state/regular_files.py", *OPENERS):
        return
    for node in ast.walk(syntax(path)):
        if not isinstance(node, ast.Call):
            continue
        function, keywords = ast.unparse(node.func), {keyword.arg for keyword in node.keywords}
        name = function.rpartition(".")[2]
        is_path = name in OPENING and function not in ("Checkpoint.open", "self.open") and "fileobj" not in keywords
        assert not is_path, f"{inside}:{node.lineno} opens a file by {function}: use state/regular_files.py"


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has, its docstring left out."""
    first = function.body[0]
    has_docstring = ast.get_docstring(function) is not None
    return function.end_lineno - function.lineno + 1 - has_docstring * (first.end_lineno - first.lineno + 1)


@pytest.mark.parametrize("path", sources("mindone", "mindone_share4v", "examples", "benchmarks"), ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    for node in ast.walk(syntax(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert lines_of(node) <= 60, f"{node.name} has {lines_of(node)} lines"


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(syntax(path))
    assert docstring and docstring.splitlines()[0].endswith((".", "!"))


@pytest.mark.parametrize("path", [path for path in OURS if path.name == "__init__.py"], ids=name_of)
def test_no_module_hides_a_name_of_its_package(path: Path) -> None:
    """Importing a module sets an attribute of its package, and would replace what is exported under the same name."""
    found = [node for node in syntax(path).body if isinstance(node, ast.ImportFrom) and node.module]
    names = {alias.name for node in found for alias in node.names if alias.name != node.module}
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_EXPORTS":
            names |= ast.literal_eval(node.value).keys()
    modules = {one.stem for one in path.parent.iterdir() if one.suffix == ".py" or (one / "__init__.py").is_file()}
    assert not modules & names
