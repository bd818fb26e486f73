"""`engine="http"`: every input gets exactly one record from endpoints that refuse, break, hang and talk nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from helpers.endpoints import DROP, HANG, PROBE, Reply, completion, image_of, number_of, problem, stub
from helpers.jobs import png
from helpers.pictures import write_folder
from helpers.serving import MODEL, serving, wait_until
from helpers.warm_processes import warm_python

from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text import TextSpec
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.executors import http_endpoints
from mindone.pipelines.image_to_text.dataset.executors.http_endpoints import (
    Endpoint,
    EndpointPool,
    EndpointsError,
    InputRejectedError,
    Response,
    Spending,
)
from mindone.pipelines.image_to_text.dataset.executors.http_images import probe_uri
from mindone.pipelines.image_to_text.dataset.executors.http_requests import AnswerError, request_body
from mindone.pipelines.image_to_text.dataset.report.summary import summarize
from mindone.pipelines.image_to_text.dataset.state.atomic_files import is_locked
from mindone.pipelines.image_to_text.dataset.state.paths import LOCK
from mindone_share4v.cli import main

KEY = "sk-top-secret-1234567890"


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoints, "BACKOFF_SECONDS", 0.02)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(png(number))
    return folder


def run(photos: Path, *urls: str, name: str = "out.jsonl", **options: Any) -> tuple[Any, list[dict[str, Any]]]:
    out = photos.parent / name
    summary = caption_dataset(photos, out=out, engine="http", endpoint=urls, model="stub-1", **options)
    return summary, [json.loads(line) for line in out.read_text().splitlines()]


def caption(number: int) -> str:
    return f"A picture of colour {number}."


def test_every_image_appears_once_whatever_the_endpoint_does(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images succeed at first; the others meet with everything that can go wrong."""
    first = {
        1: Reply(429, problem("slow down"), {"Retry-After": "0.1"}),
        2: Reply(503, problem("overloaded")),
        3: Reply(500, b"<html>oops</html>"),
        4: Reply(200, b"<html>not JSON</html>"),
        5: Reply(200, b'{"choices": []}'),
        6: DROP,
        7: HANG,
        8: Reply(200, completion(None)),
    }
    always = {
        9: Reply(400, problem("this image is too strange")),
        10: Reply(200, b"nonsense"),
        11: Reply(200, completion(None, message={"refusal": "I cannot look at this"})),
    }

    def script(number: int, count: int) -> Reply | str | None:
        return always.get(number) or (first.get(number) if count == 0 else None)

    post, hanging = Endpoint.post, [7]

    async def post_briefly(self: Endpoint, body: Any, seconds: float) -> Response:
        """Wait briefly for the answer that does not come, and only for that."""
        if number_of(image_of(body)[0]) in hanging:
            hanging.clear()
            seconds = 0.5
        return await post(self, body, seconds)

    monkeypatch.setattr(Endpoint, "post", post_briefly)
    with stub(script) as server:
        summary, rows = run(photos, server.url, request_timeout=60.0)
    assert [row["key"] for row in rows] == [f"{number:02}" for number in range(12)]
    assert [row["caption"] for row in rows[:9]] == [caption(number) for number in range(9)]
    assert "answered 400: this image is too strange" in rows[9]["error"]
    assert "after 5 requests" in rows[10]["error"] and "not JSON: 'nonsense'" in rows[10]["error"]
    assert rows[11]["error"] == "the endpoint refused to answer: I cannot look at this"
    assert server.counts[9] == server.counts[11] == server.counts[0] == 1 and server.counts[10] == 5
    assert (summary.captioned, summary.failed) == (9, 3)
    assert rows[0]["model"] == "stub-1-2026"


def test_the_summary_counts_what_was_spent_also_on_failures(photos: Path) -> None:
    (photos / "12.png").write_bytes(png(3))  # equal to 03.png, so that it costs nothing
    script = {4: Reply(400, problem("no")), 5: Reply(200, completion(""))}
    with stub(lambda number, count: script.get(number)) as server:
        summary, rows = run(photos, server.url, attempts=2)
    assert rows[12]["caption"] == rows[3]["caption"] == caption(3)
    answers = 10 + 2  # 5.png is asked twice
    assert summary.usage == {"requests": answers + 1, "prompt_tokens": 11 * answers, "completion_tokens": 7 * answers}
    assert "empty" in rows[5]["notes"]
    assert summarize(photos.parent / "out.jsonl.share4v").usage == summary.usage  # which the report shows


