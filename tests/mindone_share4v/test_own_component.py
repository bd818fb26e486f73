"""A vision tower of another package, as the tutorial declares it, through the real `share4v` command."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.warm_processes import warm_python

from mindone.models.share4v import VISION_TOWERS, Share4V, Share4VProcessor
from mindone.models.share4v.display import printable
from mindone.models.share4v.training.initialization import initialize
from mindone.pipelines import pipeline

SCENE = str(ROOT / "examples" / "sharegpt_4v" / "scene.png")


def test_the_tower_of_the_tutorial_runs_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "tutorials" / "vision_tower.md").read_text(encoding="utf-8")
    code = re.search(r'```python title="towers.py"\n(.*?)```', page, re.DOTALL)
    entry_point = re.search(r'"(vision_tower.patches)" = "(towers:PatchTower)"', page)
    assert code and entry_point
    (tmp_path / "towers.py").write_text(code[1], encoding="utf-8")
    information = tmp_path / "towers-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: towers\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(
        f"[mindone.share4v]\n{entry_point[1]} = {entry_point[2]}\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "patches" in VISION_TOWERS.names()

    source = Share4V.from_pretrained("sharegpt4v-tiny", language_backend="mindspore")
    model = Share4V(source.config, vision_backend="patches")
    initialize(model, seed=0)
    model.save_pretrained(tmp_path / "with-patches")
    Share4VProcessor.from_pretrained("sharegpt4v-tiny").save_pretrained(tmp_path / "with-patches")
    captioner = pipeline("image-to-text", tmp_path / "with-patches", vision_backend="patches")
    wanted = captioner(SCENE, max_new_tokens=8)[0]["generated_text"]

    command = [
        *(warm_python(), "-m", "mindone_share4v"),
        "caption",
        SCENE,
        "--model",
        str(tmp_path / "with-patches"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--vision-backend", "patches", "--max-new-tokens", "8"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printable(" ".join(wanted.split())) != ""
