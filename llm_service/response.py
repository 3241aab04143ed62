"""One response while it runs: what was said so far, and its figures at the end."""

from dataclasses import dataclass, field

from llm_service.events import ContextUse, ResponseStats
from llm_service.generation import Finish, Usage


@dataclass(slots=True)
class Response:
    """A generation that was asked for; `id` is the user message's. Times are in seconds."""

    number: int
    id: str | None
    started_at: float
    first_token_at: float | None = None
    pieces: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of every delta, reasoning included

    @property
    def text(self) -> str:
        """The answer so far, without the reasoning."""
        return "".join(self.pieces)

    @property
    def deltas(self) -> int:
        """How many deltas came."""
        return len(self.times)

    def stats(self, finish: Finish, now: float, *, context_window: int, dropped_turns: int) -> ResponseStats:
        """Return the figures of `response_complete`."""
        seconds = now - self.started_at
        usage, first = finish.usage, self.first_token_at
        # An engine that does not count leaves the number of deltas, marked as an estimate.
        counted = usage or Usage(prompt_tokens=0, completion_tokens=self.deltas)
        return ResponseStats(
            tokens_generated=counted.completion_tokens,
            processing_time_ms=round(seconds * 1000, 3),
            tokens_per_second=round(counted.completion_tokens / seconds, 3) if seconds > 0 else 0.0,
            finish_reason="length" if finish.reason == "length" else "stop",
            prompt_tokens=counted.prompt_tokens,
            time_to_first_token_ms=None if first is None else round((first - self.started_at) * 1000, 3),
            context=ContextUse(
                used=counted.prompt_tokens + counted.completion_tokens,
                limit=context_window,
                dropped=dropped_turns,
            ),
            cached_tokens=counted.cached_tokens,
            estimated=usage is None,
        )
