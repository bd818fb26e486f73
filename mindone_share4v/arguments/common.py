"""Arguments that several commands share, each defined once."""

from __future__ import annotations

from argparse import Action, ArgumentError, ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODELS = (
    "sharegpt4v-tiny, sharegpt4v-7b, sharegpt4v-13b, llava-1.5-7b, a directory, a GGUF file, or owner/name on the "
    "Hugging Face hub, with :Q4_0 or :FILE for one of its GGUF models"
)


def add_model_arguments(parser: ArgumentParser, is_optional: bool = False) -> None:
    """Add the group `model`: which checkpoint to load, and how; if it is optional, none is loaded by default."""
    group = parser.add_argument_group("model")
    default = "none" if is_optional else "%(default)s, which is part of the package and only knows drawn scenes"
    group.add_argument(
        "--model",
        metavar="NAME",
        default=None if is_optional else "sharegpt4v-tiny",
        help=f"{MODELS} (default: {default})",
    )
    add_vision_tower_argument(group)
    add_adapter_argument(group)
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        help="type of the weights in memory: float32, float16, bfloat16, int8 or int4 "
        "(default: int8 and int4 as stored, any other type as float32)",
    )
    group.add_argument(
        "--kv-cache-dtype",
        metavar="TYPE",
        help="type of the KV cache: float32, float16 or int8 (default: follows --dtype)",
    )
    group.add_argument(
        "--numa",
        choices=("interleave", "local"),
        help="on a machine with several NUMA nodes (sockets), copy the weights into memory that is spread over them, "
        "or that belongs to the only node on which the process runs (default: the system decides)",
    )
    for part in ("vision", "language"):
        group.add_argument(
            f"--{part}-backend",
            default="auto",
            metavar="NAME",
            help=f"what runs the {part} {'tower' if part == 'vision' else 'model'}: auto, mindspore, kernels, or the "
            "name of a registered component of your own (default: auto, the fastest on this device)",
        )
    group.add_argument(
        "--conversation",
        metavar="TEMPLATE",
        help="conversation template (default: the checkpoint's, or vicuna_v1)",
    )
    add_download_arguments(group)


def add_vision_tower_argument(group: _ArgumentGroup) -> None:
    """Add --vision-tower."""
    group.add_argument(
        "--vision-tower",
        metavar="NAME",
        help="directory or name of the vision tower, or the mmproj file of a GGUF model (default: the one in the "
        "checkpoint, named in its config.json, or beside the GGUF file)",
    )


class AdapterAction(Action):
    """Collects DIR[:WEIGHT] as {DIR: WEIGHT}; a directory whose own name ends in :NUMBER is found as it is."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add one adapter."""
        text = str(values)
        directory, colon, number = text.rpartition(":")
        try:
            weight = float(number)
        except ValueError:
            colon = ""
        if not colon or Path(text).is_dir():
            directory, weight = text, 1.0
        given = dict(getattr(namespace, self.dest, None) or {})
        if directory in given:
            raise ArgumentError(self, f"{directory} is given twice: give it once, with the sum of the weights")
        setattr(namespace, self.dest, {**given, directory: weight})


def add_adapter_argument(group: _ArgumentGroup) -> None:
    """Add --adapter."""
    group.add_argument(
        "--adapter",
        action=AdapterAction,
        metavar="DIR[:WEIGHT]",
        help="directory of a LoRA adapter, as PEFT or LLaVA writes it, or owner/name of its repository on the Hugging "
        "Face hub, to merge into the weights before they are rounded; WEIGHT scales it (default: 1); can be repeated",
    )


def add_download_arguments(group: _ArgumentGroup) -> None:
    """Add --cache-dir and --local-files-only."""
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="where downloaded files are stored (default: $SHARE4V_HOME, or ~/.cache/share4v)",
    )
    group.add_argument(
        "--local-files-only",
        action="store_true",
        help="never download a checkpoint; use only files on this machine",
    )
    group.add_argument(
        "--revision",
        metavar="NAME",
        help="branch, tag or commit of owner/name on the Hugging Face hub (default: its main branch)",
    )
    group.add_argument(
        "--subfolder",
        default="",
        metavar="DIR",
        help="folder of the repository or directory that holds the checkpoint (default: the top)",
    )


def add_generation_arguments(
    parser: ArgumentParser, max_new_tokens: int | None = 256, default: str = "256"
) -> _ArgumentGroup:
    """Add the group `generation` and return it.

    Args:
        parser: the command's parser.
        max_new_tokens: default of --max-new-tokens; None lets the caption style decide.
        default: what the help says about that default.
    """
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"maximum number of new tokens (default: {default})",
    )
    group.add_argument(
        "--min-new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="minimum number of new tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 always takes the most probable token (default: 0)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="when sampling, use only the most probable tokens that together reach probability P",
    )
    group.add_argument(
        "--top-k",
        type=int,
        metavar="K",
        help="when sampling, use only the K most probable tokens",
    )
    group.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="when sampling, use only tokens with at least P times the probability of the most probable one",
    )
    _add_penalty_arguments(group)
    group.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before TEXT would be generated; can be repeated",
    )
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed; the same seed gives the same result",
    )
    return group


def _add_penalty_arguments(group: _ArgumentGroup) -> None:
    """Add the flags that make repetition less likely."""
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="values above 1 make repetition less likely (default: 1)",
    )
    for name, effect in (("presence", "once it was generated"), ("frequency", "each time it was generated")):
        group.add_argument(
            f"--{name}-penalty",
            type=float,
            metavar="P",
            help=f"lower a token's score by P {effect}, -2 to 2 (default: 0)",
        )
    group.add_argument(
        "--no-repeat-ngram-size",
        type=int,
        metavar="N",
        help="never repeat a sequence of N tokens (default: 0, which allows it)",
    )


def add_pixels_argument(group: _ArgumentGroup) -> None:
    """Add --max-image-pixels."""
    group.add_argument(
        "--max-image-pixels",
        type=int,
        metavar="N",
        help="maximum number of pixels of an image file (default: 178956970)",
    )


def add_json_argument(group: _ArgumentGroup) -> None:
    """Add --json for commands that print one record per line."""
    group.add_argument("--json", action="store_true", help="print one JSON object per line")


def add_url_arguments(parser: ArgumentParser) -> None:
    """Add the group about downloads."""
    group = parser.add_argument_group("images at URLs of a table or a list")
    group.add_argument(
        "--url-attempts",
        type=int,
        metavar="N",
        help="maximum number of requests for an image that is busy or fails by chance (default: 3)",
    )
    group.add_argument(
        "--url-seconds",
        type=float,
        metavar="SECONDS",
        help="maximum duration of one of them (default: 120)",
    )
    group.add_argument("--url-bytes", type=int, metavar="N", help="maximum size of an image (default: 268435456)")
    group.add_argument(
        "--url-per-host",
        type=int,
        metavar="N",
        help="maximum number of requests to one host at a time (default: 4)",
    )
    group.add_argument(
        "--url-private",
        action="store_true",
        help="allow hosts whose addresses are not public, such as those of your own network (default: an error)",
    )
    group.add_argument(
        "--user-agent-token",
        metavar="NAME",
        help="name of the crawler, to servers and in their opt-outs (default: mindone-share4v)",
    )
    group.add_argument(
        "--disallowed-header-directives",
        metavar="LIST",
        help="do not use images whose header X-Robots-Tag has one of these; '' uses all (default: "
        "noai,noimageai,noindex,noimageindex)",
    )
