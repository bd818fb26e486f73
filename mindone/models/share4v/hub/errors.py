"""What can go wrong on the way to a checkpoint."""

from __future__ import annotations


class HubError(OSError):
    """A checkpoint could not be had; the message says what was tried."""


class NoSpaceError(HubError):
    """The disk has less room than a download needs."""
