"""`share4v serve`: answer requests over HTTP until a signal ends the server."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..printing import print_error, print_json
from .common import model_options, usage_error
from .exit_status import DONE, SOME_FAILED, USAGE_ERROR

if TYPE_CHECKING:
    from mindone.pipelines.image_to_text.base import Pipeline
    from mindone.pipelines.image_to_text.serve.options import ServerOptions

KEY_VARIABLE = "SHARE4V_API_KEY"
MEBIBYTE = 2**20


def run(arguments: Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, and return the exit status."""
    try:
        options = server_options(arguments)
        if arguments.image_cache_mb < 1:
            raise ValueError(f"--image-cache-mb must be 1 or more, got {arguments.image_cache_mb}")
    except ValueError as error:
        return usage_error(arguments, error)
    try:
        from mindone.pipelines.image_to_text.serve import server
    except ImportError as error:
        print_error(f"error: the server needs {error.name}: install it with pip install 'mindone-share4v[serve]'")
        return USAGE_ERROR
    try:
        listener = server.bind(options)
    except OSError as error:
        advice = (
            ": choose another with --port" if isinstance(error, server.PortInUseError) else ": see --host and --port"
        )
        print_error(f"error: cannot listen on {options.host}:{options.port}: {error.strerror}{advice}")
        return USAGE_ERROR
    address = server.address_of(listener)
    print_error(f"listening on {address}; loading {' + '.join([arguments.model, *(arguments.adapter or ())])} ...")
    if not (options.is_loopback or options.api_keys):
        print_error("warning: anyone who can connect may use this server, since --without-key is set")

    def report_ready() -> None:
        print_error(f"ready: {options.model_name} at {address}/v1 (OpenAI), {address} (Anthropic, Ollama)")

    log = None if arguments.no_access_log else AccessLog().write
    try:
        ended = server.run(options, loader(arguments), listener, arguments.image_cache_mb * MEBIBYTE, report_ready, log)
    except server.ModelFailedError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            status = usage_error(arguments, error.__cause__)
        else:
            print_error(f"error: the model failed: {error}")
            status = SOME_FAILED
        return leave(status, is_idle=True)
    print_error("ended")
    return leave(DONE, ended)


def loader(arguments: Namespace) -> Callable[[], Pipeline]:
    """Return the function that loads the model of the command line."""

    def load() -> Pipeline:
        from mindone.pipelines import pipeline

        return pipeline("image-text-to-text", **model_options(arguments))

    return load


class AccessLog:
    """The access log on standard output. If that cannot be written, such as on a full disk, requests matter more."""

    def __init__(self) -> None:
        self._is_broken = False

    def write(self, record: dict[str, Any]) -> None:
        """Write a record; say once that it is lost, if it is, and go on with the next one that can be written."""
        try:
            print_json(record)
            self._is_broken = False
        except OSError as error:
            if not self._is_broken:
                print_error(f"warning: the access log cannot be written ({error.strerror}): requests are not logged")
            self._is_broken = True


def leave(status: int, is_idle: bool) -> int:
    """Return the status; if the model's thread is still in MindSpore, end the process, which would wait for it."""
    if not is_idle:
        sys.stdout.flush()
        os._exit(status)
    return status


def network_options(arguments: Namespace) -> dict[str, Any]:
    """Return the options of ServerOptions that every server has."""
    keys = [*arguments.api_key, *filter(None, os.environ.get(KEY_VARIABLE, "").split(","))]
    return {
        "host": arguments.host,
        "port": arguments.port,
        "api_keys": tuple(keys),
        "without_key": arguments.without_key,
        "allowed_hosts": tuple(arguments.allowed_host),
    }


def server_options(arguments: Namespace) -> ServerOptions:
    """Return the options that the command line and the environment ask for.

    Raises:
        ValueError: a value is outside its range, or other machines could connect without a key.
    """
    from mindone.pipelines.image_to_text.serve.options import Limits, ServerOptions

    values: dict[str, Any] = {
        "queue": arguments.max_queue,
        "queue_seconds": arguments.max_queue_seconds,
        "request_seconds": arguments.max_request_seconds,
        "drain_seconds": arguments.max_drain_seconds,
        "body_bytes": arguments.max_body_mb * MEBIBYTE,
        "images": arguments.max_images,
        "image_pixels": arguments.max_image_pixels,
        "choices": arguments.max_choices,
        "new_tokens": arguments.max_new_tokens,
    }
    name, adapters = PurePath(arguments.model).name or arguments.model, arguments.adapter or {}
    return ServerOptions(
        model_name=arguments.served_name or name,
        base_model=name,
        adapters=tuple(
            PurePath(path).name + (f":{weight:g}" if weight != 1 else "") for path, weight in adapters.items()
        ),
        max_batch=arguments.max_batch,
        **network_options(arguments),
        allow_url_hosts=tuple(arguments.allow_url_hosts),
        cors_origins=tuple(arguments.cors_origin),
        log_content=arguments.log_content,
        limits=Limits(**values),
    )
