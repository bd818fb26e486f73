"""The journal of answers: what it stores survives a kill and a power cut, and is found only under the same settings."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mindone.pipelines.image_to_text.dataset.inference import caption_cache
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import (
    CaptionCache,
    cache_name,
    merge_caption_caches,
)
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings
from mindone.pipelines.image_to_text.dataset.rules.retries import Attempt, Caption
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules

KEYS = [(bytes([number]) * 32, f"0 default Describe \udce9 {number}\0text long") for number in range(3)]
CAPTION = Caption('A "cat".\n\u2028', 7, "eos", ("attempt 2 of 2 (empty)",), {"model": "m", "requests": 1})


def filled(path: Path) -> list[bytes]:
    cache = CaptionCache(path)
    for number, key in enumerate(KEYS):
        cache.put_attempt(key, 1, Attempt({}, Caption("", 1, "eos"), ("empty",)))
        cache.put(key, replace(CAPTION, tokens=number))
    cache.close()
    return path.read_bytes().splitlines(keepends=True)


def found(path: Path) -> list[tuple[int, int | None]]:
    """The number of attempts and the caption of each key."""
    cache = CaptionCache(path)
    captions = [cache.get(key) for key in KEYS]
    attempts = [len(cache.attempts(key, 0, 3)) for key in KEYS]
    cache.close()
    assert all(one is None or one == replace(CAPTION, tokens=number) for number, one in enumerate(captions))
    return [(count, None if one is None else one.tokens) for count, one in zip(attempts, captions, strict=True)]


def test_answers_are_lines_of_json_and_are_found_again(tmp_path: Path) -> None:
    lines = filled(tmp_path / "answers.jsonl")
    values = [json.loads(line) for line in lines]
    assert values[0] == {
        **{"image": "00" * 32, "prompt": KEYS[0][1], "settings": "", "attempt": 1},
        **{"answer": ["", 1, "eos"], "broken": ["empty"]},
    }
    assert values[1]["answer"][:3] == ['A "cat".\n\u2028', 0, "eos"] and "attempt" not in values[1]
    assert found(tmp_path / "answers.jsonl") == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("tail", ["half", "zeros", "text", "no newline"])
def test_a_torn_end_is_cut_off_and_the_file_grows_behind_it(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "answers.jsonl"
    lines = filled(path)
    torn = {"half": lines[-1][:40], "zeros": bytes(5000), "text": b"[1]\n", "no newline": lines[-1][:-1]}[tail]
    path.write_bytes(b"".join(lines[:-1]) + torn)
    assert found(path) == [(1, 0), (1, 1), (1, None)]
    assert path.read_bytes() == b"".join(lines[:-1])
    cache = CaptionCache(path)
    cache.put(KEYS[2], replace(CAPTION, tokens=2))
    cache.close()
    assert path.read_bytes() == b"".join(lines)


def test_a_damaged_line_costs_only_its_own_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of what a power cut left, or a person edited, in front of other answers, nothing else is asked again."""
    path = tmp_path / "answers.jsonl"
    lines = filled(path)
    odd = [lines[5].replace(b'"A \\"cat', new) for new in (b'3,"', b'"a","b","')] + [b"[]\n", b"{}\n"]
    path.write_bytes(b"".join((*lines[:3], bytes(300) + lines[3], *odd, *lines[4:])))
    before = path.read_bytes()
    assert found(path) == [(1, 0), (1, None), (1, 2)] and path.read_bytes() == before
    assert f"{path}: 5 damaged lines, whose answers are asked again" in caplog.text


