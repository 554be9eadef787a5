"""vLLM's statistics as Triton's custom metrics, under the names that vLLM and NVIDIA's backend give them.

Each value costs a message to the server, so they are sent by a thread of their own, counters summed up over what has
come in meanwhile.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

_SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
_FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0)
_EACH_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_N = (1, 2, 5, 10, 20)

COUNTERS: Mapping[str, str] = {
    "vllm:prompt_tokens_total": "Number of prefill tokens processed.",
    "vllm:generation_tokens_total": "Number of generation tokens processed.",
}
#: Name to help text and limits of the buckets; None: tokens, up to the model's length.
HISTOGRAMS: Mapping[str, tuple[str, Sequence[float] | None]] = {
    "vllm:time_to_first_token_seconds": ("Time to first token in seconds.", _FIRST_TOKEN),
    "vllm:time_per_output_token_seconds": ("Time per output token in seconds.", _EACH_TOKEN),
    "vllm:e2e_request_latency_seconds": ("End to end request latency in seconds.", _SECONDS),
    "vllm:request_prompt_tokens": ("Number of prefill tokens of a request.", None),
    "vllm:request_generation_tokens": ("Number of generation tokens of a request.", None),
    "vllm:request_params_n": ("The request parameter n.", _N),
}


def token_buckets(most: int) -> list[float]:
    """1, 2, 5, 10, 20 … up to `most`."""
    found: list[float] = []
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power > most:
                return found or [1]
            found.append(digit * power)
        power *= 10


class Metrics:
    """Metric families of one model.

    Args:
        utils: the module `triton_python_backend_utils`.
        labels: of every metric.
        most: tokens of the longest request.
    """

    def __init__(self, utils: Any, labels: Mapping[str, str], most: int) -> None:
        family = utils.MetricFamily
        self._log_error = utils.Logger.log_error
        self._families = []  # a metric goes with its family
        self._counters: dict[str, Any] = {}
        self._histograms: dict[str, Any] = {}
        for name, text in COUNTERS.items():
            self._families.append(family(name=name, description=text, kind=family.COUNTER))
            self._counters[name] = self._families[-1].Metric(labels=dict(labels))
        for name, (text, limits) in HISTOGRAMS.items():
            self._families.append(family(name=name, description=text, kind=family.HISTOGRAM))
            self._histograms[name] = self._families[-1].Metric(
                labels=dict(labels), buckets=[float(limit) for limit in limits or token_buckets(most)])
        self._broken = False
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def record(self, stats: Any) -> None:
        """Take the statistics of one step, vLLM's `IterationStats`; returns at once."""
        if not self._broken:
            self._queue.put(stats)

    def close(self) -> None:
        """Send what is left, and end."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get())
            ended = None in batch
            try:
                self._send([stats for stats in batch if stats is not None])
            except Exception as error:
                self._broken = True
                self._log_error(f"metrics are recorded no more: {type(error).__name__}: {error}")
                return

    def _send(self, batch: Sequence[Any]) -> None:
        for name, total in (("vllm:prompt_tokens_total", sum(stats.num_prompt_tokens for stats in batch)),
                            ("vllm:generation_tokens_total", sum(stats.num_generation_tokens for stats in batch))):
            if total:
                self._counters[name].increment(total)
        for stats in batch:
            self._observe("vllm:time_to_first_token_seconds", stats.time_to_first_tokens_iter)
            self._observe("vllm:time_per_output_token_seconds", stats.inter_token_latencies_iter)
            self._observe("vllm:request_params_n", stats.n_params_iter)
            for ended in stats.finished_requests:
                self._observe("vllm:e2e_request_latency_seconds", [ended.e2e_latency])
                self._observe("vllm:request_prompt_tokens", [ended.num_prompt_tokens])
                self._observe("vllm:request_generation_tokens", [ended.num_generation_tokens])

    def _observe(self, name: str, values: Sequence[float]) -> None:
        for value in values:
            self._histograms[name].observe(value)
