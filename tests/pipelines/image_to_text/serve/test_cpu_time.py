"""The CPU time of the server's threads is what each thread's own clock says."""

from __future__ import annotations

import re
import threading
import time

from helpers.serving import Live, chat

from mindone.pipelines.image_to_text.serve.cpu_time import thread_cpu_seconds


def test_each_part_has_the_time_of_its_threads() -> None:
    measured, can_end, spent = threading.Barrier(3), threading.Event(), []

    def work(seconds: float) -> None:
        while time.thread_time() < seconds:
            pass
        spent.append(time.thread_time())
        measured.wait(60)
        can_end.wait(60)

    threads = [
        threading.Thread(target=work, args=(seconds,), name=f"share4v-testing_{number}")
        for number, seconds in enumerate((0.02, 0.05))
    ]
    for thread in threads:
        thread.start()
    measured.wait(60)
    found = thread_cpu_seconds()
    can_end.set()
    for thread in threads:
        thread.join(60)
    assert abs(found["testing"] - sum(spent)) < 0.01
    assert "testing" not in thread_cpu_seconds()


def test_metrics_have_it(live: Live) -> None:
    assert live.post("/v1/chat/completions", chat("Describe", max_tokens=2)).status_code == 200
    text = live.get("/metrics").text
    parts = dict(re.findall(r'^share4v:thread_cpu_seconds_total{.*thread="(\w+)".*} (\S+)', text, re.MULTILINE))
    assert {"model", "http"} <= parts.keys()
    process = re.search(r"^process_cpu_seconds_total (\S+)", text, re.MULTILINE)
    assert process and float(parts["model"]) <= float(process[1]) + 0.02  # counted in steps of 10 ms
