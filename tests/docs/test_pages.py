"""Pages agree with the parser, the public names and each other, and their links lead to files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from helpers.pages.document import PAGES, ROOT, name_of

import mindone.models.share4v
import mindone.pipelines
from mindone_share4v.cli import build_parser

DOCS = ROOT / "docs"
# Page of the site -> the file whose text it includes.
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(?<!`)\]\(([^)\s]+)\)")


def script(name: str) -> ModuleType:
    """Return a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return script("generate_cli")


def test_the_command_line_page_is_up_to_date(generator: ModuleType) -> None:
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == generator.page(), "run: python docs/generate_cli.py"


def test_the_table_of_hugging_face_arguments_is_up_to_date() -> None:
    generated = script("generate_arguments").page()
    assert (DOCS / "hugging_face.md").read_text(encoding="utf-8") == generated, "run: python docs/generate_arguments.py"


def test_the_command_line_page_has_every_command_and_flag(generator: ModuleType) -> None:
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in re.split(r"^## share4v ", page, flags=re.MULTILINE)[1:])
    commands = generator.commands_of(build_parser())
    assert list(sections) == list(commands) and len(commands) >= 3
    for name, command in commands.items():
        flags = {flag for action in command._actions for flag in action.option_strings} - {"--help"}
        assert "-h" in flags
        missing = [flag for flag in flags - {"-h"} if f"`{flag}" not in sections[name]]
        assert not missing, f"share4v {name}: {missing}"


@pytest.mark.parametrize("page", INCLUDED)
def test_a_text_on_two_pages_is_written_once(page: str) -> None:
    assert (DOCS / page).read_text(encoding="utf-8").strip() == f'--8<-- "{INCLUDED[page]}"'
    assert len((ROOT / INCLUDED[page]).read_text(encoding="utf-8").splitlines()) > 10


@pytest.mark.parametrize("package", [mindone.models.share4v, mindone.pipelines], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(package: ModuleType) -> None:
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")]
    named = set(re.findall(r"^::: (\S+)$", "\n".join(pages), flags=re.MULTILINE))
    missing = [name for name in package.__all__ if f"{package.__name__}.{name}" not in named]
    assert not missing, f"docs/reference needs a line `::: {package.__name__}.NAME` for {missing}"


def links() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = re.sub(
            r"^([ \t]*)(```|~~~).*?^\1\2", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
        )
        yield from ((name_of(page), target) for target in LINK.findall(text) if "://" not in target)


@pytest.mark.parametrize(("page", "target"), sorted(set(links())))
def test_a_link_leads_to_a_file(page: str, target: str) -> None:
    path, _, _ = target.partition("#")
    if not path:
        return
    found = (ROOT / page).parent / path
    assert found.exists(), f"{page} links to {target}"
    if Path(page).parts[0] == "docs":  # other files are not on the site
        assert found.resolve().is_relative_to(DOCS), f"{page} links to a file outside docs: {target}"


def test_pages_load_nothing_from_other_hosts() -> None:
    pictures = re.compile(r"!\[[^\]]*\]\(\s*https?:|<(?:img|script|iframe)[^>]+https?:")
    assert [name_of(page) for page in PAGES if pictures.search(page.read_text(encoding="utf-8"))] == []
