"""Downloads of images that a request names by URL, from allowed hosts with public addresses only.

Without checks, a client could make the server connect to what only the server can reach: cloud metadata, routers,
services on its own machine. Therefore a URL is parsed once; its host must be allowed; the host is resolved once, every
address must be public, and the connection goes to one of those addresses. A redirect is a new URL with the same checks.
Proxies of the environment are not used, because they would resolve the name again.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from .errors import ApiError, invalid
from .options import Limits

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_UNSAFE = re.compile(r"[^\x21-\x7e]|\\")  # parsers disagree on what these mean
_REDIRECTS = (301, 302, 303, 307, 308)
Address = IPv4Address | IPv6Address


class Target(NamedTuple):
    """What a URL names, parsed once and for all."""

    scheme: str
    host: str
    port: int
    path: str


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


class ImageDownloader:
    """Downloads images.

    Args:
        hosts: names that are allowed: "example.org", "*.example.org" for its subdomains, or "*" for all.
        limits: bytes, seconds and redirects.
        resolve: returns the addresses of (host, port).
        is_public: whether a connection to an address is allowed.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        limits: Limits,
        resolve: Callable[[str, int], list[str]] = resolve,
        is_public: Callable[[Address], bool] = is_public,
    ) -> None:
        self._hosts = [host.lower().rstrip(".") for host in hosts]
        self._limits = limits
        self._resolve = resolve
        self._is_public = is_public
        self._context = ssl.create_default_context()

    def fetch(self, url: str, param: str) -> bytes:
        """Return the body that a URL answers with.

        Raises:
            ApiError: (400) the URL is malformed or not allowed, or the download failed. The message does not say what
                the other server answered.
        """
        end = time.monotonic() + self._limits.url_seconds
        for _ in range(self._limits.url_redirects + 1):
            target = self._parse(url, param)
            try:
                body, location = self._get(target, self._address(target, param), end, param)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _failed(param, "the download failed or took too long") from error
            if location is None:
                return body
            url = urljoin(url, location)
        raise _failed(param, f"more than {self._limits.url_redirects} redirects")

    def _parse(self, url: str, param: str) -> Target:
        if _UNSAFE.search(url) or len(url) > 4096:
            raise _refused(param, "a URL must be at most 4096 visible ASCII characters without backslashes")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _refused(param, "the URL is malformed") from error
        if parts.scheme not in ("http", "https"):
            raise _refused(param, "the URL must begin with http:// or https://")
        if "@" in parts.netloc or not _HOST.fullmatch(host):
            raise _refused(param, "the URL must name a host, without user name and password")
        host = host.lower().rstrip(".")
        if not self._is_allowed(host):
            raise _refused(param, "its host is not one of those that this server may download from")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path)

    def _is_allowed(self, host: str) -> bool:
        return any(
            pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self._hosts
        )

    def _address(self, target: Target, param: str) -> str:
        """Resolve the host and return the address to connect to; one that is not public refuses the host."""
        addresses = self._resolve(target.host, target.port)
        if not addresses or not all(self._is_public(ip_address(one.partition("%")[0])) for one in addresses):
            raise _refused(param, "its host has an address that is not public")
        return addresses[0]

    def _get(self, target: Target, address: str, end: float, param: str) -> tuple[bytes, str | None]:
        """Send one request to `address`; return the body, or the location of a redirect."""
        plain = socket.create_connection((address, target.port), timeout=max(end - time.monotonic(), 0.001))
        # A socket's timeout applies to each read, so a server that sends a byte now and then would never exceed it. The
        # timer shuts the connection down through a duplicate of the socket: `wrap_socket` detaches the original.
        guard = plain.dup()
        timer = threading.Timer(max(end - time.monotonic(), 0), _shut_down, [guard])
        timer.daemon = True
        timer.start()
        connection = plain
        try:
            if target.scheme == "https":
                connection = self._context.wrap_socket(plain, server_hostname=target.host)
            return self._exchange(connection, target, end, param)
        finally:
            timer.cancel()
            timer.join()  # it must not shut down a descriptor that another connection has got meanwhile
            guard.close()
            connection.close()

    def _exchange(self, connection: socket.socket, target: Target, end: float, param: str) -> tuple[bytes, str | None]:
        """Send a request over an open connection; return as `_get`."""
        # The class decides which port the Host header leaves out; it connects to nothing, since it has a socket.
        kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
        request = kind(target.host, target.port)
        request.sock = connection
        request.request("GET", target.path, headers={"User-Agent": "mindone-share4v", "Accept": "image/*"})
        response = request.getresponse()
        if response.status in _REDIRECTS:
            return b"", response.getheader("Location") or ""
        if response.status != 200:
            raise _failed(param, "its server did not answer with an image")
        limit = self._limits.url_bytes
        body = response.read(limit + 1)
        if len(body) > limit:
            raise _failed(param, f"the image has more than {limit:,} bytes")
        if response.length or time.monotonic() >= end:  # the connection ended before the body did
            raise _failed(param, "the download failed or took too long")
        return body, None


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _refused(param: str, reason: str) -> ApiError:
    return invalid(f"{param} cannot be downloaded: {reason}; send the image as a data URI", param, "url_not_allowed")


def _failed(param: str, reason: str) -> ApiError:
    return invalid(f"{param} cannot be downloaded: {reason}; send the image as a data URI", param, "download_failed")
