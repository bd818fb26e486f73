"""share4v: output, exit statuses, and its behaviour on a terminal, in a pipe and when interrupted."""

from __future__ import annotations

import argparse
import base64
import fcntl
import io
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers.terminal import DEADLINE, SHARE4V, Terminal

from mindone.models.share4v import Share4V, resolve
from mindone.pipelines import pipeline
from mindone_share4v.arguments import COMMANDS
from mindone_share4v.cli import main
from mindone_share4v.commands import caption as caption_command
from mindone_share4v.printing import one_line

TOKENS = ["--max-new-tokens", "12"]


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> Share4V:
    return Share4V.from_pretrained(checkpoint)


@pytest.fixture
def one_model(monkeypatch: pytest.MonkeyPatch, loaded: Share4V) -> None:
    """Let commands in this process share one model, so that its graphs are compiled once."""
    load = Share4V.from_pretrained

    def from_pretrained(name: str | Path, *rest: Any, **options: Any) -> Share4V:
        plain = Path(name).is_dir() and options.get("dtype") is None and options.get("vision_tower") is None
        return loaded if plain else load(name, *rest, **options)

    monkeypatch.setattr(Share4V, "from_pretrained", from_pretrained)


@pytest.fixture(scope="module")
def captions(loaded: Share4V, checkpoint: Path, pictures: list[str]) -> list[str]:
    """Return the pipeline's caption of each image."""
    captioner = pipeline("image-to-text", loaded, str(checkpoint))
    return [one_line(captioner(path, max_new_tokens=12)[0]["generated_text"]) for path in pictures]


def lines_of(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    captured = capsys.readouterr()
    return captured.out.splitlines(), captured.err.splitlines()


# The parser


def test_the_parser_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom mindone_share4v.cli import build_parser, main\nbuild_parser()\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'mindspore', 'mindone', 'numpy', 'transformers', 'PIL', 'tqdm', 'requests'} & set(sys.modules)))"
    )
    for arguments in (["--help"], ["caption", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=DEADLINE
        )
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    out, _ = lines_of(capsys)
    text = "\n".join(out)
    assert end.value.code == 0 and "examples:\n" in text and "exit status:" in text
    parser = argparse.ArgumentParser()
    COMMANDS[name].add_arguments(parser)
    assert [flag for action in parser._actions for flag in action.option_strings if flag not in text] == []
    # The usage line is written by hand: it names everything that must be given.
    required = [action for action in parser._actions if action.required or not action.option_strings]
    assert set(re.findall(r"--\w+|[A-Z]+", out[0].split("[OPTION]...")[1])) == {
        text for action in required for text in (*action.option_strings, action.metavar)
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported_and_run(name: str) -> None:
    assert callable(import_module(f"mindone_share4v.commands.{name.replace('-', '_')}").run)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and lines_of(capsys)[0][0].startswith("share4v ")


@pytest.mark.parametrize(
    "argv",
    [[], ["captoin"], ["caption"], ["caption", "a.png", "--temprature", "1"], ["convert", "a"], ["caption", "--max"]],
)
def test_usage_errors_of_argparse(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    (line,) = lines_of(capsys)[1]
    assert end.value.code == 2 and line.startswith("share4v") and " --help" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["captoin"], "unknown command 'captoin'. Did you mean 'caption'?"),
        (["caption", "a.png", "--temprature", "1"], "unknown option --temprature. Did you mean --temperature?"),
        (["caption", "a.png", "--tempreature=1"], "unknown option --tempreature. Did you mean --temperature?"),
        (["caption-dataset", "a", "--existing", "skp"], "--existing must be one of skip, overwrite, append, prepend"),
        (["caption-dataset", "a", "--existing", "skp"], "got 'skp'. Did you mean 'skip'?"),
        (["convert", "a", "--out", "b", "--dtype", "int5"], "--dtype must be one of float32, float16, bfloat16, int8"),
        (["caption-dataset", "a", "--captions", "two"], "--captions must be a whole number, got 'two'"),
        (["caption", "a.png", "--temperature", "hot"], "--temperature must be a number, got 'hot'"),
        (["caption", "a.png", "--prompt"], "--prompt needs a value"),
        (["convert", "a"], "--out is missing"),
        (["report", "a", "b"], "unexpected argument 'b'"),
    ],
)
def test_a_wrong_argument_is_reported_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    (line,) = lines_of(capsys)[1]
    assert message in line and "usage:" not in line and "invalid" not in line


# caption, in this process


