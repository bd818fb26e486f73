"""Text of a stranger on the terminal, and passwords of URLs in messages and records."""

from __future__ import annotations

import io
import json
import logging
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mindone.models.share4v.display import json_printable, printable, redacted, shell_name
from mindone.models.share4v.processing.image_loading import ImageLoadError, describe, load_image
from mindone.pipelines.image_to_text.dataset.readers.base import ReaderOptions
from mindone.pipelines.image_to_text.dataset.readers.item_builder import ItemBuilder
from mindone.pipelines.image_to_text.dataset.state.keys import url_keys
from mindone.pipelines.image_to_text.dataset.state.listing import Listing, write_listing
from mindone_share4v import printing
from mindone_share4v.cli import main
from mindone_share4v.commands.common import failure, image_name

HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\x00\r\x7f\u202egpj\u2066x\u2069\u200f\u061c\u2028\u2029\udcff\ud800\x85"
LIVE = [
    *map(chr, [*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]),
    *("\u2028", "\u2029", "\u200e", "\u200f", "\u061c", "\udc80", "\udfff", "\ud800"),
]
SECRET = "https://user:pa:ss@example.org/a/cat.jpg?width=3&X-Amz-Signature=abc123&token=t0k&key=k3y#access_token=fr4g"


def is_clean(text: str, keep: str = "\n\t") -> bool:
    text.encode("utf-8")
    return not [char for char in LIVE if char in text and char not in keep]


def test_every_character_that_acts_on_a_terminal_becomes_an_escape() -> None:
    for char in LIVE:
        shown = printable(f"a{char}b", keep="")
        assert shown.startswith("a\\") and shown.endswith("b") and is_clean(shown, keep=""), repr(char)
    assert printable("a\n\tb") == "a\n\tb"
    assert printable("caf\udce9 \x1b[31m \u202e \ud83d") == "caf\\xe9 \\x1b[31m \\u202e \\ud83d"


