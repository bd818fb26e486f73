"""share4v chat: its commands, lines that are typed, and a conversation that outgrows the model's context."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.pictures import encoded, scene
from helpers.terminal import Terminal

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.chat import ChatSession
from mindone_share4v.cli import main
from mindone_share4v.commands import chat as chat_command
from mindone_share4v.commands import chat_history, chat_input


class Echo:
    """A session whose answers tell the number of turns that the model sees, the images and the settings."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.images: Sequence[Any] = ["first"]
        self.dropped = 0

    def reset(self, images: Sequence[Any] | None = None) -> None:
        self.messages = []
        self.images = self.images if images is None else images

    def undo(self) -> str | None:
        return ChatSession.undo(self)  # type: ignore[arg-type]

    def ask(self, question: str, settings: Mapping[str, Any]) -> Iterator[SimpleNamespace]:
        if "fail" in question:
            raise ValueError("max_new_tokens must be positive")
        self.dropped = question.count("drop")
        text = f"{question!r} after {len(self.messages) // 2} turns, {len(self.images)} images, {dict(settings)}"
        yield SimpleNamespace(text=text, generated_tokens=1, seconds=0.0, finish_reason="eos")
        self.messages += [{"role": "user", "content": question}, {"role": "assistant", "content": text}]


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my photo.png"
    path.write_bytes(encoded(scene(1)))
    return path


def chat(monkeypatch: pytest.MonkeyPatch, *lines: str, as_json: bool = False, **settings: Any) -> int:
    """Run a chat that reads these lines from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    arguments = SimpleNamespace(images=["first.png"], json=as_json, max_new_tokens=5, max_image_pixels=None)
    arguments.no_history = True
    return chat_command._Chat(Echo(), arguments, settings).run()  # type: ignore[arg-type]


def test_retry_asks_the_last_question_again(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "/retry", "a", "b", "/retry", "/retry", "c") == 1  # the first has no question
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == [
        "'b' after 1 turns, 1 images, {'seed': 1, 'do_sample': True, 'temperature': 0.7}",
        "'b' after 1 turns, 1 images, {'seed': 2, 'do_sample': True, 'temperature': 0.7}",
        "'c' after 2 turns, 1 images, {}",
    ]
    assert "there is no question to ask again" in err and "asked again with --temperature 0.7" in err
    assert chat(monkeypatch, "a", "/retry", do_sample=True, temperature=0.2, seed=4) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("{'seed': 5}")


def test_image_starts_a_conversation_about_another_image(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photo.parent / "b.png").write_bytes(photo.read_bytes())
    lines = ["a", "/image missing.png", "b", "/image my photo.png", "c", "/image b.png 'my photo.png'", "d", "/image"]
    assert chat(monkeypatch, *lines) == 1
    out, err = capsys.readouterr()
    assert [line.partition(", {")[0] for line in out.splitlines()] == [
        "'a' after 0 turns, 1 images",
        "'b' after 1 turns, 1 images",
        "'c' after 0 turns, 1 images",
        "'d' after 0 turns, 2 images",
    ]
    assert "missing.png: there is no such file" in err and "the conversation is still about first.png" in err
    assert "new conversation about b.png, my photo.png" in err and "/image needs the path" in err


def test_save_writes_a_new_file_only(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "lost", "/reset", "a", "b", "/retry", "/save chat.txt", "/save my chat.json") == 0
    text, saved = Path("chat.txt").read_text(), json.loads(Path("my chat.json").read_text())
    assert text.startswith("Images: first.png\n\n> a\n\n'a' after 0 turns") and text.count("\n> ") == 2
    assert saved["images"] == ["first.png"]
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2
    assert "lost" not in text and "'do_sample': True" in saved["messages"][3]["content"]
    assert "saved 2 questions and their answers in chat.txt" in capsys.readouterr().err
    assert chat(monkeypatch, "c", "/save chat.txt", "/save no/where.txt", "/save") == 1
    error = capsys.readouterr().err
    assert "chat.txt exists and was not changed" in error and "no/where.txt: No such file" in error
    assert Path("chat.txt").read_text() == text


def test_quit_exit_and_help(photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("/quit", "/exit"):
        assert chat(monkeypatch, "/help", word, "not asked") == 0
        out, err = capsys.readouterr()
        assert out == "" and all(name in err for name in ("/image PATH...", "/retry", "/save PATH", "/quit", "/reset"))


def test_a_slash_in_a_pipe_is_a_question_unless_it_is_a_command(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "/etc is what?") == 0
    assert capsys.readouterr().out.startswith("'/etc is what?' after 0 turns")


def test_errors_name_flags_and_dropped_turns_are_reported(
    photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chat(monkeypatch, "fail", "drop", "drop drop", "a", as_json=True) == 1
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    assert records[0]["error"] == "--max-new-tokens must be positive"
    assert [record.get("dropped_turns") for record in records] == [None, 1, 2, None]
    assert "the model's context is full: it no longer sees the oldest question and its answer\n" in err
    assert "it no longer sees the 2 oldest questions and their answers" in err


@pytest.mark.parametrize(
    ("typed", "questions"),
    [
        (["one"], ["one"]),
        (["one \\", "two\\", "three", "four"], ["one \ntwo\nthree", "four"]),
        (['"""one', "", "two", '"""', "three"], ["one\n\ntwo", "three"]),
        (['"""one"""'], ["one"]),
        (['"""', "one", "two"], ["one\ntwo"]),  # Ctrl-D ends it
        (["one", KeyboardInterrupt("half"), "two"], ["one", "two"]),
        (["one\\", KeyboardInterrupt(""), "two"], ["two"]),
        (["  ", "one"], ["one"]),
    ],
)
def test_typed_lines(
    typed: list[str | KeyboardInterrupt], questions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(typed)

    def typed_line(prompt: str) -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, KeyboardInterrupt):
            monkeypatch.setattr(chat_input, "_typed_text", lambda: str(line))
            raise line
        return line

    monkeypatch.setattr("builtins.input", typed_line)
    assert list(chat_input.questions(interactive=True)) == questions


