"""Measures responses for the metrics, at the cost of one list append a token."""

from asyncio import CancelledError
from bisect import bisect_left
from collections import Counter
from itertools import repeat
from operator import sub
from time import monotonic
from types import TracebackType
from typing import Self

from llm_service.generation import Usage
from llm_service.metrics import INTER_TOKEN_BUCKETS, Outcome, ResponseMetrics


class ResponseMeter:
    """A context around `Engine.generate`: from asking the engine to the end of its stream.

    Whoever takes the deltas appends the time of each (of `time.monotonic`, in seconds) to `times`; the collectors
    hear of them at the end. A response counts as cancelled if its task was cancelled, and as failed if it raised.
    """

    def __init__(self, measured: ResponseMetrics) -> None:
        self._measured = measured
        self._usage: Usage | None = None
        self._stopped_at: float | None = None
        self.times: list[float] = []

    def __enter__(self) -> Self:
        self._measured.running.inc()
        self._started = monotonic()
        return self

    def finished(self, usage: Usage | None) -> None:
        """Take the tokens as the engine counted them."""
        self._usage = usage

    def stopped(self) -> None:
        """Take note that nobody wants the rest: from now until the stream is closed the engine is kept for nothing.

        The first call counts: a later one means a response that waits for this one's end.
        """
        if self._stopped_at is None:
            self._stopped_at = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome: Outcome = "finished"
        if kind is not None:
            outcome = "cancelled" if issubclass(kind, CancelledError) else "failed"
        measured, times = self._measured, self.times
        measured.running.dec()
        now = monotonic()
        measured.observe_duration[outcome](now - self._started)
        if self._stopped_at is not None:
            measured.observe_cancel_to_idle(now - self._stopped_at)
        if times:
            measured.observe_first_token(times[0] - self._started)
            found = Counter(map(bisect_left, repeat(INTER_TOKEN_BUCKETS), map(sub, times[1:], times)))
            gaps = [found[bucket] for bucket in range(len(INTER_TOKEN_BUCKETS) + 1)]
            measured.observe_inter_token(gaps, times[-1] - times[0])
        if kind is not None:
            measured.count_tokens["output"](len(times))  # nobody counted them; about one token each
        elif self._usage is not None:
            measured.count_tokens["input"](self._usage.prompt_tokens)
            measured.count_tokens["output"](self._usage.completion_tokens)
            if self._usage.cached_tokens is not None:
                measured.count_tokens["cached"](self._usage.cached_tokens)