@pytest.mark.parametrize(
    "text", ["Grüße", "你好，世界", "שלום עולם", "مرحبا", "👩‍👩‍👧 👍🏽 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "नमस्ते क्‍ष", "a\u00a0b\u00ad", "∑ ≠ 𝔸"]
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == printable(text, keep="") == json_printable(text) == text


def test_the_filter_takes_linear_time() -> None:
    for text in ("a" * 10**6, "://" + "a" * 10**6, "?" + "token" * 10**5, "?a" * 10**5, "\x1b" * 10**5, "@" * 10**6):
        assert printable(redacted(text), keep="")


def test_a_url_loses_its_secrets_and_nothing_else() -> None:
    shown = "https://example.org/a/cat.jpg?width=3&X-Amz-Signature=***&token=***&key=***#access_token=***"
    assert redacted(SECRET) == shown
    assert redacted(f"GET {SECRET} failed, see {SECRET}") == f"GET {shown} failed, see {shown}"
    for text in (
        "https://example.org/a@b/c.jpg?w=3&h=4",
        "a@b.org",
        "/home/me@x/a.jpg",
        "C:\\a?b=c",
        "monkey=3?page=2",
    ):
        assert redacted(text) == text
    for text in ("http://u@h/", "ftp://u:p@h/", "//u", "s3://key:secret@bucket/x", "http://:p@h", "http://a:b@c@h/x"):
        assert "@" not in redacted(text)


@pytest.mark.parametrize("name", ["apikey", "api_key", "X-Api-Key", "sig", "Signature", "AWSAccessKeyId", "password"])
def test_names_of_secret_parameters(name: str) -> None:
    assert redacted(f"https://h/x?a=1&{name}=s3cret&b=2") == f"https://h/x?a=1&{name}=***&b=2"


def test_what_is_printed_is_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_text(f"a caption\n{HOSTILE}", end="")
    printing.print_error(f"{HOSTILE} {SECRET}")
    with printing.filtered_messages():
        sys.stdout.write(warnings.formatwarning(f"{HOSTILE} {SECRET}", UserWarning, "x.py", 1))
        logging.lastResort.handle(logging.LogRecord("x", 40, "x.py", 1, f"{HOSTILE} {SECRET}", None, None))  # type: ignore[union-attr]
    captured = capsys.readouterr()
    assert captured.out.startswith("a caption\n\\x1b]0;title\\x07")
    for text in (captured.out, captured.err):
        assert is_clean(text) and "pa:ss" not in text and "t0k" not in text
    assert is_clean(printing.one_line(HOSTILE), keep="") and is_clean(image_name(f"{HOSTILE}.jpg"), keep="")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_json_stays_valid_and_keeps_its_values(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    record = {"caption": HOSTILE.replace("\udcff", "").replace("\ud800", "") + '"\\ é', HOSTILE: 1}
    stream = io.TextIOWrapper(io.BytesIO(), encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    printing.print_json(record)
    text = stream.buffer.getvalue().decode()
    assert json.loads(text) == record and is_clean(text) and text.count("\n") == 1


ARGUMENT = HOSTILE.replace("\0", "").replace("\ud800", "")  # what a process can be given
COMMANDS = {
    "unknown option": ["caption", "x.jpg", f"--{ARGUMENT}"],
    "unknown command": [ARGUMENT],
    "report": ["report", ARGUMENT],
    "convert": ["convert", ARGUMENT, "--out", "x"],
    "model": ["caption", "x.jpg", "--model", ARGUMENT],
    "score": ["score", ARGUMENT, ARGUMENT],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_argument_that_a_shell_expanded_is_shown_escaped(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(COMMANDS[name])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    assert status == 2 and is_clean(captured.out + captured.err)
    assert "\\x1b" in captured.err


def test_a_column_of_a_table_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    table.write_text("a\x1b[31mb\u202e,c\n1,2\n", encoding="utf-8")
    assert main(["caption-dataset", str(table), "--out", str(tmp_path / "o.jsonl")]) == 2
    captured = capsys.readouterr()
    assert is_clean(captured.err) and "a\\x1b[31mb\\u202e" in captured.err


def test_a_field_of_a_config_is_shown_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "share4v", "hidden_act": HOSTILE}))
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    captured = capsys.readouterr()
    assert is_clean(captured.err) and captured.err


def test_an_unexpected_error_is_shown_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindone_share4v.commands import report

    def fail(arguments: object) -> int:
        raise KeyError(HOSTILE, "\x1b[31m")

    class HostileError(Exception):
        def __str__(self) -> str:
            return HOSTILE

    def fail_plainly(arguments: object) -> int:
        raise HostileError

    for function in (fail, fail_plainly):
        monkeypatch.setattr(report, "run", function)
        assert main(["report", "x"]) == 1
        captured = capsys.readouterr()
        assert "Traceback" in captured.err and is_clean(captured.err)


def test_an_image_that_fails_is_named_without_its_password() -> None:
    url = "http://user:pass@127.0.0.1:9/x.jpg?token=t0k"
    with pytest.raises(ImageLoadError) as caught:
        load_image(url)
    for text in (str(caught.value), describe(url), image_name(url), failure(url, caught.value)):
        assert "pass" not in text.replace("password", "") and "t0k" not in text
    assert not failure(url, caught.value).startswith("http")


def test_a_listing_keeps_a_password_for_the_download_alone(tmp_path: Path) -> None:
    """The locator has it, since the image must be downloaded; what is recorded has not, and the file is private."""
    path = tmp_path / "inputs.jsonl"
    with ItemBuilder(ReaderOptions()) as builder:
        items = [builder.build_reference(SECRET, str(tmp_path), ".")]
        items += [builder.build_reference("http://user:pa:ss@[bad/x.jpg", str(tmp_path), ".")]
    for item in items:
        assert "pa:ss" in item.locator["url"] and "pa" not in item.key.replace("paths", "")
        assert "pa:ss" not in item.source and "t0k" not in item.source
    write_listing(path, items)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(Listing(path).items()) == items
    assert "user" not in url_keys(SECRET)[0]


def test_the_version_and_help_are_printed_without_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mindone_share4v", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("share4v ")


@pytest.mark.parametrize(
    "name",
    [
        "caf\udce9.jpg",
        "\udcff0a.png",
        "a\nb\t'c' \\x41.png",
        "\u202egpj.exe",
        "\x1b[31m.png",
        "\x85\udc85",
        "\x7f1 $HOME`x`",
    ],
)
def test_a_shell_reads_the_name_that_was_printed(name: str) -> None:
    shown = shell_name(name)
    assert printable(shown, keep="") == shown and shown.isascii()
    command = ["bash", "-c", f"printf %s {shown}"]
    found = subprocess.run(command, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"}).stdout
    assert found == os.fsencode(name)
