"""Downloads of URLs that somebody else chose, from public addresses only.

Without checks, whoever writes a URL, or answers with a redirect, could make this machine connect to what only it can
reach: cloud metadata, routers, services on the machine itself. Therefore a URL is parsed once; its host must be
allowed; the host is resolved once, every address must be public, and the connection goes to one of those addresses. A
redirect is a new URL with the same checks. Proxies of the environment are not used, because they would resolve the name
again.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_UNSAFE = re.compile(r"[^\x21-\x7e]|\\")  # parsers disagree on what these mean
_PIECE = 2**18  # bytes of a body that are read at a time
_REDIRECTS = (301, 302, 303, 307, 308)
Address = IPv4Address | IPv6Address


class Target(NamedTuple):
    """What a URL names, parsed once and for all."""

    scheme: str
    host: str
    port: int
    path: str
    authorization: str | None = None


class RefusedError(ValueError):
    """A URL is malformed, or names what may not be reached."""


class PrivateAddressError(RefusedError):
    """A host has an address that is not public."""


class FetchError(OSError):
    """A download failed in a way that another attempt would not change; the message says nothing about the server."""


class StorageError(OSError):
    """A body cannot be stored; later it may, when other downloads have freed their space."""


class Body:
    """The body of a response, in memory up to a size, and in an unnamed temporary file from there on.

    Args:
        in_memory: maximum number of bytes in memory; None for all.
        max_bytes: size of the body.
    """

    def __init__(self, in_memory: int | None, max_bytes: int) -> None:
        self._file: IO[bytes] = io.BytesIO() if in_memory is None else SpooledTemporaryFile(in_memory)  # noqa: SIM115
        self._max_bytes = max_bytes

    def write(self, pieces: Iterable[bytes]) -> Body:
        """Append pieces, and return this body; it is closed if that fails.

        Raises:
            FetchError: it is too large.
            StorageError: the disk of temporary files is full.
        """
        size = self._file.tell()
        try:
            for piece in pieces:
                size += len(piece)
                if size > self._max_bytes:
                    raise FetchError(f"the image has more than {self._max_bytes:,} bytes")
                with _storing():
                    self._file.write(piece)
            with _storing():
                self._file.flush()
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Delete the file, without reading it."""
        with suppress(OSError):  # of what is still in a buffer, on a full disk
            self._file.close()

    def take(self) -> bytes:
        """Return all bytes, and delete the file."""
        with self._file as file:
            file.seek(0)
            return file.read()


@contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"it cannot be stored in the directory of temporary files ({error.strerror}): free some space there, or "
            "let TMPDIR name another directory"
        ) from error


