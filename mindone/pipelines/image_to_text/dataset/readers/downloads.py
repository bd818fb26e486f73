"""Images at URLs of a table or a list: retries, waiting when a server asks for it, opt-outs, and limits."""

from __future__ import annotations

import http.client
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

from mindone.models.share4v.display import redacted

from ...remote_files import Body, Fetched, Fetcher, FetchError, PrivateAddressError, RefusedError, is_public
from ...retry_after import retry_after
from .base import ItemError
from .read_pool import waiting_for_server

# The directives of X-Robots-Tag that img2dataset honours by default.
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
MAX_REDIRECTS = 5
MAX_ATTEMPTS = 20
LONGEST_WAIT = 120.0  # seconds; a server that asks to wait longer is not waited for
BACKOFF_SECONDS = 1.0  # before the second attempt; each further one doubles it
_RETRIED = (408, 425, 429, 500, 502, 503, 504)
# Bytes of an image in memory while it is downloaded, or waits until it can be decoded; those that follow are in a
# temporary file. So however large url_bytes is, 64 downloads at a time (read_pool.MAX_WAITING) have 256 MiB in memory,
# and one image for each working thread: 4 MiB while it is downloaded, all of it from `Body.take` on. None waits until
# another one has ended, as it would for a part of a common budget. The files take up to url_bytes each, of a disk or,
# if the directory of temporary files is a tmpfs, of memory again.
IN_MEMORY_BYTES = 4 * 2**20
_BUSY = (429, 503)  # the whole host is, not only this URL
_MAX_IDLE_HOSTS = 1000


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """How the images at URLs of tables and lists are downloaded.

    Attributes:
        url_attempts: maximum number of requests for an image.
        url_seconds: maximum duration of one of them, redirects included.
        url_bytes: maximum size of an image. While images are downloaded, each has at most 4 MiB in memory; the rest is
            in a temporary file. 64 images, and one for each worker, can be there at a time: 16 GiB and more by default.
            If /tmp is a tmpfs, these are in memory: let TMPDIR name a directory on a disk.
        url_per_host: maximum number of requests to one host at a time, in each process.
        url_private: whether hosts may have addresses that are not public, such as those of a company's network.
        user_agent_token: name of the crawler: it is part of the header User-Agent, and an X-Robots-Tag for another name
            does not concern it.
        disallowed_header_directives: directives of X-Robots-Tag with which an image is not used; () for none.

    Raises:
        ValueError: a value is out of range, or the token has characters that a name cannot have.

    Example:
        >>> from mindone.pipelines.image_to_text import DownloadOptions
        >>> DownloadOptions(user_agent_token="mybot").user_agent
        'Mozilla/5.0 (compatible; mybot)'
    """

    url_attempts: int = 3
    url_seconds: float = 120.0
    url_bytes: int = 256 * 2**20
    url_per_host: int = 4
    url_private: bool = False
    user_agent_token: str = "mindone-share4v"
    disallowed_header_directives: tuple[str, ...] = DIRECTIVES

    def __post_init__(self) -> None:
        for name in ("url_attempts", "url_bytes", "url_per_host"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        if self.url_attempts > MAX_ATTEMPTS:
            raise ValueError(f"url_attempts must be at most {MAX_ATTEMPTS}, got {self.url_attempts}")
        if not self.url_seconds > 0:
            raise ValueError(f"url_seconds must be above 0, got {self.url_seconds!r}")
        token = self.user_agent_token
        if not token or not all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in token):
            raise ValueError(f"user_agent_token must consist of letters, digits, '-', '_' and '.', got {token!r}")

    @property
    def user_agent(self) -> str:
        """The header User-Agent, in the form that img2dataset uses."""
        return f"Mozilla/5.0 (compatible; {self.user_agent_token})"


DEFAULT_DOWNLOADS = DownloadOptions()