def test_a_retry_asks_the_server_again(photos: Path) -> None:
    """Answers that failed are not taken from the earlier run; all others are."""
    failed = {5: completion(""), 6: completion("A strange picture.")}

    def script(number: int, count: int) -> Reply | None:
        return Reply(200, failed[number]) if number in failed and count < 2 else None

    options: dict[str, Any] = {"attempts": 2, "forbid": ["strange"], "on_fault": "fail"}
    with stub(script) as server:
        assert run(photos, server.url, **options)[0].failed == 2
        summary, rows = run(photos, server.url, retry_failed=True, **options)
    assert summary.failed == 0 and [row["caption"] for row in rows] == [caption(number) for number in range(12)]
    assert server.counts == {PROBE: 2, **{number: 3 if number in failed else 1 for number in range(12)}}


@pytest.mark.parametrize("is_date", [False, True])
def test_no_request_comes_before_the_time_that_a_throttled_endpoint_named(photos: Path, is_date: bool) -> None:
    """One request at a time, so that none is on its way while the refusal is; measured by the endpoint's clock."""
    value = formatdate(time.time() + 2, usegmt=True) if is_date else "1.5"
    now = formatdate(time.time(), usegmt=True)

    def script(number: int, count: int) -> Reply | None:
        is_third = len(throttled.asked) == 3
        return Reply(429, problem("slow down"), {"Retry-After": value, "Date": now}) if is_third else None

    with stub(script) as throttled:
        _, rows = run(photos, throttled.url, max_in_flight=1)
    assert [row["caption"] for row in rows] == [caption(number) for number in range(12)]
    refused = next(when for status, when in throttled.replied if status == 429)
    later = [one.came for one in throttled.asked if one.came > refused]
    assert len(later) == 10
    assert min(later) - refused >= (1.0 if is_date else 1.5)


def test_another_endpoint_takes_the_work_of_a_throttled_one(photos: Path) -> None:
    def busy(number: int, count: int) -> Reply | None:
        return None if number == PROBE else Reply(503, problem("loading"), {"Retry-After": "500"})

    def wait_for_refusal(number: int, count: int) -> None:
        if number != PROBE:
            wait_until(lambda: throttled.asked)

    with stub(busy) as throttled, stub(wait_for_refusal) as other:
        _, rows = run(photos, throttled.url, other.url, max_in_flight=1)
    assert [row["caption"] for row in rows] == [caption(number) for number in range(12)]
    assert len(throttled.asked) == 1 and len(other.asked) == 12
    assert all(len(server.openings) == 1 for server in (throttled, other))


def test_requests_in_flight_grow_while_answers_arrive(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03}.png").write_bytes(png(number))

    def script(number: int, count: int) -> None:
        """Answer the first 4 when all of them have come, then the next 8, and then the next 16."""
        if number != PROBE:
            place = server.numbers.index(number) + 1  # each image is asked for once
            wave = next(size for size in (4, 12, 28, 40) if place <= size)
            while len(server.asked) < wave and not server.ended.is_set():
                time.sleep(0.002)

    with stub(script) as server:
        run(folder, server.url, max_in_flight=16)
    assert server.most == 16


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(401, problem(f"Incorrect API key provided: {KEY}")), "the key is wrong or missing"),
        (Reply(403, problem("no access")), "the key may not use this model"),
        (Reply(429, problem("You exceeded your quota", "insufficient_quota")), "You exceeded your quota"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/v1"}), "it redirects to http://127.0.0.1:9/v1"),
    ],
)
def test_an_endpoint_that_refuses_the_key_is_disabled_and_the_job_can_be_resumed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: Reply, expected: str
) -> None:
    monkeypatch.setenv("STUB_KEY", KEY)
    is_broken = True

    def script(number: int, count: int) -> Reply | None:
        return reply if is_broken and len(server.asked) > 5 else None

    with stub(script) as server:
        with pytest.raises(EndpointsError, match="run the job again to resume it") as caught:
            run(photos, server.url, api_key_env="STUB_KEY", max_in_flight=1)
        assert expected in str(caught.value) and KEY not in str(caught.value)
        assert len(server.asked) == 6
        is_broken = False
        _, rows = run(photos, server.url, api_key_env="STUB_KEY")
        assert [row["caption"] for row in rows] == [caption(number) for number in range(12)]
        assert len(server.asked) == 6 + 7  # what was answered is not asked again
        assert sorted({*server.numbers}) == list(range(12))
        assert {one.headers["Authorization"] for one in server.asked} == {f"Bearer {KEY}"}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("status", [401, 200])
