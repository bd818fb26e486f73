"""`share4v caption-dataset` as a user runs it: the output is what the flags ask for."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from helpers.pictures import encoded, scene
from helpers.warm_processes import warm_python

from mindone.pipelines import pipeline
from mindone_share4v.cli import main
from mindone_share4v.printing import one_line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(encoded(scene(number)))
    return folder


def captions(path: Path) -> list[str]:
    return [json.loads(line)["caption"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_restart_with_other_settings_gives_other_captions(photos: Path, tmp_path: Path) -> None:
    """Captions of identical images are reused, but not across settings."""
    out = tmp_path / "out.jsonl"
    assert main(["caption-dataset", str(photos), "--out", str(out)]) == 0
    whole = captions(out)
    assert main(["caption-dataset", str(photos), "--out", str(out), "--max-new-tokens", "3"]) == 3
    assert captions(out) == whole
    assert main(["caption-dataset", str(photos), "--out", str(out), "--max-new-tokens", "3", "--restart"]) == 0
    assert all(len(short) < len(long) for short, long in zip(captions(out), whole, strict=True))


def test_a_record_describes_how_it_was_made(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["caption-dataset", str(photos), "--out", str(out), "--seconds", "--max-new-tokens", "5"]) == 0
    for line in out.read_text().splitlines():
        record = json.loads(line)
        assert record["sha256"] == sha256(Path(record["source"]).read_bytes()).hexdigest()
        assert record["model"] == "sharegpt4v-tiny" and record["dtype"] == "float32" and record["seconds"] > 0
        assert record["settings"]["max_new_tokens"] == 5 and record["tokens"] == [5]
        assert record["finish_reasons"] == ["length"] and len(record["prompts"]) == 1 and record["caption"]


def test_the_same_command_captions_images_that_were_added_later(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["caption-dataset", str(photos), "--out", str(out)]) == 0
    before = captions(out)
    (photos / "9.png").write_bytes(encoded(scene(9)))
    assert main(["caption-dataset", str(photos), "--out", str(out)]) == 0
    assert captions(out)[:4] == before and len(captions(out)) == 5


@pytest.mark.parametrize("form", ["jsonl", "txt", "parquet"])
def test_retry_failed_processes_only_the_inputs_that_failed(
    photos: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (photos / "1.png").read_bytes()
    (photos / "1.png").write_bytes(good[:50])
    (photos / "2.png").write_bytes(b"")
    out = tmp_path / ("texts" if form == "txt" else f"out.{form}")
    command = ["caption-dataset", str(photos), "--out", str(out), "--format", form]
    assert main(command) == 1 and "2 captioned" in capsys.readouterr().err
    (photos / "1.png").write_bytes(good)
    assert main(command) == 1 and " 0 captioned" in capsys.readouterr().err
    assert main([*command, "--retry-failed"]) == 1
    assert " 1 captioned" in capsys.readouterr().err
    (photos / "2.png").write_bytes(encoded(scene(2)))
    assert main([*command, "--retry-failed"]) == 0 and " 1 captioned" in capsys.readouterr().err
    whole = tmp_path / ("whole" if form == "txt" else f"whole.{form}")
    assert main(["caption-dataset", str(photos), "--out", str(whole), "--format", form]) == 0
    assert read(out) == read(whole)


def read(path: Path) -> object:
    if path.suffix == ".parquet":
        import pandas

        return pandas.read_parquet(path)["caption"].tolist()
    if path.is_dir():
        return {one.name: one.read_text() for one in path.glob("*.txt")}
    return captions(path)


def test_existing_captions_beside_pictures(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--existing keeps, joins or replaces captions; each image has one, and a second run changes nothing."""
    (photos / "1.txt").write_text("sks dog")
    assert main(["caption-dataset", str(photos)]) == 0
    made = {path.name: path.read_text() for path in photos.glob("*.txt")}
    assert len(made) == 4 and made["1.txt"] == "sks dog" and "1 kept" in capsys.readouterr().err
    joined = ["caption-dataset", str(photos), "--existing", "prepend", "--restart"]
    assert main(joined) == 0
    text = (photos / "1.txt").read_text()
    assert text.endswith("sks dog\n") or text.endswith("sks dog")
    assert len(text) > len("sks dog") + 20
    assert main(joined[:-1]) == 0
    assert (photos / "1.txt").read_text() == text
    assert main(["caption-dataset", str(photos), "--existing", "overwrite", "--restart"]) == 0
    assert "sks dog" not in (photos / "1.txt").read_text()
    assert (photos / "0.txt").read_text() == made["0.txt"]


