"""The earlier port had this script here: `python share4v/eval/run_share4v.py` runs the one two folders up."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).resolve().parents[2] / "run_share4v.py"), run_name="__main__")
