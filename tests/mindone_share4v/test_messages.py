"""Messages on the command line: flags in place of Python arguments, for every message that the libraries raise."""

from __future__ import annotations

import argparse
import ast
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

from mindone.pipelines.image_to_text.dataset.keywords import KEYWORDS
from mindone_share4v.arguments import COMMANDS
from mindone_share4v.cli import main
from mindone_share4v.commands.common import with_flags

# What the command line never calls: training, adapters for other packages, modules that only Python code constructs.
PYTHON_ONLY = re.compile(
    r"share4v/(training|integrations|nn|vision|projector|language|kernels|registry|auto|protocols|merging|inputs|"
    r"modeling|generation/(mixin|engine|continuous_batch|kv_cache|beam_search|decoding)|processing/(processor|messages|arrays|call_arguments))"
    r"|image_to_text/(mindone_transformers|requests|base|answering|captioning|settings|evaluation)|pipelines/__init__"
    r"|dataset/(keywords|job|api)\.py"
)
PYTHON_WORDS = re.compile(r"\bor None\b|\bNone\b|=True\b|=False\b|=None\b|\bkeyword arguments?\b|\bNoneType\b")
# Code in a message on purpose, or names of fields in files.
ALLOWED = ("torch.save(torch.load(path, weights_only=True), path)", "_use_new_zipfile_serialization=False")


def raised_texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every message that a file raises; values in it become X."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        for part in ast.walk(node.exc):
            if isinstance(part, ast.JoinedStr):
                pieces = (piece.value if isinstance(piece, ast.Constant) else "X" for piece in part.values)
                yield node.lineno, "".join(map(str, pieces))
            elif isinstance(part, ast.Constant) and isinstance(part.value, str) and " " in part.value:
                yield node.lineno, part.value


def all_flags() -> Namespace:
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    COMMANDS["caption"].add_arguments(parser)
    COMMANDS["caption-dataset"].add_arguments(parser)
    return Namespace(**{action.dest: None for action in parser._actions})


SOURCES = [path for path in sorted((ROOT / "mindone").rglob("*.py")) if not PYTHON_ONLY.search(path.as_posix())]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_message_has_python_words_on_the_command_line(path: Path) -> None:
    flags = all_flags()
    for line, text in raised_texts(path):
        shown = with_flags(flags, text)
        for allowed in ALLOWED:
            shown = shown.replace(allowed, "")
        assert not PYTHON_WORDS.search(shown), f"{path.name}:{line}: {shown}"
        for name in KEYWORDS:  # a name of several words is no English word
            if "_" in name and hasattr(flags, name):
                assert not re.search(rf"(?<![\w.]){name}(?![\w.])", shown), f"{path.name}:{line}: {shown}"
        assert not re.search(r"--[a-z-]+=(\s|$)", shown), f"{path.name}:{line}: {shown}"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Pass vision_tower (--vision-tower) with it", "Pass --vision-tower with it"),
        ("name it with image_column: there are none", "name it with --image-column: there are none"),
        ("out (--out) must be a file", "--out must be a file"),
        ("because of local_files_only or HF_HUB_OFFLINE", "because of --local-files-only or HF_HUB_OFFLINE"),
        ("a/max_words.txt has 'max_words'", "a/max_words.txt has 'max_words'"),
    ],
)
def test_flags_replace_arguments(message: str, shown: str) -> None:
    assert with_flags(all_flags(), message) == shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["photo.jpg"], "'photo.jpg' is no command; to caption it: share4v caption photo.jpg. See share4v --help"),
        (["--verison"], "unknown option --verison. Did you mean --version? See share4v --help"),
        (["capton-dataset", "x"], "unknown command 'capton-dataset'. Did you mean 'caption-dataset'? See share4v"),
        (["chat", "a.png", "--top_p", "1"], "unknown option --top_p. Did you mean --top-p? See share4v chat --help"),
        (["completion", "bsh"], "SHELL must be one of bash, zsh, fish, got 'bsh'. Did you mean 'bash'?"),
        (["caption", "--hlep"], "unknown option --hlep. Did you mean --help? See share4v caption --help"),
        (["convert", "a", "--uot", "b"], "unknown option --uot. Did you mean --out? See share4v convert --help"),
        (["caption"], "IMAGE is missing"),
        ([], "COMMAND is missing"),
    ],
)
def test_a_mistyped_command_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_caption_with_a_style_and_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "photo.jpg", "--style", "tags", "--prompt", "Why?"]) == 2
    assert "--style and --prompt cannot be combined" in capsys.readouterr().err
    assert main(["caption", "photo.jpg", "--style", "tgas"]) == 2
    assert "Did you mean 'tags'?" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--schema", "--prompt-file"])
def test_a_file_that_is_missing_is_named_without_an_error_number(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    status = main(
        ["caption-dataset", str(tmp_path / "photos"), "--out", str(tmp_path / "a.jsonl"), flag, "missing.txt"]
    )
    assert (status, capsys.readouterr().err) == (2, "share4v: error: missing.txt: no such file or directory\n")