def test_no_part_of_the_key_is_shown_where_a_message_is_cut(status: int) -> None:
    async def messages() -> list[str]:
        pool = EndpointPool(["http://localhost:1/v1"], KEY, 1, 5.0)
        found = []
        for before in range(170, 310, 3):
            pool.endpoints[0].error = None
            try:
                await pool._judge_admission(pool.endpoints[0], Response(status, {}, f"{'x' * before}{KEY}".encode()), 0)
                found.append(pool.explain())
            except AnswerError as error:
                found.append(pool._safe(str(error)))
        await pool.close()
        return found

    assert not [message for message in asyncio.run(messages()) if KEY[:5] in message]


def test_what_an_endpoint_cannot_do_is_said_before_any_image_is_sent(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (Reply(404, problem("no model 'x'")), "no model 'x'; its models: stub-1, stub-2"),
        (Reply(400, problem("temperature is not supported")), "temperature is not supported"),
        (Reply(200, b"<html>a web page</html>"), "it is not JSON: '<html>a web page</html>'"),
        (Reply(401, problem("who are you?")), "the key is wrong or missing"),
    ]
    for reply, expected in cases:
        with stub(lambda number, count, reply=reply: reply) as server:
            command = ["caption-dataset", str(photos), "--engine", "http", "--endpoint", server.url, "--model", "x"]
            assert main([*command, "--out", str(photos.parent / "x.jsonl")]) == 3
        assert expected in capsys.readouterr().err
        assert server.asked == [] and len(server.openings) == 1


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None, "refusal": "I cannot"}, "stop"),
        ({"content": ""}, "content_filter"),
        ({"content": None}, "length"),
    ],
    ids=["refused", "filtered", "cut while it reasons"],
)
def test_a_small_question_without_an_answer_does_not_stop_a_job(
    photos: Path, message: dict[str, Any], reason: str
) -> None:
    reply = Reply(200, json.dumps({"choices": [{"message": message, "finish_reason": reason}]}).encode())
    with stub(lambda number, count: reply if number == PROBE else None) as server:
        _, rows = run(photos, server.url, limit=2)
    assert [row["caption"] for row in rows] == [caption(0), caption(1)]


def test_a_small_question_that_openai_cuts_before_its_text_does_not_stop_a_job(photos: Path) -> None:
    said = "Could not finish the message because max_tokens or model output limit was reached. Please try again."
    reply = Reply(400, problem(said))
    with stub(lambda number, count: reply if number == PROBE else None) as server:
        _, rows = run(photos, server.url, limit=2)
    assert [row["caption"] for row in rows] == [caption(0), caption(1)]


def test_a_server_that_is_not_there_is_said_at_once(photos: Path) -> None:
    with stub() as server:
        url = server.url
    with pytest.raises(EndpointsError, match="it cannot be used: "):
        run(photos, url)


def test_a_server_that_loads_its_model_is_waited_for(photos: Path) -> None:
    loading = Reply(503, problem("Loading model"), {"Retry-After": "0.05"})
    with stub(lambda number, count: loading if number == PROBE and count < 3 else None) as server:
        _, rows = run(photos, server.url)
    assert len(rows) == 12 and len(server.openings) == 4


