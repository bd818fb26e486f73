"""Every code block of README, docs and examples runs as it is, or a comment in front of it gives the reason why not.

A page runs in a temporary folder with a few images (`stand_in.draw_pictures`), the repository's `examples` and a small
checkpoint in the original layout. The name `sharegpt4v-7b` also leads to that checkpoint, through SHARE4V_MIRROR.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.pages.document import PAGES, ROOT, RUNNABLE, SHOWN, Block, blocks_of, name_of
from helpers.pages.stand_in import MODEL, TOWER, draw_pictures
from helpers.paths import HELPERS

BLOCKS = {name_of(page): blocks_of(page.read_text(encoding="utf-8")) for page in PAGES}
SCENE = ROOT / "examples" / "sharegpt_4v" / "scene.png"
RUN_PAGE = HELPERS / "pages" / "run_page.py"
TIMEOUT = 1800.0  # seconds until a page that hangs is given up


def runnable_pages() -> dict[str, list[Block]]:
    """Pages with blocks to run; of pages with the same code, such as a translation and its original, only the first."""
    chosen: dict[tuple[str, ...], str] = {}
    for name, blocks in BLOCKS.items():
        run = tuple(block.code for block in blocks if block.is_run)
        if run:
            chosen.setdefault(run, name)
    return {name: BLOCKS[name] for name in chosen.values()}


def run_page(page: str, folder: Path, originals: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    if page.startswith("examples/"):  # these pages refer to the files beside them
        # Other tests import modules there at the same time: compiled files come and go.
        shutil.copytree(ROOT / Path(page).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        folder.mkdir()
        (folder / "examples").symlink_to(ROOT / "examples")
    draw_pictures(SCENE, folder)
    for original in originals.iterdir():
        (folder / original.name).symlink_to(original)
    blocks = [asdict(block) for block in BLOCKS[page] if block.is_run or block.title]
    command = [shutil.which("python", path=environment["PATH"]) or "", str(RUN_PAGE), page]
    return run_in_group(command, json.dumps(blocks), cwd=folder, env=environment)


def run_in_group(command: list[str], text: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command; programs that it has left in the background, such as a server, end with it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True, **options) as process:
        try:
            output, errors = process.communicate(text, TIMEOUT)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.mark.parametrize("page", runnable_pages())
def test_code_blocks_run(page: str, originals: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = run_page(page, tmp_path / "page", originals, environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_has_a_known_language(page: str) -> None:
    """A command in a block without a language, or with a misspelled one, would never run."""
    for block in BLOCKS[page]:
        known = (*RUNNABLE, *SHOWN)
        assert block.language in known, f"line {block.line}: {block.language!r} is not one of {', '.join(known)}"
        if block.language in SHOWN:
            commands = [line for line in block.text.splitlines() if line.startswith(("$ ", "share4v ", "python "))]
            assert not commands, f"line {block.line}: write commands in a bash or console block, which is run"


def skipped() -> list[tuple[str, Block]]:
    return [(name, block) for name, blocks in BLOCKS.items() for block in blocks if block.reason is not None]


@pytest.mark.parametrize(("page", "block"), skipped(), ids=lambda item: getattr(item, "line", item))
def test_a_block_that_is_not_run_gives_a_reason(page: str, block: Block) -> None:
    assert block.reason and len(block.reason.split()) >= 3, f"{page}, line {block.line}: <!-- not run: REASON -->"
    assert block.language in RUNNABLE, f"{page}, line {block.line}: this language never runs; remove the comment"


def test_blocks_are_parsed() -> None:
    page = (
        "<!-- not run: needs an Ascend -->\n\n```bash\nmsrun x\n```\n"
        '1. a list\n\n    ```python title="a.py"\n    x = 1\n    ```\n\n<!-- a note -->\n'
        "~~~console\n$ echo ```\n```\n~~~\n"
    )
    first, second, third = blocks_of(page)
    assert (first.language, first.text, first.line, first.reason) == ("bash", "msrun x\n", 4, "needs an Ascend")
    assert (second.title, second.text, second.is_run) == ("a.py", "x = 1\n", True)
    assert (third.text, third.reason) == ("$ echo ```\n```\n", None)
    with pytest.raises(ValueError, match="line 1 has no closing fence"):
        blocks_of("```python\nx = 1\n")


@pytest.mark.parametrize(
    ("language", "text", "message"),
    [
        ("python", "x = 1\nraise KeyError('here')\n", "line 8"),
        ("bash", "false\ntrue\n", "status 1"),
        ("bash", "false | cat\n", "status 1"),
        ("console", "$ echo one\ntwo\n", "expected was"),
        ("console", "echo one\n", "no line that starts"),
    ],
)
def test_a_failing_block_is_reported(language: str, text: str, message: str, tmp_path: Path) -> None:
    block = Block(language, text, 7)
    command = [sys.executable, str(RUN_PAGE), "page.md"]
    options = {"input": json.dumps([asdict(block)]), "capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, **options)
    assert done.returncode == 1 and message in done.stderr and "page.md, line 7" in done.stderr


def test_a_program_in_the_background_ends_with_its_page(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "open")
    reader = os.open(tmp_path / "open", os.O_RDONLY | os.O_NONBLOCK)
    block = Block("bash", "exec 3> open\nsleep 600 < /dev/null > /dev/null 2>&1 &\nfalse\n", 1)
    done = run_in_group([sys.executable, str(RUN_PAGE), "page.md"], json.dumps([asdict(block)]), cwd=tmp_path)
    assert done.returncode == 1 and "status 1" in done.stderr
    assert select.select([reader], [], [], 60)[0], "the program still runs"  # the end of the file: nobody can write
    os.close(reader)


def test_a_console_block_compares_the_output(tmp_path: Path) -> None:
    text = "$ echo one; echo two\none\n...\n$ printf '%s' \\\n> three\nthree\n"
    block = Block("console", text, 1)
    command = [sys.executable, str(RUN_PAGE), "page.md"]
    done = subprocess.run(command, input=json.dumps([asdict(block)]), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "shown", "passes"),
    [
        ("echo 'share4v: error: no' >&2; exit 2", "share4v: error: no", True),
        ("echo 'share4v: error: no' >&2; exit 2", "share4v: error: yes", False),
        ("echo 'share4v: error: no' >&2", "share4v: error: no", False),
        ("exit 2", "", False),
        ("echo 'share4v: note' >&2; echo hidden", "share4v: note", False),
        ("echo 'share4v: note' >&2", "share4v: note", True),
    ],
)
def test_a_console_block_can_show_a_mistake(command: str, shown: str, passes: bool, tmp_path: Path) -> None:
    block = Block("console", f"$ {command}\n{shown}\n", 1)
    run = [sys.executable, str(RUN_PAGE), "page.md"]
    done = subprocess.run(run, input=json.dumps([asdict(block)]), capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode == 0) == passes, done.stderr


def test_the_small_checkpoint_is_the_tiny_model_in_the_original_layout(originals: Path) -> None:
    from mindone.pipelines import pipeline

    stand_in = pipeline("image-to-text", originals / MODEL, vision_tower=originals / TOWER)
    assert stand_in(str(SCENE)) == pipeline("image-to-text", "sharegpt4v-tiny")(str(SCENE))
