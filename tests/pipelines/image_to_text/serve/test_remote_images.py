"""Downloads of images: only from allowed hosts with public addresses, after every redirect, within limits."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from helpers.programs import find_program, run_program

from mindone.pipelines.image_to_text.remote_files import Target, is_public
from mindone.pipelines.image_to_text.serve.errors import ApiError
from mindone.pipelines.image_to_text.serve.options import Limits
from mindone.pipelines.image_to_text.serve.remote_images import ImageDownloader

BODY = b"picture" * 100


class Site(BaseHTTPRequestHandler):
    """/ok answers, /loop and /to/URL redirect, /large and /short break promises, /slow sends a byte now and then."""

    def do_GET(self) -> None:
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[len("/to/") :])
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", "5000")  # more than the limit, which is reached after 50 s
            self.end_headers()
            while not self.server.ends.wait(0.05):  # type: ignore[attr-defined]
                self.wfile.write(b"x")
        else:
            body = {"/large": b"x" * 5000}.get(self.path, BODY)
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", str(len(body) + 9 * (self.path == "/short")))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Run the site inside the `with` block, and yield its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.ends = threading.Event()  # type: ignore[attr-defined]
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server.server_port
        finally:
            server.ends.set()  # type: ignore[attr-defined]
            server.shutdown()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with site() as found:
        yield found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new key and its self-signed certificate for pictures.example, in one file."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subject = ("-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example")
    openssl = find_program(("openssl",), "openssl")
    run_program(openssl, "req", "-x509", *key, *subject, "-days", "2", "-keyout", f"{path}.key", "-out", path)
    path.write_text(
        path.read_text(encoding="ascii") + Path(f"{path}.key").read_text(encoding="ascii"), encoding="ascii"
    )
    return path


@pytest.fixture
def tls_port(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The site over TLS, whose certificate the downloader trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with site(context) as found:
        yield found


NAMES = {"pictures.example": "127.0.0.1", "evil.example": "127.0.0.1", "inner.example": "10.0.0.1"}


def downloader(hosts: tuple[str, ...] = ("*.example",), seconds: float = 60.0) -> ImageDownloader:
    """127.0.0.1 is public here, because the test's server is there; other addresses are what they are."""
    return ImageDownloader(
        hosts,
        Limits(url_bytes=1000, url_seconds=seconds),
        resolve=lambda host, port: [NAMES.get(host, host)],
        is_public=lambda address: str(address) == "127.0.0.1" or is_public(address),
    )


def reason(url: str, made: ImageDownloader | None = None) -> str:
    with pytest.raises(ApiError) as found:
        (made or downloader()).fetch(url, "image")
    assert found.value.status == 400 and found.value.param == "image"
    return found.value.message


def test_a_download(port: int) -> None:
    assert downloader().fetch(f"http://pictures.example:{port}/ok", "image") == BODY
    assert downloader().fetch(f"http://pictures.example:{port}/to//ok", "image") == BODY  # relative to the host


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
        ),
        *(
            "::1",
            "fe80::1",
            "fd00::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "fec0::1",
            "feff::1",
        ),
        *("240.0.0.1", "255.255.255.255", "ff02::1", "::"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(ip_address(address))


def test_one_address_of_several_that_is_not_public_refuses_a_host() -> None:
    made = ImageDownloader(("*",), Limits(), resolve=lambda host, port: ["93.184.216.34", "10.0.0.1"])
    assert "an address that is not public" in reason("http://pictures.example/a.png", made)


def test_cve_2025_6242_hosts_that_are_not_allowed(port: int) -> None:
    assert "not one of those" in reason(f"http://other.test:{port}/ok")
    assert "not one of those" in reason(f"http://example:{port}/ok")  # *.example are its subdomains
    assert "not one of those" in reason(f"http://notexample:{port}/ok")
    assert "not public" in reason("http://inner.example/ok")


def test_cve_2026_24779_urls_that_parsers_read_differently(port: int) -> None:
    for url in (
        f"http://pictures.example\\@evil.test:{port}/ok",
        f"http://evil.test\\.pictures.example:{port}/ok",
        f"http://pictures.example:{port}/a b",
        f"http://pictures.example:{port}/\n",
        f"http://pictures.ex\u0430mple:{port}/ok",
    ):
        assert "visible ASCII characters without backslashes" in reason(url)
    assert "user name" in reason(f"http://pictures.example@evil.example:{port}/ok")
    assert "malformed" in reason("http://pictures.example:99999/ok")
    assert "user name" in reason("http:///ok")
    assert "malformed" in reason("http://[::1/ok")


def test_vllm_57157_lmdeploy_4761_redirects_are_checked(port: int) -> None:
    base = f"http://pictures.example:{port}/to"
    assert "not one of those" in reason(f"{base}/http://169.254.169.254/latest/meta-data")
    assert "not public" in reason(f"{base}/http://169.254.169.254/latest", downloader(("*",)))
    assert "not public" in reason(f"{base}/http://inner.example/x")
    assert "http:// or https://" in reason(f"{base}/file:///etc/passwd")
    assert "more than 3 redirects" in reason(base + f"/{base}" * 3 + "//ok")
    assert downloader().fetch(base + f"/{base}" * 2 + "//ok", "image") == BODY


def test_dns_rebinding_cannot_change_the_address(port: int) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])  # the second answer would be that of the attacker
    made = ImageDownloader(
        ("*",), Limits(), resolve=lambda host, port: next(answers), is_public=lambda address: address.is_loopback
    )
    assert made.fetch(f"http://evil.example:{port}/ok", "image") == BODY
    assert next(answers) == ["10.0.0.1"]  # it was asked for once


def test_limits_of_size_and_time(port: int) -> None:
    base = f"http://pictures.example:{port}"
    assert "more than 1,000 bytes" in reason(f"{base}/large")
    assert "failed or took too long" in reason(f"{base}/short")
    assert "did not answer with an image" in reason(f"{base}/missing")
    assert "failed or took too long" in reason(f"{base}/slow", downloader(seconds=0.3))


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://pictures.example:{silent.getsockname()[1]}/ok"
        assert "failed or took too long" in reason(url, downloader(seconds=0.2))


def test_downloads_over_tls(tls_port: int) -> None:
    assert downloader().fetch(f"https://pictures.example:{tls_port}/ok", "image") == BODY
    # The certificate is that of another host, or of nobody who is trusted.
    assert "failed or took too long" in reason(f"https://evil.example:{tls_port}/ok")


def test_a_tls_server_that_sends_a_byte_now_and_then(tls_port: int) -> None:
    """`wrap_socket` detaches the plain socket: a timer that holds that one ends nothing."""
    assert "failed or took too long" in reason(f"https://pictures.example:{tls_port}/slow", downloader(seconds=0.5))


def test_a_server_that_does_not_finish_its_tls_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://pictures.example:{silent.getsockname()[1]}/ok"
        assert "failed or took too long" in reason(url, downloader(seconds=0.2))


@pytest.mark.parametrize(("scheme", "default"), [("http", 80), ("https", 443)])
def test_the_host_header_leaves_the_default_port_out(scheme: str, default: int) -> None:
    """Some sites answer `Host: example.org:443` with a redirect or an error."""
    made = downloader()
    for port, shown in ((default, "pictures.example"), (8000, "pictures.example:8000")):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.settimeout(60)
            theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            made._fetcher._exchange(ours, Target(scheme, "pictures.example", port, "/"), float("inf"))
            assert f"Host: {shown}\r\n".encode() in theirs.recv(10_000)
