"""Retries around an engine: until its answer has begun, and never after.

What was sent cannot be taken back: an answer that is begun anew would be said twice. What no user waits for is not
asked again either.
"""

from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, stop_before_delay
from tenacity.wait import wait_random_exponential

from llm_service.engines.base import Engine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, EngineUnreachable, GenerationFailed, InvalidToolCall
from llm_service.generation import Finish, GenerationRequest, Sink

# What another attempt may well not meet. Timeouts are not among them: they have used up the client's patience.
RETRYABLE = (EngineUnreachable, GenerationFailed, InvalidToolCall)
# Seconds between attempts: a random time up to 0.1, 0.2, 0.4 …, so that clients of one failure come back apart.
FIRST_WAIT = 0.1
LONGEST_WAIT = 2.0


class RetryingEngine(EngineWrapper):
    """An engine that is asked up to `retries` times more, within `budget` seconds from its first failure on.

    No attempt begins later than that. One that has begun is not cut: a prompt may take longer to read, and the engine's
    own deadlines hold for it.

    `retried` hears of each failure that is followed by another attempt. An engine that says when it can be asked
    again (`retry_after`) is not asked earlier, and not at all if that is past the budget.
    """

    def __init__(
        self, engine: Engine, *, retries: int, budget: float, retried: Callable[[EngineError], None] = lambda _: None
    ) -> None:
        super().__init__(engine)
        self._retries = retries
        self._budget = budget
        self._retried = retried

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`, as the engine does; raises what its last attempt raised."""
        try:
            return await self._engine.generate(request, sink)
        except RETRYABLE as error:
            if sink.times or request.background:
                raise
            failed: EngineError | None = error

        async def attempt() -> Finish:
            nonlocal failed
            if failed is not None:
                first, failed = failed, None
                raise first
            return await self._engine.generate(request, sink)

        # Only now: it costs as much as a tenth of a turn, and nearly no turn needs it.
        attempts = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, RETRYABLE) and not sink.times),
            stop=stop_after_attempt(1 + self._retries) | stop_before_delay(self._budget),
            wait=_wait,
            before_sleep=self._note,
            reraise=True,
        )
        return await attempts(attempt)

    def _note(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, EngineError):
            self._retried(error)


_jittered = wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, EngineError) else None
    return max(_jittered(state), asked or 0.0)
