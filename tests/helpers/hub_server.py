"""A stand-in for the Hugging Face hub and for a mirror, on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40
LARGE = (".safetensors", ".bin", ".gguf")  # files of which the hub states the hash


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`: path -> bytes, or a status; counts what it is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)  # type: ignore[attr-defined]
        found = self.server.files.get(path, 404)  # type: ignore[attr-defined]
        status, body = (200, found) if isinstance(found, bytes) else (found, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 200:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    """Attributes:
    files: path -> bytes, or a status.
    asked: the paths of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | int] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add_repository(
        self, repo: str, files: Mapping[str, bytes], revision: str | None = None, **wrong: object
    ) -> None:
        """Publish a repository; `wrong` replaces what is stated of large files."""
        siblings = []
        for name, body in files.items():
            lfs = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 1, **wrong}
            siblings.append({"rfilename": name, "size": len(body), **({"lfs": lfs} if name.endswith(LARGE) else {})})
            self.files[f"/{repo}/resolve/{COMMIT}/{name}"] = body
        info = json.dumps({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}).encode()
        self.files[f"/api/models/{repo}/revision/{revision or 'main'}"] = info
        if revision is None:
            self.files[f"/api/models/{repo}"] = info


@contextmanager
def serving() -> Iterator[HubServer]:
    """Run a server in a thread."""
    httpd = HubServer()
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield httpd
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
