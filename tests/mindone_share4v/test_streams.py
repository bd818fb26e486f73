"""Standard streams that are closed or full, and users without a home directory: messages, never tracebacks."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.pictures import encoded, scene
from PIL import Image

from mindone.models.share4v import load_image
from mindone_share4v.cli import main
from mindone_share4v.printing import filtered_messages

SHARE4V = f"{sys.executable} -m mindone_share4v"
COMMANDS = ["--help", "--version", "caption-dataset --list-styles"]


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("target", [">/dev/full", ">&-", "<&- >&-"])
def test_output_that_cannot_be_written(command: str, target: str) -> None:
    done = shell(f"{SHARE4V} {command} {target}")
    assert done.returncode == 1
    assert done.stderr.startswith("share4v: error: cannot write to standard output: ") and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image, a captioned data set, and captions to score."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "photos").mkdir()
    for name in ("photo.png", "photos/a.png"):
        (folder / name).write_bytes(encoded(scene(1)))
    (folder / "captions.json").write_text('{"a": "A red circle."}')
    return folder


# Every command; {} is the folder above.
WORKING = [
    "caption {}/photo.png --max-new-tokens 3",
    "caption {}/photo.png --max-new-tokens 3 --json",
    "caption-dataset {}/photos --dry-run",
    "caption-dataset {}/photos --out {}/job.jsonl --max-new-tokens 3",
    "chat {}/photo.png --max-new-tokens 3",
    "convert sharegpt4v-tiny --out {}/converted",
    "report {}/job.jsonl --html {}/report.html",
    "score {}/captions.json {}/captions.json --metric bleu --tokenizer python",
    "models",
    "env",
    "env --json",
    "completion zsh",
]


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user has no home directory: HOME is not set, and the user is not in passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("command", WORKING)
def test_no_command_ends_with_a_traceback_on_a_full_disk(
    command: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHARE4V_HOME", str(work / "cache"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n"))
    status = -1
    with suppress(OSError), Path("/dev/full").open("w") as full:  # closing it may fail too
        monkeypatch.setattr(sys, "stdout", full)
        status = main(command.replace("{}", str(work)).split())
    error = capsys.readouterr().err
    assert "Traceback" not in error, error
    if "--out {}/job.jsonl" in command:
        assert status == 0  # it prints on standard error only
    else:
        assert status == 1 and "cannot write to standard output: No space left on device" in error


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize("command", ["models", "caption-dataset {}/photos --out {}/new/out.jsonl"])
def test_commands_that_need_a_home_directory_say_so(
    command: str, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SHARE4V_HOME", raising=False)
    assert main(command.replace("{}", str(work)).split()) == 2
    assert "this user has no home directory: set HOME, or set SHARE4V_HOME" in capsys.readouterr().err
    assert not (work / "new").exists()


@pytest.mark.usefixtures("homeless")
def test_env_works_without_a_home_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0 and "HOME: not set" in capsys.readouterr().out


def test_a_directory_that_was_deleted(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"cd {tmp_path}/gone && rmdir ../gone && PYTHONPATH={ROOT} {SHARE4V} caption photo.jpg")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "share4v: error: the current directory was deleted: change to another directory\n"


def test_a_full_disk_as_standard_error_does_not_stop_a_command(work: Path) -> None:
    done = shell(f"{SHARE4V} caption {work}/photo.png missing.png --max-new-tokens 3 2>/dev/full")
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1 and done.stdout.split("\t")[1].strip()


def test_closed_standard_error_does_not_print_errors_as_results() -> None:
    done = shell(f"{SHARE4V} caption-dataset 2>&-")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_closed_stream_does_not_give_its_descriptor_to_another_file(tmp_path: Path) -> None:
    """Without a replacement, the first file that is opened becomes descriptor 1, and gets what libraries print."""
    program = (
        "from mindone_share4v.cli import open_missing_streams; open_missing_streams()\n"
        f"print(open({str(tmp_path / 'file')!r}, 'w').fileno(), file=__import__('sys').stderr)"
    )
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "$0" >&-', program], capture_output=True, text=True)
    assert int(done.stderr) > 2


@pytest.mark.parametrize("model", ["~/models/7b", "Lin-Chen/ShareGPT4V-7B"])
def test_a_user_without_a_home_directory(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mindone.models.share4v.checkpoint import Checkpoint

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("SHARE4V_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(FileNotFoundError, match="this user has no home directory: set HOME"):
        Checkpoint.open(model)
    assert Checkpoint.open("sharegpt4v-tiny").format == "own"  # needs no home


def test_warnings_of_pillow_are_notes_of_one_line(tmp_path: Path) -> None:
    """Corrupt EXIF of a photo that reads well otherwise; other warnings stay Python's."""
    orientation, offset = b"\x01\x12\0\x03\0\0\0\x01\0\x01\0\0", b"\x87\x69\0\x04\0\0\0\x01\x7f\xff\xff\xff"
    corrupt = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + orientation + offset  # and no end of the directory
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(path, exif=corrupt)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_image(path)
        warnings.warn("of a library", stacklevel=1)
    with filtered_messages():
        note, other = (warnings.formatwarning(one.message, one.category, one.filename, one.lineno) for one in caught)
    assert note.startswith("share4v: note on an image, from Pillow: Corrupt EXIF data.") and note.count("\n") == 1
    assert "UserWarning: of a library" in other
