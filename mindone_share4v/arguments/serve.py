"""Arguments of `share4v serve`."""

from __future__ import annotations

from argparse import ArgumentParser, _ArgumentGroup

from .common import add_model_arguments

HELP = "answer requests over HTTP"
STATUS = "starting the server"
USAGE = ""
DESCRIPTION = (
    "Serve a model over HTTP with the APIs of OpenAI, Anthropic and Ollama, so that their clients and captioning tools "
    "work unchanged. /health answers while the model is loaded (503, then 200). The access log goes to "
    "standard output, one JSON object per request, without prompts and images. On Ctrl-C or SIGTERM the server refuses "
    "new requests, finishes those that are running, and ends."
)
EPILOG = """examples:
  share4v serve --model sharegpt4v-7b --dtype int4
  SHARE4V_API_KEY=secret share4v serve --model sharegpt4v-7b --host 0.0.0.0 --max-batch 16

exit status: 0 ended by a signal, 1 the model failed, 2 usage error, the port is in use, or the model was not found"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    add_model_arguments(parser)
    group = add_network_arguments(parser)
    group.add_argument(
        "--served-name",
        metavar="NAME",
        help="name of the model in requests (default: the last part of --model)",
    )
    group.add_argument(
        "--allow-url-hosts",
        action="append",
        default=[],
        metavar="HOST",
        help="download images that a request names by URL from this host, *.DOMAIN for its subdomains, or * for every "
        "public host; can be repeated (default: nothing is downloaded)",
    )
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages of this origin, such as https://example.org, use the server; can be repeated",
    )
    _add_limit_arguments(parser)
    log = parser.add_argument_group("log")
    log.add_argument("--no-access-log", action="store_true", help="do not log requests")
    log.add_argument(
        "--log-content", action="store_true", help="add prompts (without their images) and answers to the access log"
    )


def add_network_arguments(parser: ArgumentParser) -> _ArgumentGroup:
    """Add the group `network and access` with what every server has, and return it."""
    group = parser.add_argument_group("network and access")
    group.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    group.add_argument(
        "--port", type=int, metavar="N", default=8000, help="port; 0 takes a free one (default: %(default)s)"
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="accept only requests with this key, except for /health and the page; can be repeated. Other users of "
        "this machine can see it in the list of processes; the environment variable SHARE4V_API_KEY (several keys: "
        "separated by commas) is not visible to them",
    )
    group.add_argument("--without-key", action="store_true", help="let anyone who can connect to --host use the server")
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="without a key, accept this name in the Host header, too, as behind a proxy; can be repeated",
    )
    return group


def _add_limit_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("limits")
    for flag, kind, default, text in (
        ("--max-batch", int, 8, "answers that are generated together"),
        ("--max-queue", int, 32, "answers that may wait beyond those; more get status 429"),
        ("--max-queue-seconds", float, 20.0, "time that a request may wait before it gets status 429"),
        (
            "--max-request-seconds",
            float,
            600.0,
            "time that a request may take, from its headers to the end of its answer",
        ),
        ("--max-drain-seconds", float, 30.0, "time that running requests may take after SIGTERM"),
        ("--max-body-mb", int, 64, "size of a request in MiB"),
        ("--max-images", int, 8, "images in one request"),
        ("--max-image-pixels", int, 50_000_000, "pixels of an image, checked before it is decoded"),
        ("--max-choices", int, 8, "answers to one request (n)"),
        ("--image-cache-mb", int, 256, "memory for features of recent images, in MiB"),
    ):
        group.add_argument(flag, type=kind, default=default, metavar="N", help=f"{text} (default: {default})")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="tokens of an answer; a larger max_tokens is lowered (default: no limit)",
    )
