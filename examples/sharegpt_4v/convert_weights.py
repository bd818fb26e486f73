"""Write a ShareGPT4V checkpoint of any published format as one directory of safetensors.

python convert_weights.py --source ShareGPT4V-7B --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --target out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindone.models.share4v import convert


def correction(source: str, target: str) -> str | None:
    """Return how to rewrite a command line that only worked with the earlier port's script, or None if it is fine."""
    if target.endswith(".ckpt"):
        return (
            f"--target must be a directory, which receives safetensors: --target {target.removesuffix('.ckpt')} (a "
            ".ckpt is no longer needed; to convert a vision tower with its model, use --source MODEL "
            "--vision-tower TOWER)"
        )
    if "," in source and not Path(source).exists():
        folder = Path(source.split(",")[0]).parent
        return f"--source must be the directory that holds the files and config.json: --source {folder}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="known name, directory, or owner/name on a hub")
    parser.add_argument("--target", required=True, help="directory to write, which must be new or empty")
    parser.add_argument("--vision-tower", help="directory or name (default: the one named in config.json)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), help="type of the written weights (default: as stored)"
    )
    arguments = parser.parse_args()
    problem = correction(arguments.source, arguments.target)
    if problem is not None:
        parser.error(problem)
    try:
        written = convert(
            arguments.source, arguments.target, vision_tower=arguments.vision_tower, dtype=arguments.dtype
        )
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(written)


if __name__ == "__main__":
    main()
