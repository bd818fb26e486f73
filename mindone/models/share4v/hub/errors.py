"""Errors of finding and downloading checkpoints."""

from __future__ import annotations


class HubError(OSError):
    """A checkpoint could not be found or downloaded; the message says what was tried."""


class NoSpaceError(HubError):
    """The disk has less free space than a download needs."""
