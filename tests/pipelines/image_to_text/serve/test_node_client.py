"""OpenAI's client for Node against a live server."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.programs import REQUIRED, find_program
from helpers.serving import MODEL, Live, chat

CLIENT = Path(__file__).parent / "clients" / "openai_client.mjs"
PACKAGE = "openai@6"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's file, installed by npm."""
    npm, folder = find_program(("npm",), "npm"), tmp_path_factory.mktemp("node")
    command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and os.environ.get(REQUIRED) != "required":
        pytest.skip(f"npm cannot install {PACKAGE}: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    return folder / "node_modules" / "openai" / "index.mjs"


def test_openais_client_for_node(live: Live, package: Path, scene: str, ask: Callable[..., str]) -> None:
    messages = chat("Describe this image", scene)["messages"]
    done = subprocess.run(
        [find_program(("node",), "nodejs"), str(CLIENT), str(package), live.url, MODEL],
        input=json.dumps(messages),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = ask("Describe this image")
    assert found["whole"] == found["streamed"] == wanted and found["tokens"] == found["wholeTokens"] > 0
    assert found["refused"] == {"name": "BadRequestError", "status": 400, "param": "top_p"}
    assert found["models"] == [MODEL]
