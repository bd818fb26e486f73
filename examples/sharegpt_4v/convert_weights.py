"""Write a ShareGPT4V checkpoint of any published form as one directory of safetensors.

python convert_weights.py --source ShareGPT4V-7B --vision-tower ShareGPT4V-7B_Pretrained_vit-large336-l12 --target out
"""

from __future__ import annotations

import argparse

from mindone.models.share4v.checkpoint import convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="directory, known name, or owner/name on a hub")
    parser.add_argument("--target", required=True, help="new or empty directory to write")
    parser.add_argument("--vision-tower", help="directory or name, where config.json's is not to be used")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="default: as stored")
    arguments = parser.parse_args()
    print(convert(arguments.source, arguments.target, arguments.vision_tower, arguments.dtype))


if __name__ == "__main__":
    main()
