"""Features, logits and captions of llama.cpp for small models in GGUF, which the tests compare ours with.

    python -m venv llama && CMAKE_ARGS=-DGGML_NATIVE=ON llama/bin/pip install llama-cpp-python==0.3.8 'numpy<2'
    python benchmarks/llama_cpp_captions.py --llama-python llama/bin/python

Compiling takes 10 to 20 minutes on two cores, so .ci/run compares with the stored file that this writes
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
VERSION = "llama-cpp-python 0.3.8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="Python that has llama-cpp-python 0.3.8")
    arguments = parser.parse_args()
    from helpers.gguf_reference import CASES, DATA, NEW_TOKENS, QUESTION, STORED_STEPS, digest, image, write_case

    from mindone.models.share4v import Share4VProcessor

    stored: dict[str, Any] = {"version": VERSION}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            model, mmproj = write_case(name, Path(folder))
            image(name).save(Path(folder) / "image.png")
            prompt = Share4VProcessor.from_pretrained(model).prompt(QUESTION, 1)
            files = [str(path) for path in (model, mmproj, Path(folder) / "image.png")]
            worker = ROOT / "benchmarks/workers/llama_cpp_captions.py"
            out = Path(folder) / "out.npz"
            command = [arguments.llama_python, str(worker), *files, prompt, str(NEW_TOKENS), str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with np.load(out) as found:
                stored |= {f"{name}/{key}": found[key] for key in ("before", "after", "features", "generated")}
                stored[f"{name}/logits"] = found["logits"][:STORED_STEPS]
            stored[f"{name}/digest"] = digest(model, mmproj)
        print(name, stored[f"{name}/generated"].tolist())
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **stored)


if __name__ == "__main__":
    main()