class HostLimits:
    """Limits how many requests a host gets at a time, and none before the time that it named.

    Args:
        maximum: number of requests at a time.
        clock: returns monotonic seconds.
    """

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum, self._clock = maximum, clock
        self._running: dict[str, int] = {}
        self._paused_until: dict[str, float] = {}
        self._changed = threading.Condition()

    @contextmanager
    def request(self, host: str) -> Iterator[None]:
        """Wait until a request to the host may start; it ends with the block."""
        with self._changed:
            while True:
                wait = self._paused_until.get(host, 0.0) - self._clock()
                is_full = self._running.get(host, 0) >= self._maximum
                if wait <= 0 and not is_full:
                    break
                self._changed.wait(wait if wait > 0 else None)
            self._running[host] = self._running.get(host, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._running[host] -= 1
                if not self._running[host]:
                    del self._running[host]
                self._forget_idle_hosts()
                self._changed.notify_all()

    def pause(self, host: str, seconds: float) -> None:
        """Start no further request to a host for so long."""
        with self._changed:
            self._paused_until[host] = max(self._paused_until.get(host, 0.0), self._clock() + seconds)

    def _forget_idle_hosts(self) -> None:
        if len(self._paused_until) > _MAX_IDLE_HOSTS:
            now = self._clock()
            self._paused_until = {host: until for host, until in self._paused_until.items() if until > now}


class ImageDownloads:
    """Downloads images for all threads of a process.

    Args:
        options: limits and opt-outs.
        fetch: sends one request; by default a Fetcher's, or through the proxy that the environment names.
        sleep: waits for so many seconds.
        jitter: returns a number in [0, 1).
    """

    def __init__(
        self,
        options: DownloadOptions,
        fetch: Callable[[str], Fetched] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._options = options
        self._fetcher = Fetcher(
            max_bytes=options.url_bytes,
            in_memory=IN_MEMORY_BYTES,
            max_redirects=MAX_REDIRECTS,
            user_agent=options.user_agent,
            is_public=(lambda address: True) if options.url_private else is_public,
            normalize=_as_ascii,
            users=True,
            tls=_trusted,
        )
        self._fetch = fetch or self._fetch_directly_or_by_proxy
        self._sleep, self._jitter = sleep, jitter
        self._hosts = HostLimits(options.url_per_host)

    def read(self, url: str, log: dict[str, Any]) -> bytes:
        """Return the image at a URL.

        Args:
            url: http or https.
            log: gets `attempts`, the number of requests, and `status`, that of the last response, if there was one.

        Raises:
            ItemError: it cannot be downloaded, or its server asks not to use it; the message gives the reason.
        """
        with waiting_for_server():
            body = self._body(url, log)
        return body.take()  # now that this thread is one of the few that may work

    def _body(self, url: str, log: dict[str, Any]) -> Body:
        host = (urlsplit(url).hostname or "") if "[" not in url else ""
        attempt = 0
        while True:
            attempt += 1
            log["attempts"] = attempt
            found, wait = self._attempt(url, host, log)
            if isinstance(found, Body):
                return found
            if wait is None or attempt == self._options.url_attempts:
                tried = f" after {attempt} attempts" if attempt > 1 else ""
                raise ItemError(f"the download failed{tried}: {found}")
            self._sleep(wait)

    def _attempt(self, url: str, host: str, log: dict[str, Any]) -> tuple[Body | str, float | None]:
        """Return the image; or what went wrong, with the seconds until the next attempt, or None if it is of no use.

        A busy host is paused, so that the next attempt waits with all other requests to it, and not here.
        """
        backoff = BACKOFF_SECONDS * 2 ** (log["attempts"] - 1) * (0.5 + self._jitter() / 2)
        try:
            with self._hosts.request(host):
                fetched = self._fetch(url)
                log["status"] = fetched.status
                wait = self._wait_of(fetched, backoff)
                if fetched.status in _BUSY and wait is not None:
                    self._hosts.pause(host, wait)
                    return _status_text(fetched.status), 0.0
        except PrivateAddressError as error:
            return f"{error}: allow such addresses with url_private (--url-private) if you trust the list", None
        except (RefusedError, FetchError, ssl.SSLCertVerificationError) as error:
            return redacted(str(error)), None
        except socket.gaierror as error:
            return f"its host was not found ({error.strerror})", backoff if error.errno == socket.EAI_AGAIN else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            return redacted(str(error)) or type(error).__name__, backoff
        if fetched.body is None:
            if fetched.status in _RETRIED and wait is None:
                return f"{_status_text(fetched.status)} and asks to wait longer than {LONGEST_WAIT:.0f} s", None
            return _status_text(fetched.status), wait if fetched.status in _RETRIED else None
        directive = self._opt_out(fetched)
        if directive is not None:
            fetched.body.close()
            raise ItemError(
                f"its server asks not to use it (X-Robots-Tag: {directive}): leave it out, or change "
                "disallowed_header_directives (--disallowed-header-directives) if you have its owner's permission"
            )
        return fetched.body, None

    def _wait_of(self, fetched: Fetched, backoff: float) -> float | None:
        """Return the seconds until the next attempt, or None if the server asks for too long.

        A server that does not name a time is asked again after `backoff` seconds.
        """
        if fetched.status not in _RETRIED:
            return 0.0
        asked = retry_after(fetched.header)
        if asked is None:
            return backoff
        return asked if asked <= LONGEST_WAIT else None

    def _opt_out(self, fetched: Fetched) -> str | None:
        """Return the first directive that forbids the use, as img2dataset reads the header."""
        for name, value in fetched.headers:
            if name != "x-robots-tag":
                continue
            agent, colon, rest = value.partition(":")
            if colon and agent.strip().lower() != self._options.user_agent_token.lower():
                continue
            for directive in (rest if colon else value).lower().split(","):
                if directive.strip() in self._options.disallowed_header_directives:
                    return directive.strip()
        return None

    def _fetch_directly_or_by_proxy(self, url: str) -> Fetched:
        parts = urlsplit(url)
        if parts.scheme.lower() in getproxies() and not proxy_bypass(parts.hostname or ""):
            return self._fetch_by_proxy(url)
        return self._fetcher.fetch(url, self._options.url_seconds)

    def _fetch_by_proxy(self, url: str) -> Fetched:
        """Send a request through the proxy of the environment, which resolves names and decides what may be reached."""
        import requests

        from mindone.models.share4v.hub.transfer import Pace, TooSlowError, open_url

        headers = {"User-Agent": self._options.user_agent, "Accept": "image/*"}
        try:
            with open_url(url, Pace(self._options.url_seconds), headers) as transfer:
                response = transfer.response
                found = tuple((name.lower(), value) for name, value in response.headers.items())
                if response.status_code != 200:
                    return Fetched(response.status_code, found)
                body = Body(IN_MEMORY_BYTES, self._options.url_bytes).write(transfer.pieces())
                return Fetched(response.status_code, found, body)
        except (TooSlowError, requests.RequestException) as error:
            raise OSError(redacted(str(error))) from error


def _status_text(status: int) -> str:
    try:
        return f"the server answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"the server answered {status}"


def _as_ascii(url: str) -> str:
    """Return a URL with other characters than ASCII encoded, as browsers send it.

    Raises:
        ValueError: it is malformed.
    """
    import requests

    prepared = requests.Request("GET", url).prepare().url
    if prepared is None:
        raise ValueError("no URL")
    user = urlsplit(url).netloc.rpartition("@")[0]  # which requests turns into a header
    if not user or "@" in urlsplit(prepared).netloc:
        return prepared
    scheme, mark, rest = prepared.partition("://")
    return f"{scheme}{mark}{quote(user, safe=':%')}@{rest}"


def _trusted() -> ssl.SSLContext:
    """Return settings of TLS that trust what the system and `requests` trust."""
    from requests.utils import DEFAULT_CA_BUNDLE_PATH

    context = ssl.create_default_context()
    context.load_verify_locations(os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH)
    return context


def no_downloads(url: str, log: Mapping[str, Any]) -> bytes:
    """In place of `ImageDownloads.read` where nothing may be downloaded."""
    raise ItemError("it is a URL, and nothing is downloaded here")
