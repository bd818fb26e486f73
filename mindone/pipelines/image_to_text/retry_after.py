"""Retry-After and its relatives: how long a server asks its clients to wait."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a response asks to wait before the next request, or None if it does not say.

    `Retry-After` is a number of seconds or an HTTP date (RFC 9110). A date is compared with the response's own `Date`,
    because the clocks of two machines may differ. `retry-after-ms`, in milliseconds, is more exact and goes first.

    Args:
        headers: of the response; names in any case if the mapping allows that, else in lower case.
        now: seconds since 1970; by default the time of the `Date` header, or of this machine's clock.

    Example:
        >>> from mindone.pipelines.image_to_text.retry_after import retry_after
        >>> retry_after({"retry-after": "1.5"}), retry_after({})
        (1.5, None)
        >>> retry_after({"retry-after": "Thu, 01 Jan 2026 00:00:07 GMT", "date": "Thu, 01 Jan 2026 00:00:00 GMT"})
        7.0
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    until = _date(text)
    if until is None:
        return None
    if now is None:
        now = _date(headers.get("date")) or time.time()
    return max(0.0, until - now)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _date(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
