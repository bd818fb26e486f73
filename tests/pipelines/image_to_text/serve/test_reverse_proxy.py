"""Two servers behind nginx, with the configuration of docs/serving.md: streams, cancellation and a server that ends."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.paths import ROOT
from helpers.ports import free_port
from helpers.programs import find_program
from helpers.serving import Live, Steps, chat, serving, wait_until

PATH = "/v1/chat/completions"


def configuration(folder: Path, port: int, servers: list[Live]) -> str:
    """The block of the documentation in a complete file, with these ports."""
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    block = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)[0]
    for documented, actual in (
        ("8000", port),
        *zip(("8001", "8002"), (one.url.rpartition(":")[2] for one in servers), strict=True),
    ):
        assert re.search(rf"[ :]{documented}\b", block)
        block = re.sub(rf"([ :]){documented}\b", rf"\g<1>{actual}", block)
    places = "".join(f"{kind}_temp_path {folder};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"daemon off; pid {folder}/pid; error_log stderr; events {{}} http {{ access_log off;\n{places}{block}}}"


@pytest.fixture
def proxied(tiny: Any, tmp_path: Path) -> Iterator[tuple[str, list[Live]]]:
    """The address of nginx, and the servers behind it."""
    program = find_program(("nginx", "/usr/sbin/nginx"), "nginx-light")
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(tiny, max_batch=2)) for _ in range(2)]
        port = free_port()
        (tmp_path / "nginx.conf").write_text(configuration(tmp_path, port, servers))
        process = subprocess.Popen([program, "-p", str(tmp_path), "-c", "nginx.conf", "-e", "stderr"])
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: process.poll() is not None or answers(address))
            assert process.poll() is None
            yield address, servers
        finally:
            process.terminate()
            process.wait(300)


def answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def busy(servers: list[Live]) -> list[int]:
    """Number of answers that are queued or running in each server."""
    return [one.service.admission.active for one in servers]


def test_two_servers_behind_nginx(
    proxied: tuple[str, list[Live]], scene: str, ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, servers = proxied
    with httpx.Client(base_url=address, timeout=300, trust_env=False) as client, ThreadPoolExecutor(4) as pool:
        wanted = ask("Describe this image")
        body = chat("Describe this image", scene)
        found = list(pool.map(lambda _: client.post(PATH, json=body), range(8)))
        assert {one.json()["choices"][0]["message"]["content"] for one in found} == {wanted}

        # Pieces arrive while the answer is being generated: the models stop after 20 steps.
        steps = [Steps(one, monkeypatch) for one in servers]
        for one in steps:
            one.allow(20)
        long = chat("Hello", max_tokens=200, ignore_eos=True, stream=True)
        with client.stream("POST", PATH, json=long) as stream:
            lines = stream.iter_lines()  # kept: the end of the iterator would close the connection
            assert any('"content":"' in line for line in lines)
            assert sorted(busy(servers)) == [0, 1]
            used = busy(servers).index(1)
            # The next request goes to the server with fewer connections.
            with client.stream("POST", PATH, json=long) as other:
                other_lines = other.iter_lines()
                assert any('"content":"' in line for line in other_lines)
                assert busy(servers) == [1, 1]
        wait_until(lambda: busy(servers) == [0, 0])  # nginx has told the servers that the clients left
        assert sum(one.metric("share4v:requests_cancelled_total") for one in servers) == 2
        for one in steps:
            one.run()

        # A server that is ending refuses requests; nginx sends them to the other one.
        servers[used].service.drain()
        assert {client.post(PATH, json=chat("Hello", max_tokens=2)).status_code for _ in range(4)} == {200}
