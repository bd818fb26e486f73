"""Arguments of `share4v convert`."""

from __future__ import annotations

from argparse import ArgumentParser

from .common import MODELS, add_adapter_argument, add_download_arguments, add_vision_tower_argument

HELP = "write a checkpoint as one safetensors directory, or as GGUF files"
DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")
GGUF_DTYPES, GGUF_SUFFIX = ("f32", "f16", "q8_0", "q4_0"), ".gguf"
STATUS = "starting MindSpore"
USAGE = "SRC --out DIR"
DESCRIPTION = (
    "Write a checkpoint as one directory with safetensors weights, the vision tower, the tokenizer and all "
    "configuration files. Reads every published format: the original .bin shards, LLaVA's, the .ckpt files of the "
    "earlier port, and llama.cpp's GGUF files. Conversion is optional, since every format can be loaded directly; it "
    "is useful for storing int8 or int4 weights. With an output that ends in .gguf, write GGUF files for llama.cpp."
)
EPILOG = """examples:
  share4v convert ShareGPT4V-7B --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --out sharegpt4v-7b-ms
  share4v convert Lin-Chen/ShareGPT4V-7B --out sharegpt4v-7b-int4 --dtype int4
  share4v convert Lin-Chen/ShareGPT4V-7B --adapter my-lora --out merged
  share4v convert sharegpt4v-7b --out model-q4_0.gguf --mmproj mmproj-f16.gguf --dtype q4_0
  share4v convert model-q4_0.gguf --vision-tower mmproj-f16.gguf --out from-gguf --dtype int4

exit status: 0 success, 2 the source or the output directory cannot be used, 130 interrupted"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    group = parser.add_argument_group("checkpoint and output")
    group.add_argument("source", metavar="SRC", help=f"checkpoint to convert: {MODELS}")
    group.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="directory to write, which must be new or empty; or a new file that ends in .gguf",
    )
    group.add_argument(
        "--mmproj", metavar="FILE", help="with GGUF: the second file, for the vision tower and the projector"
    )
    add_vision_tower_argument(group)
    add_adapter_argument(group)
    group.add_argument(
        "--dtype",
        choices=(*DTYPES, *GGUF_DTYPES),
        help="type of the written weights; int8 and int4 run only on CPUs (default: as stored, but bfloat16 as "
        "float32); with GGUF f32, f16, q8_0 or q4_0 (default: f16)",
    )
    group.add_argument(
        "--fast",
        action="store_true",
        help="for int4: skip rotation and GPTQ, which take an hour or two for a 7B on two cores; loses more quality",
    )
    group.add_argument(
        "--calibrate",
        metavar="FOLDER",
        help="for int4: a folder of images like those to be captioned, with or without captions in .txt files beside "
        "them; up to 200 are used to calibrate, besides a text that is always used",
    )
    add_download_arguments(group)
