"""Write a ShareGPT4V checkpoint of any published form as one directory of safetensors.

python convert_weights.py --source ShareGPT4V-7B --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --target out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindone.models.share4v.checkpoint import convert


def instead(source: str, target: str) -> str | None:
    """Say what to use in place of a command line that only the earlier port's script of this name took."""
    if target.endswith(".ckpt"):
        return (
            f"--target names a directory, which gets safetensors: --target {target.removesuffix('.ckpt')} (nothing "
            "needs a .ckpt, and a vision tower is written with its model: --source MODEL --vision-tower TOWER)"
        )
    if "," in source and not Path(source).exists():
        folder = Path(source.split(",")[0]).parent
        return f"--source names the directory that holds the files, with config.json among them: --source {folder}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="directory, known name, or owner/name on a hub")
    parser.add_argument("--target", required=True, help="new or empty directory to write")
    parser.add_argument("--vision-tower", help="directory or name, where config.json's is not to be used")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="default: as stored")
    arguments = parser.parse_args()
    wrong = instead(arguments.source, arguments.target)
    if wrong is not None:
        parser.error(wrong)
    try:
        print(convert(arguments.source, arguments.target, arguments.vision_tower, arguments.dtype))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