def test_answers_of_the_other_processes_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job that resumes may give an input to another process, or have fewer of them."""
    mine = tmp_path / cache_name()
    for number, key in enumerate(KEYS[:2]):
        cache = CaptionCache(tmp_path / cache_name(("a1b2", 3)[number]))
        cache.put_attempt(key, 1, Attempt({}, Caption("", 1, "eos"), ("empty",)))
        cache.put(key, replace(CAPTION, tokens=number))
        cache.close()
    other = tmp_path / cache_name(3)
    with other.open("ab") as file:
        file.write(b'{"image":"00')  # being written
    size = other.stat().st_size
    assert found(mine) == [(1, 0), (1, 1), (0, None)]
    assert other.stat().st_size == size and not mine.stat().st_size and not caplog.text


def test_what_an_attempt_cost_is_known_after_a_kill(tmp_path: Path) -> None:
    """The record that counts it is written only when an attempt is accepted, perhaps in the next run."""
    cost = {"requests": 2, "prompt_tokens": 11, "completion_tokens": 7}
    cache = CaptionCache(tmp_path / cache_name())
    cache.put_attempt(KEYS[0], 1, Attempt({}, Caption("", 1, "eos", source=cost), ("empty",)))
    cache.close()
    again = CaptionCache(tmp_path / cache_name())
    (attempt,) = again.attempts(KEYS[0], 0, 3)
    again.close()
    assert attempt.caption is not None and attempt.caption.source == cost


def test_files_of_many_processes_become_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each run of Ray has actors with new names, whose files would be as many as there were runs."""
    for number, key in enumerate(KEYS):
        for name in (f"a{number}", f"b{number}"):  # what two actors answered counts once
            cache = CaptionCache(tmp_path / cache_name(name))
            cache.put_attempt(key, 1, Attempt({}, Caption("", 1, "eos"), ("empty",)))
            cache.put(key, replace(CAPTION, tokens=number))
            cache.close()
    with (tmp_path / cache_name("a1")).open("ab") as file:
        file.write(b'{"image":"00')  # of a kill
    os.mkfifo(tmp_path / cache_name("unreadable"))
    for _ in range(2):
        merge_caption_caches(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {cache_name(), cache_name("unreadable")}
        assert len((tmp_path / cache_name()).read_bytes().splitlines()) == 6
    assert found(tmp_path / cache_name()) == [(1, 0), (1, 1), (1, 2)]


def test_answers_of_another_process_that_cannot_be_read_are_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For example those of another user's process."""
    os.mkfifo(tmp_path / cache_name(1))
    assert found(tmp_path / cache_name()) == [(0, None)] * 3
    assert f"{tmp_path / cache_name(1)} cannot be read" in caplog.text
    answered = tmp_path / cache_name(2)
    cache = CaptionCache(answered)
    cache.put(KEYS[0], CAPTION)
    cache.close()
    later = CaptionCache(tmp_path / cache_name())
    answered.unlink()
    assert later.get(KEYS[0]) is None
    later.close()


def test_other_rules_of_a_text_find_no_answer_and_leave_those_of_others(tmp_path: Path) -> None:
    first, path = CaptioningSettings(), tmp_path / cache_name(2)
    key = KEYS[0][0], "0  What?"
    cache = CaptionCache(path, first)
    cache.put(key, CAPTION)
    cache.close()
    for settings, expected in [
        (replace(first, batch_size=1, workers=1), CAPTION),
        (replace(first, rules=TextRules(min_words=3)), None),
        (replace(first, attempts=2), None),
        (first, CAPTION),
    ]:
        cache = CaptionCache(path, settings)
        assert cache.get(key) == expected
        cache.close()


def test_answers_are_on_disk_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the operating system at once, which a kill does not change; flushed to disk in groups."""
    path, now, synced = tmp_path / "answers.jsonl", [0.0], []
    monkeypatch.setattr(caption_cache.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(caption_cache.os, "fsync", lambda descriptor: synced.append(path.stat().st_size))
    cache = CaptionCache(path)
    synced.clear()
    sizes = []
    for seconds in (0.5, 0.6, 0.5):
        now[0] += seconds
        cache.put(KEYS[0], CAPTION)
        sizes.append(path.stat().st_size)
    assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]] and synced == [sizes[1]]
    cache.close()
    assert synced == sizes[1:]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "answers.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="not followed"):
        CaptionCache(tmp_path / "answers.jsonl")
    assert (tmp_path / "other").read_text() == "mine"
