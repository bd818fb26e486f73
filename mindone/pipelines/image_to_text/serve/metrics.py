"""Metrics in Prometheus' format, under vLLM's names where the meaning is the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .cpu_time import thread_cpu_seconds

if TYPE_CHECKING:
    from mindone.models.share4v.generation.continuous_batch import Completion

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_LABELS = ("model_name",)


class Metrics:
    """Counts requests, tokens and times.

    Args:
        model: the label model_name of every metric.
        gauges: returns the values that are read when metrics are asked for: name -> (help, value, is a counter).
    """

    def __init__(self, model: str, gauges: Callable[[], dict[str, tuple[str, float, bool]]]) -> None:
        self._model = model
        self._gauges = gauges
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)  # CPU time, memory and open files of the process
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._new_tokens = self._counter("generation_tokens", "Generated tokens")
        self._success = self._counter("request_success", "Answers that ended without an error", "finished_reason")
        self._failures = Counter(
            "share4v:http_responses", "Responses by status", ("model_name", "status"), registry=self._registry
        )
        self._cancelled = Counter(
            "share4v:requests_cancelled", "Requests whose client left", _LABELS, registry=self._registry
        )
        self._histograms = {
            name: Histogram(f"vllm:{name}_seconds", text, _LABELS, buckets=_SECONDS, registry=self._registry)
            for name, text in (
                ("time_to_first_token", "From the request to its first token"),
                ("inter_token_latency", "Mean time between two tokens of an answer"),
                ("e2e_request_latency", "From the request to its last token"),
                ("request_queue_time", "Time without a slot"),
                ("request_prefill_time", "From the slot to the first token"),
                ("request_decode_time", "From the first token to the last"),
            )
        }

    def collect(self) -> Iterator[Any]:
        """Yield the metrics that are read when they are asked for; called by prometheus_client."""
        for name, (text, value, is_counter) in self._gauges().items():
            kind = CounterMetricFamily if is_counter else GaugeMetricFamily
            metric = kind(name, text, labels=_LABELS)
            metric.add_metric([self._model], value)
            yield metric
        cpu = CounterMetricFamily(
            "share4v:thread_cpu_seconds",
            "CPU time of the server's threads; that of the model's libraries is only in process_cpu_seconds",
            labels=(*_LABELS, "thread"),
        )
        for part, seconds in thread_cpu_seconds().items():
            cpu.add_metric([self._model, part], seconds)
        yield cpu

    def describe(self) -> Iterator[Any]:
        """Yield nothing: the names are not known before the first collection."""
        return iter(())

    def completed(self, completion: Completion[Any], submitted: float, reason: str) -> None:
        """Count an answer that ended without an error."""
        new_tokens = len(completion.token_ids)
        self._prompt_tokens.labels(self._model).inc(completion.prompt_tokens)
        self._new_tokens.labels(self._model).inc(new_tokens)
        self._success.labels(self._model, reason).inc()
        started, first, ended = completion.started, completion.first_token, completion.ended
        if started is None or first is None or ended is None:
            return
        self._observe("request_queue_time", started - submitted)
        self._observe("request_prefill_time", first - started)
        self._observe("time_to_first_token", first - submitted)
        self._observe("request_decode_time", ended - first)
        self._observe("e2e_request_latency", ended - submitted)
        if new_tokens > 1:
            self._observe("inter_token_latency", (ended - first) / (new_tokens - 1))

    def cancelled(self) -> None:
        """Count a request whose client left before its answer was complete."""
        self._cancelled.labels(self._model).inc()

    def responded(self, status: int) -> None:
        """Count a response."""
        self._failures.labels(self._model, str(status)).inc()

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", text, (*_LABELS, *labels), registry=self._registry)

    def _observe(self, name: str, seconds: float) -> None:
        self._histograms[name].labels(self._model).observe(max(seconds, 0.0))
