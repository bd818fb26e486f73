"""How the number of requests in flight at an endpoint adapts, on a clock that the test owns."""

from __future__ import annotations

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.executors.http_limits import RequestLimit
from mindone.pipelines.image_to_text.retry_after import retry_after


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def limit(maximum: int = 64, jitter: float = 0.0) -> tuple[RequestLimit, Clock]:
    clock = Clock()
    return RequestLimit(maximum, clock=clock, jitter=lambda: jitter), clock


def round_of(one: RequestLimit) -> list[float]:
    """Start as many requests as are allowed, and answer them all."""
    started = [one.start() for _ in range(one.value - one.in_flight)]
    for when in started:
        one.answered(when)
        one.end()
    return started


def test_it_doubles_with_each_round_until_the_first_refusal_and_then_grows_by_one() -> None:
    one, clock = limit()
    values = []
    for _ in range(4):
        round_of(one)
        values.append(one.value)
    assert values == [8, 16, 32, 64]
    one.refused(one.start(), 0.0)
    one.end()
    assert one.value == 32
    clock.now += 1
    values = []
    for _ in range(3):
        round_of(one)
        values.append(one.value)
    assert values == [32, 33, 34] or values == [33, 34, 35]


def test_requests_that_are_refused_together_halve_it_once() -> None:
    one, _ = limit()
    round_of(one)
    round_of(one)
    assert one.value == 16
    started = [one.start() for _ in range(16)]
    for when in started:
        one.refused(when, None)
        one.end()
    assert one.value == 8
    one.refused(one.start(), None)
    one.end()
    assert one.value == 4


def test_answers_with_few_requests_in_flight_do_not_raise_it() -> None:
    one, _ = limit()
    for _ in range(50):
        one.answered(one.start())
        one.end()
    assert one.value == 4


def test_pauses_double_without_an_answer_and_begin_anew_after_one() -> None:
    one, clock = limit()
    pauses = []
    for _ in range(8):
        one.refused(one.start(), None)
        one.end()
        pauses.append(round(one.paused_until - clock.now, 1))
        clock.now = one.paused_until
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert one.value == 1
    one.answered(one.start())
    one.end()
    one.refused(one.start(), None)
    assert round(one.paused_until - clock.now, 1) == 0.5


@given(
    st.lists(st.tuples(st.sampled_from(["start", "answer", "refuse"]), st.floats(0, 30)), max_size=60),
    st.integers(1, 20),
)
def test_no_request_may_start_while_it_is_paused_or_full(events: list[tuple[str, float]], maximum: int) -> None:
    one, clock = limit(maximum)
    running: list[float] = []
    pause_ends = 0.0
    for event, seconds in events:
        if event == "start":
            if one.wait() == 0:
                assert clock.now >= pause_ends and one.in_flight < maximum
                running.append(one.start())
            else:
                clock.now += seconds
        elif running:
            started = running.pop(0)
            if event == "answer":
                one.answered(started)
            else:
                pause_ends = max(pause_ends, clock.now + seconds)
                one.refused(started, seconds)
            one.end()
        assert 1 <= one.value <= maximum and one.in_flight == len(running)


def test_retry_after_is_seconds_milliseconds_or_a_date() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "9", "retry-after-ms": "250"}) == 0.25
    date, later = formatdate(1_000_000, usegmt=True), formatdate(1_000_090, usegmt=True)
    assert retry_after({"retry-after": later, "date": date}) == 90  # whatever this machine's clock says
    assert retry_after({"retry-after": later}, now=1_000_080.0) == 10
    assert retry_after({"retry-after": date, "date": later}) == 0
    for text in ("soon", "-5", "nan", "inf", "", "Thu, 99 Foo 2026 00:00:00 GMT"):
        assert retry_after({"retry-after": text}) is None


def test_an_endpoint_cannot_stop_a_job_for_longer_than_an_hour() -> None:
    one, clock = limit()
    one.refused(one.start(), 1e300)
    assert one.paused_until <= clock.now + 3600