def test_settings_are_sent_under_the_names_of_openai(photos: Path) -> None:
    with stub() as server:
        run(photos, server.url, limit=1, name="greedy.jsonl", prompt="What?", stop=("END",), frequency_penalty=0.5)
        body = {name: value for name, value in server.asked[0].body.items() if name != "messages"}
        assert body == {
            **{"model": "stub-1", "max_tokens": 256, "temperature": 0.0, "frequency_penalty": 0.5},
            **{"stop": ["END"], "stream": False},
        }
        content = server.asked[0].body["messages"][0]["content"]
        assert [part["type"] for part in content] == ["image_url", "text"] and content[1]["text"] == "What?"
        schema = {"type": "object", "properties": {"a": {"type": "string"}}}
        options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "schema": schema, "max_new_tokens": 9}
        _, rows = run(
            photos, server.url, limit=1, name="sampled.jsonl", request_fields='{"top_k": 20}', prompt="What?", **options
        )
        body = server.asked[1].body
        assert (body["temperature"], body["top_p"], body["max_tokens"], body["top_k"]) == (0.7, 0.9, 9, 20)
        assert 0 <= body["seed"] < 2**31
        assert body["response_format"]["json_schema"] == {"name": "caption", "schema": schema, "strict": True}
        assert "its text is not JSON, although a schema was sent" in rows[0]["error"]


def test_an_endpoint_that_stays_busy_is_given_up(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoints, "PATIENCE_SECONDS", 0.3)
    busy, tomorrow = Reply(503, problem("overloaded")), Reply(429, problem("come back"), {"Retry-After": "86400"})
    for reply, expected in ((busy, "it has answered nothing for "), (tomorrow, "it asks to wait 86400 s")):
        with (
            stub(lambda number, count, reply=reply: reply if number != PROBE else None) as server,
            pytest.raises(EndpointsError, match=expected),
        ):
            run(photos, server.url)


def test_it_runs_where_an_event_loop_runs_already(photos: Path) -> None:
    async def cell_of_a_notebook() -> list[dict[str, Any]]:
        return run(photos, server.url)[1]

    with stub() as server:
        assert len(asyncio.run(cell_of_a_notebook())) == 12


def test_ctrl_c_ends_a_job_whose_endpoint_hangs(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def script(number: int, count: int) -> str | None:
        if number != PROBE and server.numbers.index(number) == 3:  # the fourth request, and no other
            os.kill(os.getpid(), signal.SIGINT)
        return HANG if number != PROBE else None

    with stub(script) as server:
        command = ["caption-dataset", str(photos), "--out", str(photos.parent / "out.jsonl"), "--engine", "http"]
        assert main([*command, "--endpoint", server.url]) == 130
    assert "interrupted; the same command resumes the job" in capsys.readouterr().err


def test_only_requests_with_a_response_format_must_be_answered_with_json() -> None:
    async def ask(url: str, **fields: Any) -> str:
        pool = EndpointPool([url], None, 4, 5.0, is_json=True)
        body = request_body("m", "What?", [probe_uri()], {}, {}, fields)
        try:
            await pool.admit(pool.endpoints[0], body)
            return (await pool.ask(body, Spending())).text
        finally:
            await pool.close()

    with stub() as server:
        assert asyncio.run(ask(server.url)) == caption(PROBE)
        with pytest.raises(InputRejectedError, match="its text is not JSON"):
            asyncio.run(ask(server.url, response_format={"type": "json_object"}))


def test_a_model_that_wants_max_completion_tokens_gets_it(photos: Path) -> None:
    refusal = Reply(400, problem("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."))
    with stub(lambda number, count: refusal if number == PROBE and count == 0 else None) as server:
        run(photos, server.url, limit=1)
    assert "max_completion_tokens" in server.asked[0].body and "max_tokens" not in server.asked[0].body


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 5}, "top_k has no field"),
        ({"min_new_tokens": 5}, "min_new_tokens has no field"),
        ({"begin_with": "A photo"}, "begin_with has no field"),
        ({"repetition_penalty": 1.2}, "repetition_penalty has no field"),
        ({"dtype": "int4"}, "dtype has no effect"),
        ({"request_fields": '{"temperature": 1}'}, "request_fields sets 'temperature'"),
        ({"request_fields": "[1]"}, "request_fields must be a JSON object"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "NO_SUCH_VARIABLE, which is not set"),
        ({"endpoint": "http://me:pass@host/v1"}, "must not contain a password"),
        ({"endpoint": "localhost:8000"}, "must be a URL"),
        ({"endpoint": None}, "needs the address of a server"),
        ({"engine": "local"}, "needs engine 'http'"),
        ({"max_in_flight": 0}, "max_in_flight must be"),
        ({"stop": tuple("abcde")}, "stop has 5 strings"),
    ],
)
def test_settings_that_no_endpoint_has_are_refused_by_name(
    photos: Path, options: dict[str, Any], expected: str
) -> None:
    given = {"engine": "http", "endpoint": "http://127.0.0.1:9/v1", "model": "m", **options}
    with pytest.raises(ValueError, match=expected):
        caption_dataset(photos, out=photos.parent / "out.jsonl", **given)
    assert not (photos.parent / "out.jsonl.share4v").exists()