@pytest.mark.usefixtures("one_model")
def test_caption_to_a_pipe(
    checkpoint: Path, pictures: list[str], captions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--model", str(checkpoint), *TOKENS]
    assert main(["caption", pictures[0], *run]) == 0
    assert lines_of(capsys) == ([captions[0]], [])
    assert main(["caption", *pictures, *run, "--batch-size", "2"]) == 0
    assert lines_of(capsys) == ([f"{path}\t{text}" for path, text in zip(pictures, captions, strict=True)], [])


@pytest.mark.usefixtures("one_model")
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_bad_image_is_reported_and_the_others_are_captioned(
    checkpoint: Path,
    pictures: list[str],
    captions: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    batch_size: int,
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    images = ["missing.png", pictures[0], str(tmp_path / "notes.txt"), pictures[1], "http://127.0.0.1:9/p.png"]
    status = main(["caption", *images, "--model", str(checkpoint), *TOKENS, "--batch-size", str(batch_size)])
    out, err = lines_of(capsys)
    assert status == 1
    assert out == [f"{pictures[0]}\t{captions[0]}", f"{pictures[1]}\t{captions[1]}"]
    assert [line.split(": ")[:2] for line in err] == [["share4v", images[place]] for place in (0, 2, 4)]
    assert "there is no such file" in err[0] and "not an image format" in err[1] and "download failed" in err[2]


@pytest.mark.usefixtures("one_model")
def test_caption_json(
    checkpoint: Path, pictures: list[str], captions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", pictures[0], "missing.png", "--model", str(checkpoint), *TOKENS, "--json"]) == 1
    out, err = lines_of(capsys)
    first, second = map(json.loads, out)
    assert (first["image"], one_line(first["caption"])) == (pictures[0], captions[0])
    assert (first["tokens"], first["finish_reason"]) == (12, "length") and first["seconds"] > 0
    assert set(first) == {"image", "caption", "tokens", "seconds", "finish_reason"}
    assert set(second) == {"image", "error"} and second["image"] == "missing.png"
    assert len(err) == 1


@pytest.mark.usefixtures("one_model")
def test_settings_reach_generate(
    loaded: Share4V, checkpoint: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    captioner = pipeline("image-to-text", loaded, str(checkpoint))
    cases: list[tuple[list[str], dict[str, Any]]] = [
        (["--temperature", "1.5", "--seed", "4"], {"do_sample": True, "temperature": 1.5, "seed": 4}),
        (
            ["--temperature", "2", "--seed", "4", "--top-p", "0.7", "--top-k", "9"],
            {"do_sample": True, "temperature": 2.0, "seed": 4, "top_p": 0.7, "top_k": 9},
        ),
        (["--num-beams", "2"], {"num_beams": 2}),
        (["--repetition-penalty", "1.6"], {"repetition_penalty": 1.6}),
        (["--stop", "b", "--stop", "d"], {"stop": ["b", "d"]}),
        (["--min-new-tokens", "3"], {"min_new_tokens": 3}),
    ]
    for flags, settings in cases:
        assert main(["caption", pictures[2], "--model", str(checkpoint), *TOKENS, *flags]) == 0
        expected = captioner(pictures[2], generate_kwargs={**settings, "max_new_tokens": 12})[0]["generated_text"]
        assert lines_of(capsys) == ([one_line(expected)], [])
    flags = ["--prompt", "Why?", "--conversation", "share4v_v1"]
    assert main(["caption", pictures[2], "--model", str(checkpoint), *TOKENS, *flags]) == 0
    expected = captioner(pictures[2], "Why?", max_new_tokens=12, conversation="share4v_v1")[0]["generated_text"]
    assert lines_of(capsys)[0] == [one_line(expected)]


@pytest.mark.usefixtures("one_model")
def test_a_greedy_run_notes_flags_without_effect(
    checkpoint: Path, pictures: list[str], captions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", pictures[0], "--model", str(checkpoint), *TOKENS, "--top-p", "0.5"]) == 0
    out, err = lines_of(capsys)
    assert out == captions[:1] and len(err) == 1 and "--top-p" in err[0]


@pytest.mark.usefixtures("one_model")
def test_data_uris_and_standard_input(
    checkpoint: Path,
    pictures: list[str],
    captions: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Path(pictures[1]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    assert main(["caption", "-", uri, "--model", str(checkpoint), *TOKENS]) == 0
    out, _ = lines_of(capsys)
    assert out[0] == f"-\t{captions[1]}" and out[1].endswith(f"\t{captions[1]}") and len(out[1]) < 200


@pytest.mark.usefixtures("one_model")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "--temperature must be "),
        (["--top-p", "2", "--temperature", "1"], "--top-p must be "),
        (["--max-new-tokens", "0"], "--max-new-tokens must be"),
        (
            ["--num-beams", "2", "--temperature", "1"],
            "--num-beams above 1 cannot be combined with a --temperature above 0",
        ),
        (["--stop", ""], "each stop string "),
        (["--batch-size", "0"], "--batch-size must be 1 or more"),
        (["--conversation", "vicuna"], "Did you mean 'vicuna_v1'"),
        (["--prompt", "<image> <image>"], "has 2 <image>"),
        (["--prompt", "why " * 600], "the model's context is 512"),
        (["--dtype", "int3"], "error: --dtype 'int3' is not supported"),
        (["--vision-tower", "none-such"], "vision tower 'none-such'"),
        (["--model", "no/such/directory", "--local-files-only"], "no/such/directory"),
        (["--model", "sharegpt4v-8b"], "Did you mean 'sharegpt4v-7b'"),
    ],
)
def test_bad_values_are_usage_errors(
    checkpoint: Path, pictures: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", pictures[0], "--model", str(checkpoint), *flags]) == 2
    out, err = lines_of(capsys)
    assert out == [] and err[-1 if message != "vision tower 'none-such'" else 0].startswith("share4v: error: ")
    assert message in "\n".join(err) and "Traceback" not in "\n".join(err)


def test_one_line() -> None:
    assert one_line("a\n\n b\tc\r\nd \x1b[31m\x07é\u3000") == "a b c d \\x1b[31m\\x07é"


def test_errors_of_images_are_not_delayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images stay in order, batches are full, and an error is reported at once if no image waits before it."""
    good, bad = "good", "bad"
    given = [bad, good, bad, good, good, bad]
    images = [caption_command.LoadedImage(f"{n}", object() if kind == good else None) for n, kind in enumerate(given)]  # type: ignore[arg-type]
    groups = [[int(loaded.name) for loaded in group] for group in caption_command.batches(iter(images), 2)]
    assert groups == [[0], [1, 2, 3], [4, 5]]


# chat and convert, in this process


@pytest.mark.usefixtures("one_model")
def test_chat_from_a_pipe(
    loaded: Share4V,
    checkpoint: Path,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processor = pipeline("image-to-text", loaded, str(checkpoint)).processor

    def answer(*turns: str) -> str:
        roles = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(turns)]
        ids = loaded.generate(**processor(images=pictures[:1], text=roles), max_new_tokens=12)
        return processor.batch_decode(ids)[0]

    first = answer("What?")
    expected = [first, answer("What?", first, "Why?"), first]
    chat = ["chat", pictures[0], "--model", str(checkpoint), *TOKENS]
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n\nWhy?\n/reset\nWhat?\n/exit\nnot asked\n"))
    assert main(chat) == 0
    assert lines_of(capsys)[0] == [one_line(text) for text in expected]
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"What?\n{'why ' * 600}\nWhy?"))
    assert main([*chat, "--json"]) == 1
    out, err = lines_of(capsys)
    records = [json.loads(line) for line in out]
    assert [record.get("answer") for record in records] == [expected[0], None, expected[1]]
    assert set(records[0]) == {"question", "answer", "tokens", "seconds", "finish_reason"}
    assert "context is 512" in records[1]["error"] and "context is 512" in err[0] and "/reset" in err[0]


@pytest.mark.usefixtures("one_model")
def test_chat_with_a_missing_image(checkpoint: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "missing.png", pictures[0], "--model", str(checkpoint)]) == 1
    (line,) = lines_of(capsys)[1]
    assert line.startswith("share4v: missing.png: there is no such file")
    assert main(["chat", "-", "--model", str(checkpoint)]) == 2
    assert "questions are read from standard input" in lines_of(capsys)[1][0]


@pytest.mark.parametrize("out", [["--out", "new"], ["--out", "new.gguf", "--mmproj", "mmproj.gguf"]])
def test_convert_reads_the_revision_and_folder_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "sharegpt4v-tiny", "--revision", "v1", *out]) == 2
    assert "'v1' was given, but sharegpt4v-tiny is part of this package" in capsys.readouterr().err
    Path("parent").mkdir()
    Path("parent/model").symlink_to(resolve("sharegpt4v-tiny"))
    assert main(["convert", "parent", "--subfolder", "model", *out]) == 0


def test_convert(
    checkpoint: Path, pictures: list[str], captions: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "converted"
    assert main(["convert", str(checkpoint), "--out", str(out)]) == 0
    assert lines_of(capsys)[0][0].startswith(f"{out}: ")
    assert pipeline("image-to-text", out)(pictures[0], max_new_tokens=1)
    weights = (out / "model.safetensors").read_bytes()
    assert main(["convert", str(checkpoint), "--out", str(out), "--dtype", "float16"]) == 0
    assert len((out / "model.safetensors").read_bytes()) < 0.7 * len(weights)
    capsys.readouterr()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "full")]) == 2
    assert main(["convert", str(tmp_path / "missing"), "--out", str(tmp_path / "new")]) == 2
    err = lines_of(capsys)[1]
    assert len(err) == 2 and "thesis" not in "".join(err) and all(line.startswith("share4v: error: ") for line in err)
    assert (tmp_path / "full" / "thesis.txt").exists() and not (tmp_path / "new").exists()


# In a separate process


def start(*argv: str, cwd: Path, program: Sequence[str] = SHARE4V) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*program, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=cwd
    )


needs_small_pipes = pytest.mark.skipif(
    not hasattr(fcntl, "F_SETPIPE_SZ"), reason="only Linux changes how much a pipe holds"
)


def start_into_small_pipe(*argv: str, cwd: Path, program: Sequence[str] = SHARE4V) -> subprocess.Popen[str]:
    """As `start`; once the process has written 4096 bytes, it waits for readers."""
    readable, writable = os.pipe()
    try:  # before it starts: the size of a pipe that holds more cannot be changed
        fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, 4096)
        process = subprocess.Popen(
            [*program, *argv], stdout=writable, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, cwd=cwd
        )
    except BaseException:
        os.close(readable)
        raise
    finally:
        os.close(writable)
    process.stdout = os.fdopen(readable)  # as Popen opens its own, for `communicate`
    return process


@contextmanager
def killed_at_last(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill the process at the end of the `with` block, if it has not ended: one that is stopped would stay."""
    with process:  # waits for it
        try:
            yield
        finally:
            process.kill()


def has_stopped(process: subprocess.Popen[str], seconds: float = DEADLINE) -> bool:
    """Wait until a process is stopped or has ended, and return whether it is stopped; fails if it is neither."""
    deadline, events = time.monotonic() + seconds, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
    while (state := os.waitid(os.P_PID, process.pid, events)) is None:
        assert time.monotonic() < deadline, f"the process has neither stopped nor ended in {seconds:g} s"
        time.sleep(0.05)
    return state.si_code == os.CLD_STOPPED


def test_a_process_that_neither_stops_nor_ends_does_not_hang_the_tests(tmp_path: Path) -> None:
    process = start(cwd=tmp_path, program=[sys.executable, "-c", "import time; time.sleep(3600)"])
    with pytest.raises(AssertionError, match="neither stopped nor ended"), killed_at_last(process):
        has_stopped(process, 0.1)
    assert process.returncode == -signal.SIGKILL


@needs_small_pipes
def test_a_small_pipe_is_small_from_the_start(tmp_path: Path) -> None:
    """What a process has written before its parent goes on must not matter: the parent may be stopped for a while."""
    process = start_into_small_pipe(cwd=tmp_path, program=[sys.executable, "-c", "print('x' * 50_000)"])
    assert process.stdout is not None
    with killed_at_last(process):
        assert fcntl.fcntl(process.stdout, fcntl.F_GETPIPE_SZ) == 4096
        assert process.stdout.read() == "x" * 50_000 + "\n" and process.wait(DEADLINE) == 0


def test_only_the_caption_is_printed_and_no_file_is_left(
    checkpoint: Path, pictures: list[str], captions: list[str], tmp_path: Path
) -> None:
    process = start("caption", pictures[0], "--model", str(checkpoint), *TOKENS, cwd=tmp_path)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (0, f"{captions[0]}\n", "")
    assert list(tmp_path.iterdir()) == []


@needs_small_pipes
def test_interruption_while_captioning(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    images = pictures * 40
    options = ["--model", str(checkpoint), "--max-new-tokens", "300", "--json"]
    # It cannot complete all of them, however late the signal is.
    process = start_into_small_pipe("caption", *images, *options, cwd=tmp_path)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and err == "share4v: interrupted\n"
    assert first["image"] == pictures[0] and len(out.splitlines()) < len(images) - 1
    assert all("caption" in json.loads(line) for line in out.splitlines())


# Runs share4v, and stops the process once, while it imports a module of MindSpore, whose C++ library is loaded.
STOPS_WHILE_IMPORTING = """
import os, signal, sys
from mindone_share4v.cli import main

class Stop:
    def find_spec(self, name, *_):
        if name.startswith("mindspore.") and "mindspore._c_expression" in sys.modules:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGSTOP)

sys.meta_path.insert(0, Stop())
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_while_mindspore_is_imported(
    checkpoint: Path, pictures: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """The signal comes while the process is stopped inside the import, so it does not matter how late it is sent."""
    program = [sys.executable, "-c", STOPS_WHILE_IMPORTING]
    process = start("caption", pictures[0], "--model", str(checkpoint), cwd=tmp_path, program=program)
    with killed_at_last(process):
        assert has_stopped(process), process.communicate(timeout=DEADLINE)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (130, "", "share4v: interrupted\n")


def test_an_interrupted_conversion_leaves_no_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mindone.models.share4v import conversion

    def interrupted(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(DEADLINE)  # the signal handler interrupts this

    monkeypatch.setattr(conversion, "_copy_companions", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["convert", str(checkpoint), "--out", str(tmp_path / "out")]) == 130
    assert lines_of(capsys)[1] == ["share4v: interrupted"]
    assert list((tmp_path / "out").iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@needs_small_pipes
def test_a_closed_pipe_is_not_an_error(
    checkpoint: Path, pictures: list[str], captions: list[str], tmp_path: Path
) -> None:
    # The pipe holds less than the captions have: the process waits for readers.
    process = start_into_small_pipe("caption", *pictures * 40, "--model", str(checkpoint), *TOKENS, cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == f"{pictures[0]}\t{captions[0]}\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(DEADLINE) == 141


# On a terminal


def test_caption_on_a_terminal_streams(
    checkpoint: Path, pictures: list[str], captions: list[str], tmp_path: Path
) -> None:
    terminal = Terminal(
        ["caption", pictures[0], "missing.png", pictures[1], "--model", str(checkpoint), *TOKENS], tmp_path
    )
    assert terminal.finish() == 1
    text = terminal.text
    places = [text.index(f"{pictures[0]}:\n"), text.index("share4v: missing.png: "), text.index(f"{pictures[1]}:\n")]
    assert places == sorted(places)
    shown = [" ".join(part.split()) for part in text.replace("\r", "\n").split(".png:\n")[1:]]
    assert shown[0].startswith(captions[0]) and shown[1].startswith(captions[1])


class Screen(io.StringIO):
    """A terminal that keeps every piece of text that it was made to show."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = [""]

    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        if self.getvalue() != self.shown[-1]:
            self.shown.append(self.getvalue())


def test_a_terminal_shows_a_caption_while_it_is_generated(
    checkpoint: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch, one_model: None
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["caption", *pictures[:2], "--model", str(checkpoint), *TOKENS]) == 0
    assert len(screen.shown) > 8  # more pieces than lines


# The command, whose answer to a question stops after some words until there is a signal.
HALTING = """
import os, select, signal, sys
from mindone.pipelines.image_to_text.chat import ChatSession
from mindone_share4v.cli import main
arrived, arrives = os.pipe()
os.set_blocking(arrives, False)
signal.set_wakeup_fd(arrives)
ask = ChatSession.ask

def halting(session, *arguments):
    for number, piece in enumerate(ask(session, *arguments)):
        if number == 8:
            select.select([arrived], [], [], 600)
        yield piece

ChatSession.ask = halting
sys.exit(main())
"""


def test_chat_on_a_terminal(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    arguments = ["chat", pictures[0], "--model", str(checkpoint), "--max-new-tokens", "400"]
    terminal = Terminal(arguments, tmp_path, [sys.executable, "-c", HALTING])
    terminal.read_until(lambda text: text.count("> ") == 1)
    terminal.type("Why is it?\n")
    terminal.read_until(lambda text: len(text.partition("Why is it?")[2].strip()) > 8)
    terminal.type("\x03")  # Ctrl-C ends the answer, not the chat
    terminal.read_until(
        lambda text: (
            "stopped; this question and its answer are left out of the conversation" in text and text.endswith("> ")
        )
    )
    terminal.type("/help\n")
    terminal.read_until(lambda text: "/reset" in text and text.endswith("> "))
    terminal.type("/rest\n")
    terminal.read_until(lambda text: "unknown command /rest" in text and text.endswith("> "))
    terminal.type("\x04")
    assert terminal.finish() == 0 and "Traceback" not in terminal.text


def test_interruption_at_the_prompt(checkpoint: Path, pictures: list[str], tmp_path: Path) -> None:
    terminal = Terminal(["chat", pictures[0], "--model", str(checkpoint)], tmp_path)
    before = termios.tcgetattr(terminal.descriptor)
    terminal.read_until(lambda text: "> " in text)
    terminal.interrupt_until("interrupted", seconds=1)
    assert termios.tcgetattr(terminal.descriptor) == before  # echo is on again
    assert terminal.finish() == 130
    assert "share4v: interrupted" in terminal.text and "Traceback" not in terminal.text
