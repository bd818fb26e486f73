"""`share4v serve`: what it prints, how it ends, and errors that are known before the model is loaded."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from mindone_share4v.cli import main
from mindone_share4v.commands.serve import AccessLog


class Errors(io.StringIO):
    """Standard error, which another thread can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._has_ended = False

    def write(self, text: str) -> int:
        with self._changed:
            self._changed.notify_all()
            return super().write(text)

    def end(self) -> None:
        """Nothing more is written: let `wait_for` fail at once."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Wait until `pattern` was written, and return its group."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_ended or re.search(pattern, self.getvalue()), timeout=300)
            found = re.search(pattern, self.getvalue())
        assert found, self.getvalue()
        return found[1]


def use(errors: Errors) -> dict[str, Any]:
    """Use the server as a client, and end it with SIGTERM."""
    try:
        url = errors.wait_for(r"listening on (\S+); loading sharegpt4v-tiny")
        with httpx.Client(base_url=url, trust_env=False, timeout=300) as client:
            early = client.get("/health").status_code
            errors.wait_for(rf"ready: sharegpt4v-tiny at ({url}/v1) \(OpenAI\)")
            ready = client.get("/health").status_code
            body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
            answer = client.post("/v1/chat/completions", json=body).json()
        return {"early": early, "ready": ready, "answer": answer}
    finally:
        if not errors._has_ended:
            os.kill(os.getpid(), signal.SIGTERM)


def test_it_serves_until_sigterm(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("SIGTERM came when the server did not handle it")

    before = signal.signal(signal.SIGTERM, fail)  # if the client fails early, the test must end, but not the process
    errors, done = Errors(), Future[dict[str, Any]]()

    def run() -> None:
        try:
            done.set_result(use(errors))
        except BaseException as error:
            done.set_exception(error)

    monkeypatch.setattr(sys, "stderr", errors)
    try:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        status = main(["serve", "--port", "0", "--max-batch", "2"])
        errors.end()
        seen = done.result(timeout=300)
        assert status == 0 and signal.getsignal(signal.SIGTERM) is fail
    finally:
        errors.end()
        signal.signal(signal.SIGTERM, before)
    assert seen["early"] in (503, 200) and seen["ready"] == 200
    assert seen["answer"]["usage"]["completion_tokens"] == 3
    assert errors.getvalue().endswith("share4v: ended\n")
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert records[-1]["path"] == "/v1/chat/completions" and records[-1]["completion_tokens"] == 3


# Runs share4v with schemas whose compilation does not end by itself. What the server does after the requests that wait
# have their answers would take more time than the tests have: only the answers can end it in time.
ENDLESS_SCHEMAS = """
import sys
from mindone.models.share4v.generation import grammar_trial
from mindone.pipelines.image_to_text.serve import server, service
from mindone_share4v.cli import main

grammar_trial._PROGRAM = "import time; time.sleep(3600)"
grammar_trial._CLOCK_ALLOWANCE = 3600.0
service._SCHEMA_TURNS = 1000
server._END_SECONDS = server._FORCED_SECONDS = 3600.0
sys.exit(main())
"""


@contextmanager
def server_process(*flags: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server in a process of its own, with `ENDLESS_SCHEMAS`, and a client for it."""
    command = [sys.executable, "-c", ENDLESS_SCHEMAS, "serve", "--port", "0", "--no-access-log", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r"listening on (\S+);", process.stderr.readline())
        assert found and process.stderr.readline().startswith("share4v: ready: ")
        with httpx.Client(base_url=found[1], trust_env=False, timeout=300) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def unfinished(port: int | None) -> socket.socket:
    """A connection on which a request has begun, of whose body nothing comes."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=300)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n")
    return connection


def until(condition: Any) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("signals", [1, 2])
def test_what_waits_when_the_server_ends_gets_its_answer(signals: int) -> None:
    """Requests that wait for their schemas: at the end of the time to drain, or at the second signal before it."""
    with server_process("--max-drain-seconds", "0.2" if signals == 1 else "3600") as (process, client):

        def ask(number: int) -> httpx.Response:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": number}}}
            body = {"messages": [{"role": "user", "content": "Hello"}], "response_format": form}
            return client.post("/v1/chat/completions", json=body)

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(4)]  # two are compiled, two wait for their turn
            slow = unfinished(client.base_url.port)
            until(lambda: re.search(r"^share4v:answers_admitted\S* 5", client.get("/metrics").text, re.MULTILINE))
            for number in range(signals):
                process.send_signal(signal.SIGTERM)
                if number == 0 and signals == 2:
                    until(lambda: client.get("/health").json().get("error", {}).get("code") == "draining")
            answers = [(one.result().status_code, one.result().text) for one in asked]
            with slow, slow.makefile("rb") as file:
                head, _, body = file.read().partition(b"\r\n\r\n")
                answers.append((int(head.split()[1]), body.decode()))
        client.close()
        assert process.wait(300) == 0
    for status, text in answers:
        assert status == 503 and json.loads(text)["error"]["code"] == "draining", (status, text)


@pytest.mark.parametrize(("path", "mode"), [("/dev/full", "w"), ("/dev/null", "r")])
def test_an_access_log_that_cannot_be_written_is_one_warning(
    path: str, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, and with a standard output that was closed: requests are answered all the same."""
    log = AccessLog()
    with suppress(OSError), Path(path).open(mode) as broken:  # closing it may fail, too
        monkeypatch.setattr(sys, "stdout", broken)
        for number in range(3):
            log.write({"number": number})
    monkeypatch.undo()
    assert capsys.readouterr().err.count("share4v: warning: the access log cannot be written (") == 1
    log.write({"number": 3})
    assert json.loads(capsys.readouterr().out) == {"number": 3}


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
        (["--api-key", "one", "--allowed-host", "captions.example"], "--allowed-host has no effect with a key"),
        (["--allowed-host", "captions.example:80"], "--allowed-host must be names without a port"),
        (["--model", "no-such-model", "--port", "0"], "no-such-model"),
    ],
)
def test_errors_in_the_command(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_base_and_its_adapters_are_told_apart() -> None:
    from mindone_share4v.cli import build_parser
    from mindone_share4v.commands.serve import server_options

    flags = ["--model", "/models/my-7b/", "--adapter", "/loras/birds:0.5", "--adapter", "owner/cats"]
    options = server_options(build_parser().parse_args(["serve", *flags, "--served-name", "mine"]))
    assert (options.model_name, options.base_model, options.adapters) == ("mine", "my-7b", ("birds:0.5", "cats"))
