"""The earlier port had this script here: `python share4v/tools/convert_weights.py` runs the one two folders up."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "convert_weights.py"), run_name="__main__")
