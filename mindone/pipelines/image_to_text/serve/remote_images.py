"""Downloads of images that a request names by URL, from the hosts that the server's options allow."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Sequence

from ..remote_files import Address, Fetcher, FetchError, RefusedError, is_public, resolve
from .cancellation import cancellable
from .errors import ApiError, invalid
from .options import Limits


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
        self._seconds = limits.url_seconds
        self._fetcher = Fetcher(
            max_bytes=limits.url_bytes,
            max_redirects=limits.url_redirects,
            check_host=self._check_host,
            resolve=resolve,
            is_public=is_public,
            ending=cancellable,
        )

    def fetch(self, url: str, param: str) -> bytes:
        """Return the body that a URL answers with.

        Raises:
            ApiError: (400) the URL is malformed or not allowed, or the download failed. The message does not say what
                the other server answered.
        """
        try:
            fetched = self._fetcher.fetch(url, self._seconds)
        except RefusedError as error:
            raise _error(param, str(error), "url_not_allowed") from error
        except FetchError as error:
            raise _error(param, str(error), "download_failed") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _error(param, "the download failed or took too long", "download_failed") from error
        if fetched.body is None:
            raise _error(param, "its server did not answer with an image", "download_failed")
        return fetched.body.take()

    def _check_host(self, host: str) -> None:
        for pattern in self._hosts:
            if pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:])):
                return
        raise RefusedError("its host is not one of those that this server may download from")


def _error(param: str, reason: str, code: str) -> ApiError:
    return invalid(f"{param} cannot be downloaded: {reason}; send the image as a data URI", param, code)