def test_ctrl_c_on_an_empty_line_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    monkeypatch.setattr(chat_input, "_typed_text", str)
    with pytest.raises(KeyboardInterrupt):
        list(chat_input.questions(interactive=True))


def test_a_full_context_drops_the_oldest_turns(
    checkpoint: Path, pictures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each answer is that of the model to the turns that remain."""
    questions = [f"{'why is the red circle there ' * 14} {number}" for number in range(5)]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(questions)))
    assert main(["chat", pictures[0], "--model", str(checkpoint), "--max-new-tokens", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    records = [json.loads(line) for line in out.splitlines()]
    dropped = [record.get("dropped_turns", 0) for record in records]
    assert dropped[0] == 0 and sum(dropped) > 0 and "it no longer sees the oldest question" in err
    answerer = pipeline("image-text-to-text", str(checkpoint))
    for number, record in enumerate(records):
        seen = records[sum(dropped[: number + 1]) : number]
        turns = [
            {"role": role, "content": turn[name]}
            for turn in seen
            for role, name in (("user", "question"), ("assistant", "answer"))
        ]
        settings = {"max_new_tokens": 4}
        chat = [*turns, {"role": "user", "content": record["question"]}]
        assert answerer.answer([chat], [pictures[:1]], settings)[0].text == record["answer"]


def test_history_is_kept_for_later_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readline = pytest.importorskip("readline", exc_type=ImportError)
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    stored = tmp_path / "home" / "chat_history"

    def typing(*lines: str, **options: Any) -> list[str]:
        """Type these lines; return what the arrow keys recalled before."""
        typed, before = iter(lines), []

        def typed_line(prompt: str) -> str:
            if not before:
                before.extend(map(readline.get_history_item, range(1, readline.get_current_history_length() + 1)))
            if (line := next(typed, None)) is None:
                raise EOFError
            readline.add_history(line)
            return line

        monkeypatch.setattr("builtins.input", typed_line)
        assert list(chat_input.questions(interactive=True, **options)) == list(lines)
        return before

    typing("of another program")
    typing("Who?", "Caf\u00e9?", keeps_history=True)
    assert stored.read_text(encoding="utf-8") == "Who?\nCaf\u00e9?\n"
    assert stored.stat().st_mode & 0o777 == 0o600
    stored.chmod(0o644)
    assert typing("Why?", keeps_history=True) == ["Who?", "Caf\u00e9?"]
    assert stored.read_text(encoding="utf-8") == "Who?\nCaf\u00e9?\nWhy?\n" and stored.stat().st_mode & 0o777 == 0o600
    before = stored.read_bytes()
    typing("secret")
    assert stored.read_bytes() == before
    with closing(chat_input.questions(interactive=True, keeps_history=True)) as lines:
        monkeypatch.setattr("builtins.input", lambda prompt: readline.add_history("last") or "last")
        next(lines)
    assert stored.read_bytes() == before + b"last\n"
    monkeypatch.setattr(chat_history, "MAX_LINES", 2)
    assert typing("x", keeps_history=True) == ["Why?", "last"] and stored.read_bytes() == b"last\nx\n"


@pytest.mark.parametrize("size", [2, 0])
def test_the_size_of_the_history_in_an_inputrc_does_not_shorten_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It is how many lines the arrow keys recall; 0 asks for no history, so nothing is added."""
    readline = pytest.importorskip("readline", exc_type=ImportError)
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path))
    stored = tmp_path / "chat_history"
    stored.write_text("".join(f"Question {number}\n" for number in range(5)))
    typed = iter(["Who?", "Who?", "Why?", "Where?"])

    def typed_line(prompt: str) -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        readline.add_history(line)
        return line

    monkeypatch.setattr("builtins.input", typed_line)
    readline.parse_and_bind(f"set history-size {size}")
    try:
        assert len(list(chat_input.questions(interactive=True, keeps_history=True))) == 4
        assert readline.get_current_history_length() == size
    finally:
        readline.parse_and_bind("set history-size -1")
    added = ["Who?", "Why?", "Where?"] if size else []
    assert stored.read_text().splitlines() == [*(f"Question {number}" for number in range(5)), *added]


