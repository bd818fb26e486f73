"""`share4v serve`: what it prints, how it ends, and errors that are known before the model is loaded."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

import httpx
import pytest

from mindone_share4v.cli import main


def test_it_serves_until_sigterm(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    seen: dict[str, Any] = {"statuses": []}

    def use() -> None:
        pause = threading.Event()
        try:
            while seen["statuses"][-1:] != [200]:
                with suppress(httpx.ConnectError):
                    seen["statuses"].append(httpx.get(f"{url}/health", trust_env=False).status_code)
                pause.wait(0.05)
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            seen["answer"] = httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60).json()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use)
    before = signal.getsignal(signal.SIGTERM)
    thread.start()
    assert main(["serve", "--port", str(port), "--max-batch", "2"]) == 0
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert set(seen["statuses"]) <= {503, 200} and seen["answer"]["usage"]["completion_tokens"] == 3
    captured = capfd.readouterr()
    assert f"listening on {url}; loading sharegpt4v-tiny" in captured.err and f"{url}/v1 (OpenAI)" in captured.err
    assert captured.err.endswith("share4v: ended\n")
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert records[-1]["path"] == "/v1/chat/completions" and records[-1]["completion_tokens"] == 3


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: port {port} of 127.0.0.1 is in use by another program" in error
    assert "choose another with --port" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "reachable from other machines, but no key is set: set --api-key"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--max-batch", "0"], "--max-batch must be 1 or more, got 0"),
        (["--max-queue", "-1"], "--max-queue must be an integer of at least 0, got -1"),
        (["--max-images", "0"], "--max-images must be an integer of at least 1, got 0"),
        (["--max-drain-seconds", "0"], "--max-drain-seconds must be a number above 0"),
        (["--max-body-mb", "0"], "--max-body-mb must be"),
        (["--image-cache-mb", "0"], "--image-cache-mb must be 1 or more"),
        (["--api-key", "two words"], "--api-key must be one or more visible ASCII characters"),
        (["--cors-origin", "*"], "--cors-origin"),
        (["--model", "no-such-model", "--port", "0"], "no-such-model"),
    ],
)
def test_errors_in_the_command(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [one for one in sys.modules if one.startswith("mindone.pipelines.image_to_text.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("mindone.pipelines.image_to_text.serve.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'mindone-share4v[serve]'" in capsys.readouterr().err


def test_keys_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindone_share4v.cli import build_parser
    from mindone_share4v.commands.serve import server_options

    monkeypatch.setenv("SHARE4V_API_KEY", "one,two")
    options = server_options(build_parser().parse_args(["serve", "--host", "0.0.0.0", "--model", "/models/my-7b/"]))
    assert options.api_keys == ("one", "two") and options.model_name == "my-7b"
