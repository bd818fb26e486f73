"""Ask ShareGPT4V a question about one or more images, with the flags of the original script.

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
    parser.add_argument("--vision-tower", help="directory or name (default: the one named in config.json)")
    parser.add_argument("--image-file", nargs="+", required=True, help="one or more paths or URLs")
    parser.add_argument("--query", default="Describe this image", help="question; <image> in it stands for an image")
    parser.add_argument("--conv-mode", help="conversation template (default: the checkpoint's, or vicuna_v1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0 turns sampling on (default: 0)")
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
    settings = {name: getattr(arguments, name) for name in ("temperature", "top_p", "num_beams", "max_new_tokens")}
    settings["do_sample"] = arguments.temperature > 0
    results = answerer(
        images=arguments.image_file, text=arguments.query, generate_kwargs=settings, return_full_text=False
    )
    return results[0]["generated_text"]


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.model_base is not None:
        parser.error("--model-base never had an effect, in the earlier port or here: leave it out")
    try:
        print(answer(arguments))
    except ImageLoadError as error:
        sys.exit(f"{parser.prog}: {error}")
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
