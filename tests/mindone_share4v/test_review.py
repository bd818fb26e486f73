"""`share4v review`: it serves a job until SIGTERM, publishes what was reviewed, and says what is wrong before that."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.jobs import png

from mindone.pipelines.image_to_text import caption_dataset
from mindone_share4v.cli import main


@pytest.fixture
def job(tmp_path: Path, echo_executor: None) -> Path:
    (tmp_path / "photo.png").write_bytes(png(1))
    caption_dataset(tmp_path / "photo.png", out=str(tmp_path / "captions.jsonl"), prompt="A picture")
    return tmp_path / "captions.jsonl"


@pytest.mark.parametrize("is_writable", [True, False])
def test_it_serves_until_sigterm(job: Path, monkeypatch: pytest.MonkeyPatch, is_writable: bool) -> None:
    """Its exit status says whether the outputs have the changes."""
    messages: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr("mindone_share4v.commands.review.print_error", messages.put)
    seen: dict[str, Any] = {}

    def review() -> None:
        try:
            found = re.search(r"reviewing .*captions\.jsonl\.share4v at (\S+)$", messages.get(timeout=300))
            seen["ready"] = messages.get(timeout=300)
            assert found
            with httpx.Client(base_url=found[1], trust_env=False, timeout=300) as client:
                seen["page"] = client.get("/").status_code
                listing = client.post("/review/find", json={}).json()["listing"]
                body = {"changes": [{"number": 0, "verdict": "edited", "captions": ["By hand"]}], "listing": listing}
                seen["count"] = client.post("/review/changes", json=body).json()["count"]
                if not is_writable:
                    job.with_name("captions.jsonl.partial").mkdir()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # if the server has ended early, the test must go on
    client = threading.Thread(target=review)
    client.start()
    try:
        assert main(["review", str(job), "--port", "0"]) == (0 if is_writable else 1)
    finally:
        client.join(300)
        signal.signal(signal.SIGTERM, before)
    assert seen == {"ready": "ready", "page": 200, "count": 1}
    if is_writable:
        assert json.loads(job.read_text())["captions"] == ["By hand"]
    else:
        problem = messages.get_nowait()
        assert problem.startswith("error: the outputs were not written: ") and "your changes are stored" in problem
    assert messages.get_nowait() == "ended"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no journal.jsonl in nothing"),
        (["captions.jsonl", "--host", "0.0.0.0"], "no key is set: set --api-key"),
        (["captions.jsonl", "--port", "70000"], "--port must be from 0 to 65535"),
    ],
    ids=["no job", "no key", "port"],
)
def test_mistakes(
    job: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(job.parent)
    assert main(["review", *arguments]) == 2
    assert message in capsys.readouterr().err