def test_a_history_that_cannot_be_used_does_not_stop_a_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: "Why?")
    (tmp_path / "chat_history").mkdir()
    for home in (tmp_path, "/dev/null/nowhere"):
        monkeypatch.setenv("SHARE4V_HOME", str(home))
        with closing(chat_input.questions(interactive=True, keeps_history=True)) as lines:
            assert next(lines) == "Why?"
        assert "questions of earlier chats cannot be read" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "readline", None)
    with closing(chat_input.questions(interactive=True, keeps_history=True)) as lines:
        assert next(lines) == "Why?"
    assert capsys.readouterr().err == ""


def test_a_chat_on_a_terminal(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a person types: half a line and Ctrl-C, several lines, arrow up, and the chat's commands."""
    monkeypatch.setenv("SHARE4V_HOME", str(tmp_path / "home"))
    (photo.parent / "other.png").write_bytes(encoded(scene(5)))
    terminal = Terminal(["chat", "my photo.png", "--max-new-tokens", "8"], photo.parent)
    terminal.read_until(lambda text: "share4v: starting MindSpore" in text)
    terminal.read_until(lambda text: "share4v: loading sharegpt4v-tiny" in text)
    terminal.read_until(lambda text: text.endswith("> "))

    terminal.type("half a questio")
    terminal.read_until(lambda text: text.endswith("> half a questio"))
    terminal.interrupt_until("discarded; Ctrl-C on an empty line, Ctrl-D or /quit leave", seconds=10)
    terminal.read_until(lambda text: text.endswith("> "))
    terminal.type("Describe \\\n")
    terminal.read_until(lambda text: text.endswith("... "))
    terminal.type("this image\n")
    terminal.read_until(lambda text: "In the " in text and text.endswith("> "))
    terminal.type("/retry\n")
    terminal.read_until(lambda text: "asked again with --temperature 0.7" in text and text.endswith("> "))
    terminal.type("/image other.png\n")
    terminal.read_until(lambda text: "new conversation about other.png" in text and text.endswith("> "))
    terminal.type("Describe this image\n")
    terminal.read_until(lambda text: text.partition("about other.png")[2].count("In the ") >= 1 and text.endswith("> "))
    terminal.type("\x1b[A")  # arrow up
    terminal.read_until(lambda text: text.endswith("> Describe this image"))
    terminal.type("\x15/sav chat.txt\n")  # Ctrl-U deletes the line
    terminal.read_until(lambda text: "Did you mean /save?" in text and text.endswith("> "))
    terminal.type("/save chat.txt\n")
    terminal.read_until(lambda text: "saved 1 question and their answers in chat.txt" in text and text.endswith("> "))
    terminal.type("/quit\n")
    assert terminal.finish() == 0, terminal.text
    assert "Traceback" not in terminal.text
    assert (tmp_path / "home" / "chat_history").read_text().endswith("\n/sav chat.txt\n/save chat.txt\n/quit\n")
    saved = (photo.parent / "chat.txt").read_text()
    assert saved.startswith("Images: other.png\n\n> Describe this image\n\nIn the ")
