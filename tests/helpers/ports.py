"""A port for a program that cannot choose one itself."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_000


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses, and that the system gives to nobody who asks for any port.

    The program binds it later: a port of the system's own range could be that of another test's connection by then.
    """
    highest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]) - 1
    while True:
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", random.SystemRandom().randint(_LOWEST, highest) if highest > _LOWEST else 0))
            except OSError:
                continue
            return int(found.getsockname()[1])
