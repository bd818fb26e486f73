"""Features, logits and captions of llama.cpp for small models in GGUF, which the tests compare ours with.

    python -m venv old && old/bin/pip install llama-cpp-python==0.3.8 'numpy<2'
    python -m venv new && new/bin/pip install llama-cpp-python==0.3.36 'numpy<2'
    python benchmarks/llama_cpp_captions.py --vision old/bin/python --language new/bin/python

The vision tower runs in 0.3.8, because the llama.cpp of 0.3.36 puts CLIP's class embedding behind the patches, not in
front of them, and the language model in 0.3.36, whose Q4_0 0.3.8 computes differently on CPUs with AVX-512. Compiling
each takes 10 to 20 minutes on two cores, so .ci/run compares with the file that this writes
(tests/models/share4v/checkpoint/data/llama_cpp.npz). Run it again when what export_gguf writes changes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
WORKER = ROOT / "benchmarks/workers/llama_cpp_captions.py"
VERSIONS = "llama-cpp-python: 0.3.8 for the vision tower, 0.3.36 for the language model"


def run(python: str, *arguments: object) -> None:
    """Run the worker; its log is shown only if it fails."""
    done = subprocess.run([python, str(WORKER), *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} failed with {done.returncode}:\n{done.stderr[-3000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", required=True, help="Python that has llama-cpp-python 0.3.8")
    parser.add_argument("--language", required=True, help="Python that has llama-cpp-python 0.3.36")
    arguments = parser.parse_args()
    from helpers.gguf_reference import CASES, DATA, NEW_TOKENS, QUESTION, STORED_STEPS, digest, image, write_case

    from mindone.models.share4v import Share4VProcessor
    from mindone.models.share4v.checkpoint import Checkpoint

    stored: dict[str, Any] = {"versions": VERSIONS}
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model, mmproj = write_case(name, folder)
            picture, features, out = (folder / file for file in ("image.png", "features.npz", "out.npz"))
            image(name).save(picture)
            prompt = Share4VProcessor.from_pretrained(model).prompt(QUESTION, 1)
            width = Checkpoint.open(model).config.text_config.hidden_size
            run(arguments.vision, "features", mmproj, picture, width, features)
            run(arguments.language, "language", model, prompt, features, NEW_TOKENS, out)
            with np.load(features) as seen, np.load(out) as found:
                stored |= {f"{name}/{key}": found[key] for key in ("before", "after", "generated")}
                stored[f"{name}/features"] = seen["features"]
                stored[f"{name}/logits"] = found["logits"][:STORED_STEPS]
            stored[f"{name}/digest"] = digest(model, mmproj)
        print(name, stored[f"{name}/generated"].tolist())
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **stored)


if __name__ == "__main__":
    main()