def test_several_captions_of_an_image(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, texts = tmp_path / "out.jsonl", tmp_path / "texts"
    asked = ["--style", "one-sentence", "--style", "default", "--captions", "2"]
    assert main(["caption-dataset", str(photos), "--out", str(out), *asked]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(len(record["captions"]) == len(set(record["prompts"])) == 2 for record in records)
    assert "note:" not in capsys.readouterr().err
    same = ["--prompt", "Describe this image", "--captions", "2", "--max-new-tokens", "4"]
    assert main(["caption-dataset", str(photos), "--out", str(texts), "--format", "txt", *same]) == 0
    assert "the answers are the same too" in capsys.readouterr().err
    assert all(len(path.read_text().splitlines()) == 2 for path in texts.glob("*.txt"))


def test_lengths_and_openings(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["caption-dataset", str(photos), "--out", str(out), "--min-words", "5000", "--attempts", "1"]) == 0
    whole, records = captions(out), [json.loads(line) for line in out.read_text().splitlines()]
    assert all("at least 5000 required" in " ".join(record["notes"]) for record in records)
    opening = whole[0].split()[0]
    cut = ["--max-sentences", "1", "--strip", opening, "--restart"]
    assert main(["caption-dataset", str(photos), "--out", str(out), *cut]) == 0
    assert all(text.count(".") <= 1 and not text.startswith(opening) for text in captions(out))
    capsys.readouterr()
    assert main(["caption-dataset", str(photos), "--out", str(out), "--min-words", "9", "--max-words", "3"]) == 2
    said = capsys.readouterr().err
    assert "--min-words 9 is more than --max-words 3" in said


def test_a_table_with_keys_and_an_image_root(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "lists" / "table.csv"
    table.parent.mkdir()
    table.write_text("name,image\nfirst,1.png\nsecond,3.png\n")
    out = tmp_path / "out.jsonl"
    named = ["--key-column", "name", "--image-root", str(photos)]
    assert main(["caption-dataset", str(table), "--out", str(out), *named, "--max-new-tokens", "4"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["key"] for record in records] == ["first", "second"]
    assert all(record["caption"] for record in records)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no INPUT is given"),
        (["nowhere"], "nowhere"),
        (["photos", "--style", "no-such-style"], "no-such-style"),
        (["photos", "--format", "xml", "--out", "x"], "xml"),
        (["photos", "--prompt", "What about {nothing}?"], "nothing"),
        (["photos", "--attempts", "9"], "--attempts must"),
        (["photos", "--batch-size", "0"], "--batch-size must"),
        (["photos", "--require", "cat", "--forbid", "cat"], "cat"),
        (["photos", "--out", "photos/0.png"], "0.png"),
        (["photos", "--image-root", "nowhere"], "nowhere"),
        (["photos", "--num-beams", "3"], "beams"),
        (["photos/0.png", "photos/1.png", "--out", "photos/1.png"], "1.png"),
    ],
)
def test_usage_errors_are_reported_without_a_traceback(
    photos: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(photos.parent)
    try:
        status = main(["caption-dataset", *arguments])
    except SystemExit as end:  # argparse
        status = end.code
    errors = capsys.readouterr().err
    assert status in (1, 2, 3) and said in errors
    assert "Traceback" not in errors
    assert len(list(photos.glob("*.png"))) == 4 and (photos / "0.png").read_bytes() == encoded(scene(0))


def test_a_usage_error_of_the_installed_command(photos: Path) -> None:
    done = subprocess.run(
        [warm_python(), "-m", "mindone_share4v", "caption-dataset", "photos", "--num-beams", "3"],
        capture_output=True,
        text=True,
        cwd=photos.parent,
        check=False,
    )
    assert done.returncode in (1, 2, 3) and "beams" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_complete_prompt_gives_every_command_the_answer_of_the_pipeline(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prompt of every LLaVA example: no command puts it into the template again."""
    prompt = "USER: <image>\nDescribe this image\nASSISTANT:"
    images = sorted(map(str, photos.iterdir()))[:2]
    captioner = pipeline("image-to-text")
    texts = [one_line(answer[0]["generated_text"]) for answer in captioner(images, prompt=prompt, max_new_tokens=40)]
    settings = ["--prompt", prompt, "--max-new-tokens", "40"]
    assert main(["caption", *images, *settings]) == 0
    assert [line.partition("\t")[2] for line in capsys.readouterr().out.splitlines()] == texts
    out, prompts = tmp_path / "out.jsonl", tmp_path / "prompts.txt"
    assert main(["caption-dataset", *images, "--out", str(out), *settings]) == 0
    assert captions(out) == texts
    prompts.write_text(prompt.replace("\n", "\\n"))
    out = tmp_path / "from_file.jsonl"
    command = ["caption-dataset", *images, "--out", str(out), "--prompt-file", str(prompts), "--max-new-tokens", "40"]
    assert main(command) == 0
    assert captions(out) == texts
    capsys.readouterr()
    line = prompt.replace("\n", " ")
    answer = one_line(captioner(images[0], prompt=line, max_new_tokens=40)[0]["generated_text"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{line}\n"))
    assert main(["chat", images[0], "--max-new-tokens", "40"]) == 0
    assert one_line(capsys.readouterr().out) == answer
