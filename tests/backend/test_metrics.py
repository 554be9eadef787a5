"""Statistics as metrics: under which names, and how much of them."""

from __future__ import annotations

import types
from typing import Any

from tests.support.vllm_backend import backend

metrics = backend("metrics")


class Family:
    """Triton's `MetricFamily`, and all that it was told."""

    COUNTER, HISTOGRAM = "counter", "histogram"
    made: dict[str, Any] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name, self.kind = name, kind
        assert description

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Any:
        assert labels == {"model": "m"}
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        assert buckets is None or (buckets == sorted(buckets) and buckets)
        told: list[float] = []
        self.made[self.name] = told
        return types.SimpleNamespace(increment=told.append, observe=told.append)


def stats(prompt: int, generated: int, *ended: Any) -> Any:
    return types.SimpleNamespace(num_prompt_tokens=prompt, num_generation_tokens=generated,
                                 time_to_first_tokens_iter=[0.5], inter_token_latencies_iter=[0.1, 0.2],
                                 n_params_iter=[1], finished_requests=ended)


def utils(logged: list[str]) -> Any:
    return types.SimpleNamespace(MetricFamily=Family, Logger=types.SimpleNamespace(log_error=logged.append))


def test_values_arrive_and_counters_are_summed_up() -> None:
    Family.made.clear()
    found = metrics.Metrics(utils([]), {"model": "m"}, 100)
    found.record(stats(3, 1))
    found.record(stats(0, 2, types.SimpleNamespace(e2e_latency=2.0, num_prompt_tokens=3, num_generation_tokens=3)))
    found.close()
    made = Family.made
    assert set(made) == {*metrics.COUNTERS, *metrics.HISTOGRAMS}
    assert sum(made["vllm:prompt_tokens_total"]) == 3
    assert sum(made["vllm:generation_tokens_total"]) == 3
    assert made["vllm:time_per_output_token_seconds"] == [0.1, 0.2, 0.1, 0.2]
    assert made["vllm:e2e_request_latency_seconds"] == [2.0]
    assert (made["vllm:request_prompt_tokens"], made["vllm:request_generation_tokens"]) == ([3], [3])


def test_after_an_error_nothing_piles_up() -> None:
    logged: list[str] = []
    found = metrics.Metrics(utils(logged), {"model": "m"}, 100)
    found.record(types.SimpleNamespace(num_prompt_tokens="no number", num_generation_tokens=0))
    found._thread.join(10)
    assert not found._thread.is_alive()
    for _ in range(3):
        found.record(stats(1, 1))
    assert found._queue.empty()
    found.close()
    (line,) = logged
    assert line.startswith("metrics are recorded no more: TypeError: ")


def test_buckets_of_tokens() -> None:
    assert metrics.token_buckets(100) == [1, 2, 5, 10, 20, 50, 100]
    assert metrics.token_buckets(49) == [1, 2, 5, 10, 20]
    assert metrics.token_buckets(0) == [1]