@dataclass(frozen=True)
class Fetched:
    """The response to a URL, after redirects.

    Attributes:
        status: of the response.
        headers: values by name in lower case; several of the same name are several pairs.
        body: None unless the status is 200.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: Body | None = None

    @property
    def header(self) -> Mapping[str, str]:
        """The headers as a mapping; of several with one name, the last."""
        return dict(self.headers)


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet; an IPv4 address inside an IPv6 one is looked at too."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is not None and not is_public(inner):
            return False
        # 64:ff9b::/96 (NAT64) carries an IPv4 address in its last 32 bits.
        if int(address) >> 32 == 0x64FF9B << 64 and not is_public(IPv4Address(int(address) & 0xFFFFFFFF)):
            return False
        if address.is_site_local:  # fec0::/10, deprecated private addresses, which `is_global` counts as public
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def resolve(host: str, port: int) -> list[str]:
    """Return all addresses of a host."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Fetcher:
    """Downloads URLs.

    Args:
        max_bytes: size of a body.
        in_memory: number of bytes of a body in memory, behind which it is in a temporary file; None for all.
        max_redirects: number of redirects that are followed.
        user_agent: value of the header.
        accept: value of the header.
        check_host: raises RefusedError for a host, in lower case, that is not allowed.
        resolve: returns the addresses of (host, port).
        is_public: whether a connection to an address is allowed.
        normalize: turns a URL as people write it into ASCII; may raise ValueError.
        users: whether a URL may have a user name and a password; they go to its own host only.
        tls: makes the settings of TLS, when the first https URL is fetched.
        ending: given a function that ends a request, returns a context in which the request is sent.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        in_memory: int | None = None,
        max_redirects: int,
        user_agent: str = "mindone-share4v",
        accept: str = "image/*",
        check_host: Callable[[str], None] = lambda host: None,
        resolve: Callable[[str, int], list[str]] = resolve,
        is_public: Callable[[Address], bool] = is_public,
        normalize: Callable[[str], str] = lambda url: url,
        users: bool = False,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        ending: Callable[[Callable[[], None]], AbstractContextManager[None]] = lambda end: nullcontext(),
    ) -> None:
        self._new_body = lambda: Body(in_memory, max_bytes)
        self._max_redirects = max_redirects
        self._headers = {"User-Agent": user_agent, "Accept": accept}
        self._check_host, self._resolve, self._is_public = check_host, resolve, is_public
        self._normalize, self._users = normalize, users
        self._make_tls, self._ending = tls, ending
        self._lock = threading.Lock()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._make_tls()

    def fetch(self, url: str, seconds: float) -> Fetched:
        """Return the response to a URL, whatever its status.

        Args:
            url: http or https.
            seconds: within which everything must have happened, redirects too.

        Raises:
            RefusedError: the URL is malformed or not allowed, or a redirect is.
            FetchError: there are too many redirects, or the body is too large.
            StorageError: the disk of temporary files is full.
            OSError, http.client.HTTPException: the connection failed, broke or took too long.
        """
        end = time.monotonic() + seconds
        for _ in range(self._max_redirects + 1):
            target = self._parse(url)
            fetched = self._get(target, self._addresses(target), end)
            location = fetched.header.get("location") if fetched.status in _REDIRECTS else None
            if fetched.status not in _REDIRECTS:
                return fetched
            try:
                url = urljoin(url, location or "")
            except ValueError as error:
                raise RefusedError("a redirect leads to a malformed URL") from error
        raise FetchError(f"more than {self._max_redirects} redirects")

    def _parse(self, url: str) -> Target:
        try:
            url = self._normalize(url)
        except ValueError as error:
            raise RefusedError("the URL is malformed") from error
        if _UNSAFE.search(url) or len(url) > 4096:
            raise RefusedError("a URL must be at most 4096 visible ASCII characters without backslashes")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise RefusedError("the URL is malformed") from error
        if parts.scheme not in ("http", "https"):
            raise RefusedError("the URL must begin with http:// or https://")
        if ("@" in parts.netloc and not self._users) or not _HOST.fullmatch(host):
            raise RefusedError("the URL must name a host, without user name and password")
        host = host.lower().rstrip(".")
        self._check_host(host)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        user = parts.netloc.rpartition("@")[0]
        authorization = f"Basic {b64encode(unquote_to_bytes(user)).decode()}" if user else None
        return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, authorization)

    def _addresses(self, target: Target) -> list[str]:
        """Resolve the host and return the addresses to connect to; one that is not public refuses the host."""
        addresses = self._resolve(target.host, target.port)
        if not addresses or not all(self._is_public(ip_address(one.partition("%")[0])) for one in addresses):
            raise PrivateAddressError("its host has an address that is not public")
        return addresses

    def _get(self, target: Target, addresses: Sequence[str], end: float) -> Fetched:
        """Send one request to the first of `addresses` that accepts a connection."""
        with self._ending(_nothing):  # a connection attempt cannot be ended, but need not begin
            plain = _connected(addresses, target.port, end)
        # A socket's timeout applies to each read, so a server that sends a byte now and then would never exceed it. The
        # timer shuts the connection down through a duplicate of the socket: `wrap_socket` detaches the original.
        guard = plain.dup()
        timer = threading.Timer(max(end - time.monotonic(), 0), _shut_down, [guard])
        timer.daemon = True
        timer.start()
        connection = plain
        try:
            with self._ending(partial(_shut_down, guard)):
                if target.scheme == "https":
                    with self._lock:
                        tls = self._tls
                    connection = tls.wrap_socket(plain, server_hostname=target.host)
                return self._exchange(connection, target, end)
        finally:
            timer.cancel()
            timer.join()  # it must not shut down a descriptor that another connection has got meanwhile
            guard.close()
            connection.close()

    def _exchange(self, connection: socket.socket, target: Target, end: float) -> Fetched:
        """Send a request over an open connection."""
        # The class decides which port the Host header leaves out; it connects to nothing, since it has a socket.
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        request = kind(target.host, target.port)
        request.sock = connection
        authorization = {"Authorization": target.authorization} if target.authorization else {}
        request.request("GET", target.path, headers={**self._headers, **authorization})
        response = request.getresponse()
        headers = tuple((name.lower(), value) for name, value in response.getheaders())
        if response.status != 200:
            return Fetched(response.status, headers)
        body = self._new_body().write(iter(lambda: response.read(_PIECE), b""))
        if response.length or time.monotonic() >= end:
            body.close()
            raise OSError("the connection ended before the body did")
        return Fetched(response.status, headers, body)


def _connected(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """Connect to the first address that answers, as other clients do: a host may have one that is out of reach.

    Each gets an equal part of the time that is left, so that one that never answers leaves some for the next.
    """
    for left in range(len(addresses), 0, -1):
        seconds = max((end - time.monotonic()) / left, 0.001)
        try:
            connection = socket.create_connection((addresses[-left], port), timeout=seconds)
        except OSError:
            if left == 1:
                raise
        else:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            return connection
    raise OSError("the host has no address")


def _nothing() -> None:
    pass


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