def test_a_caption_that_breaks_a_rule_is_asked_for_again_with_other_settings(photos: Path) -> None:
    with stub(lambda number, count: Reply(200, completion("It shows a cat.")) if count == 0 else None) as server:
        _, rows = run(photos, server.url, limit=1, forbid="cat")
    assert rows[0]["caption"] == caption(0)
    assert rows[0]["notes"] == ["attempt 2 of 2 (forbidden word: cat)"]
    assert [one.body.get("frequency_penalty") for one in server.asked] == [None, 0.3]


def test_after_a_kill_nothing_that_was_answered_is_asked_again(photos: Path) -> None:
    """One answer does not come, so that those of later images are received, but cannot be in the journal yet.

    The first answer about that image breaks a rule; its cost belongs to the record that the second run writes.
    """
    out = photos.parent / "out.jsonl"
    state = out.with_name("out.jsonl.share4v")
    hangs = True

    def script(number: int, count: int) -> Reply | str | None:
        if number != 6 or not hangs:
            return None
        return HANG if count else Reply(200, completion("It shows a cat."))

    with stub(script) as server:
        command = ["caption-dataset", str(photos), "--out", str(out), "--engine", "http", "--endpoint", server.url]
        command += ["--forbid", "cat"]
        arguments = [warm_python(), "-m", "mindone_share4v", *command]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: cached(state) == 12)
        wait_until(lambda: len(server.numbers) == 13)
        process.kill()
        process.wait()
        wait_until(lambda: not is_locked(state / LOCK))
        assert sorted(server.numbers) == sorted([*range(12), 6])
        hangs = False
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert server.numbers[13:] == [6]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["caption"] for row in rows] == [caption(number) for number in range(12)]
    assert "143 prompt tokens and 91 completion tokens in 13 requests" in done.stderr  # in both runs


def cached(state: Path) -> int:
    """Return the number of answers that a job has stored."""
    answers = state / "answers.jsonl"
    return answers.read_bytes().count(b"\n") if answers.exists() else 0


def test_our_own_server_gives_the_captions_of_the_local_engine(tmp_path: Path) -> None:
    """Of the first attempt: a retry has other settings, since OpenAI's API has no repetition penalty."""
    folder = tmp_path / "scenes"
    write_folder(folder, 6)
    options: dict[str, Any] = {"style": ("default", "tags"), "every_prompt": True, "max_new_tokens": 24, "attempts": 1}
    caption_dataset(folder, out=tmp_path / "local.jsonl", **options)
    with serving(pipeline("image-text-to-text", model=MODEL)) as live:
        url = f"{live.url}/v1"
        caption_dataset(folder, out=tmp_path / "http.jsonl", engine="http", endpoint=url, model=MODEL, **options)
    local, http = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("local", "http")
    )
    for name in ("key", "captions", "error", "sha256", "width", "height", "prompts", "columns"):
        assert [row[name] for row in http] == [row[name] for row in local], name


def test_texts_are_asked_one_after_the_other(photos: Path) -> None:
    texts = [TextSpec("long", prompt="Describe it."), TextSpec("short", prompt="Shorten: {long}", max_new_tokens=7)]

    def prompt(body: dict[str, Any]) -> str:
        return str(body["messages"][0]["content"][-1]["text"])

    with stub() as server:
        _, rows = run(photos, server.url, texts=texts)
    assert len(server.asked) == 24 and {one.kind for one in server.asked} == {"image/png"}
    for number, row in enumerate(rows):
        assert row["long"] == row["short"] == caption(number)  # what the stub says of an image, whatever is asked
        assert row["prompts"] == ["Describe it.", f"Shorten: {caption(number)}"]
    short = [one.body for one in server.asked if prompt(one.body).startswith("Shorten")]
    assert sorted(map(prompt, short)) == sorted(f"Shorten: {caption(number)}" for number in range(12))
    assert {body["max_tokens"] for body in short} == {7}
    assert all(one.body.get("max_tokens") != 7 for one in server.asked if prompt(one.body) == "Describe it.")
