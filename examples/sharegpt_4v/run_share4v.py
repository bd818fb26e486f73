"""Ask ShareGPT4V about a picture; the flags are those of the original's script.

python run_share4v.py --model-path sharegpt4v-7b --image-file photo.jpg --query "Describe this image"
"""

from __future__ import annotations

import argparse
import sys

from mindone.models.share4v.processing.image_loading import ImageLoadError
from mindone.pipelines import pipeline


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="sharegpt4v-tiny", help="known name, directory, or owner/name on a hub")
    parser.add_argument("--model-base", help=argparse.SUPPRESS)
    parser.add_argument("--vision-tower", help="directory or name, where config.json's is not to be used")
    parser.add_argument("--image-file", nargs="+", required=True, help="one or more paths or URLs")
    parser.add_argument("--query", default="Describe this image", help="the question; <image> marks a picture's place")
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's, else vicuna_v1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 samples")
    parser.add_argument("--top_p", "--top-p", type=float, default=1.0)
    parser.add_argument("--num_beams", "--num-beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=512)
    return parser


def answer(arguments: argparse.Namespace) -> str:
    answerer = pipeline(
        "image-text-to-text",
        model=arguments.model_path,
        vision_tower=arguments.vision_tower,
        conversation=arguments.conv_mode,
    )
    names = ("temperature", "top_p", "num_beams", "max_new_tokens")
    settings = {"do_sample": arguments.temperature > 0, **{name: getattr(arguments, name) for name in names}}
    images, query = arguments.image_file, arguments.query
    return answerer(images=images, text=query, generate_kwargs=settings, return_full_text=False)[0]["generated_text"]


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.model_base is not None:
        parser.error("--model-base was read and never used, here as in the earlier port: leave it out")
    try:
        print(answer(arguments))
    except ImageLoadError as error:
        sys.exit(f"{parser.prog}: {error}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
