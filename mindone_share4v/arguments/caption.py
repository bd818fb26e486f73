"""Arguments of `share4v caption`."""

from __future__ import annotations

from argparse import ArgumentParser

from .common import add_generation_arguments, add_json_argument, add_model_arguments, add_pixels_argument

HELP = "caption images"
STATUS = "starting MindSpore"
USAGE = "IMAGE..."
DESCRIPTION = (
    "Caption images. On a terminal, each caption is shown while it is generated. Otherwise one line is printed per "
    "image: the caption, or `PATH<TAB>CAPTION` if there are several images; line breaks and tabs inside a caption "
    "become spaces (--json keeps them). Images that cannot be read are reported on standard error, and the others are "
    "still captioned."
)
EPILOG = """examples:
  share4v caption photo.jpg
  share4v caption photos/*.jpg --model sharegpt4v-7b --json > answers.jsonl
  share4v caption photo.jpg --style one-sentence
  share4v caption photo.jpg --prompt "What is written on the sign?"
  curl -s https://example.org/photo.jpg | share4v caption -

exit status: 0 success, 1 some images failed, 2 usage error, 130 interrupted"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add every argument of the command."""
    images = parser.add_argument_group("images and output")
    images.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="path, URL or data URI of an image; - reads one from standard input",
    )
    images.add_argument(
        "--prompt",
        metavar="TEXT",
        help="question to ask, used as it is written: braces have no meaning here (default: Describe this image)",
    )
    images.add_argument(
        "--style",
        metavar="NAME",
        help="named question with its own length limit and rules for the text; share4v caption-dataset --list-styles "
        "lists them",
    )
    add_pixels_argument(images)
    add_json_argument(images)
    add_model_arguments(parser)
    generation = add_generation_arguments(parser, max_new_tokens=None, default="256, or set by --style")
    generation.add_argument(
        "--num-beams",
        type=int,
        default=1,
        metavar="N",
        help="number of beams for beam search (default: %(default)s, no beam search)",
    )
    generation.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="number of images to caption together (default: %(default)s)",
    )
