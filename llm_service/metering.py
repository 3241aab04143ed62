"""Measures responses for the metrics, at the cost of one list append a token."""

from asyncio import CancelledError
from time import monotonic
from types import TracebackType
from typing import Self

from llm_service.generation import Usage
from llm_service.metrics import Measured, Outcome, ResponseMetrics, TokenType


class ResponseMeter:
    """A context around `Engine.generate`: from asking the engine to the end of its stream.

    Whoever takes the deltas appends the time of each (of `time.monotonic`, in seconds) to `times`. A response counts
    as cancelled if its task was cancelled, and as failed if it raised. One that must wait for the engine (`waits`) is
    neither running nor timed until then (`asked`).
    """

    __slots__ = ("_measured", "_running", "_started", "_stopped_at", "_usage", "times")

    def __init__(self, measured: ResponseMetrics) -> None:
        self._measured = measured
        self._usage: Usage | None = None
        self._stopped_at: float | None = None
        self.times: list[float] = []

    def __enter__(self) -> Self:
        self._running = 0
        self.asked()
        return self

    def waits(self) -> None:
        """Take note that the engine is not asked yet."""
        self._measured.running -= self._running
        self._running = 0

    def asked(self) -> None:
        """Take note that the engine is asked now."""
        self._measured.running += 1 - self._running
        self._running = 1
        self._started = monotonic()

    def asks(self, measured: ResponseMetrics) -> None:
        """Take note that another engine is asked: the response is its own from now on."""
        self._measured.running -= self._running
        measured.running += self._running
        self._measured = measured
        if not self.times:
            self._started = monotonic()

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
        now = monotonic()
        self._measured.running -= self._running
        self._measured.add(
            Measured(
                outcome,
                self._started,
                now,
                self.times,
                None if self._stopped_at is None else now - self._stopped_at,
                self._tokens(outcome),
            )
        )

    def _tokens(self, outcome: Outcome) -> dict[TokenType, int]:
        if outcome != "finished":
            return {"output": len(self.times)}  # nobody counted them; about one token each
        usage = self._usage
        if usage is None:
            return {}
        tokens: dict[TokenType, int] = {"input": usage.prompt_tokens, "output": usage.completion_tokens}
        if usage.cached_tokens is not None:
            tokens["cached"] = usage.cached_tokens
        return tokens
