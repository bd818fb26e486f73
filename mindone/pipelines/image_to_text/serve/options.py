"""Options of the server, with the limits that it applies to what clients send."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from ipaddress import ip_address

from mindone.models.share4v.generation.grammar_trial import COMPILE_SECONDS

_HOST = re.compile(r"[A-Za-z0-9._-]+")
# The flags of `share4v serve` for limits, which errors name.
_FLAGS = {
    "body_bytes": "--max-body-mb",
    "choices": "--max-choices",
    "drain_seconds": "--max-drain-seconds",
    "image_pixels": "--max-image-pixels",
    "images": "--max-images",
    "new_tokens": "--max-new-tokens",
    "queue": "--max-queue",
    "queue_seconds": "--max-queue-seconds",
    "request_seconds": "--max-request-seconds",
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for; a request beyond a limit is refused with an error that names it.

    Attributes:
        body_bytes: size of a request's body.
        body_values: number of values in a request's body. Many small ones take long to read, and much more memory than
            the body.
        images: images in one request.
        image_pixels: width times height of an image, checked before it is decoded.
        image_side: width and height of an image; a long line is padded to a square.
        choices: answers to one prompt (`n`).
        new_tokens: tokens of an answer; a larger max_tokens is lowered to it. None allows what fits into the context.
        stop_strings: number of stop strings.
        stop_characters: length of a stop string.
        logit_bias: number of tokens in logit_bias.
        queue: requests that wait for a slot, beyond those that are running.
        queue_seconds: how long a request may wait for a slot. Clients of captioning tools give up after 30 s.
        request_seconds: how long a request may take, from its headers to the end of its answer.
        body_seconds: how long a client may take to send its body. One that sends less than 16 KiB/s gets less: 10 s,
            and a second for each 16 KiB that arrived.
        write_seconds: how long a client may take to accept an answer, or a piece of a stream.
        idle_seconds: how long a connection may have no running request: before its first one, between two, while the
            headers of one arrive, and while its client reads the last answer.
        drain_seconds: how long running requests may take after SIGTERM.
        schema_seconds: CPU time that a schema or regular expression may take to compile.
        ping_seconds: after this time without an event, a stream gets a comment, so that clients do not time out.
        url_bytes: size of an image that is downloaded.
        url_seconds: duration of a download.
        url_redirects: redirects of a download; each is checked as the first address is.
    """

    body_bytes: int = 64 * 2**20
    body_values: int = 1_000_000
    images: int = 8
    image_pixels: int = 50_000_000
    image_side: int = 30_000
    choices: int = 8
    new_tokens: int | None = None
    stop_strings: int = 16
    stop_characters: int = 256
    logit_bias: int = 1024
    queue: int = 32
    queue_seconds: float = 20.0
    request_seconds: float = 600.0
    body_seconds: float = 60.0
    write_seconds: float = 30.0
    idle_seconds: float = 40.0
    drain_seconds: float = 30.0
    schema_seconds: float = COMPILE_SECONDS
    ping_seconds: float = 5.0
    url_bytes: int = 10 * 2**20
    url_seconds: float = 10.0
    url_redirects: int = 3

    def __post_init__(self) -> None:
        for item in fields(self):
            value, minimum = getattr(self, item.name), 0 if item.name in ("queue", "url_redirects") else 1
            name = f"{item.name} ({_FLAGS[item.name]})" if item.name in _FLAGS else item.name
            if item.name.endswith("_seconds"):
                if not value > 0:
                    raise ValueError(f"{name} must be a number above 0, got {value!r}")
            elif value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < minimum):
                raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where the server listens, who may use it, and what it allows.

    Attributes:
        model_name: the name that requests use for the model.
        base_model: name of the checkpoint, without the path to it; by default model_name.
        adapters: names of the LoRA adapters that were merged into it, with their weights, such as "my-lora:0.75".
        host: address to listen on.
        port: 0 takes a free port.
        max_batch: sequences that are decoded together.
        api_keys: keys of which every request except /health and / (the page) must have one; empty for none.
        without_key: allow other machines to connect without a key.
        allowed_hosts: names in the Host header that are accepted besides addresses, `host` and the machine's name.
            Without a key other names are refused, so that a web page cannot reach the server through a name of its own.
        allow_url_hosts: hosts from which images may be downloaded: a name, "*.example.org" for its subdomains, or "*"
            for all. Empty: images are accepted as data only.
        cors_origins: origins of web pages that may use the server, such as "https://example.org".
        log_content: write prompts and answers to the access log.
        limits: what clients may ask for.

    Raises:
        ValueError: a value is outside its range or has no effect, or other machines could connect without a key.
    """

    model_name: str
    base_model: str = ""
    adapters: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 8
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    without_key: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allow_url_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_content: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port (--port) must be from 0 to 65535, got {self.port}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be 1 or more, got {self.max_batch}")
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise ValueError("api_key (--api-key) must be one or more visible ASCII characters without spaces")
        if not (self.is_loopback or self.api_keys or self.without_key):
            raise ValueError(
                f"host {self.host} makes the server reachable from other machines, but no key is set: set api_key "
                "(--api-key), or without_key (--without-key) if anyone who can connect may use it"
            )
        self._check_names()

    def _check_names(self) -> None:
        if self.allowed_hosts and self.api_keys:
            raise ValueError(
                "allowed_hosts (--allowed-host) has no effect with a key, which every request needs: leave it out"
            )
        for name in self.allowed_hosts:
            if not _HOST.fullmatch(name):
                raise ValueError(f"allowed_hosts (--allowed-host) must be names without a port or a path, got {name!r}")
        for origin in self.cors_origins:
            if origin == "*" and not self.api_keys:
                raise ValueError(
                    "cors_origins (--cors-origin) '*' lets every web page use the server: set a key (--api-key), too"
                )

    @property
    def is_loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return self.host == "localhost" or (is_address(self.host) and ip_address(self.host).is_loopback)


def is_address(host: str) -> bool:
    """Return whether a host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
