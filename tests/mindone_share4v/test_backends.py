"""--vision-backend and --language-backend, and settings of generation that flags set."""

from __future__ import annotations

import pytest

from mindone_share4v.cli import main

COMMANDS = (["caption", "a.png"], ["chat", "a.png"], ["caption-dataset", "a.png", "--out", "a.jsonl"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("part", ["vision", "language"])
def test_an_unknown_backend_is_reported_with_the_known_names(
    command: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.chdir(str(tmp_path))
    Image.new("RGB", (8, 8)).save("a.png")
    assert main([*command, f"--{part}-backend", "clipp"]) == 2
    error = capsys.readouterr().err
    assert "'clipp'; known: " in error and "Traceback" not in error
