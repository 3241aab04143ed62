"""One response while it runs: what was said so far, and its figures at the end."""

from collections.abc import Callable

import msgspec

from llm_service.events import ContextUse, ResponseStats, UserMessage
from llm_service.generation import Delta, Finish, Usage
from llm_service.sentences import Chunk
from llm_service.session_defaults import Choices
from llm_service.turn import Turn


class SpokenChunk(msgspec.Struct, frozen=True):
    """A chunk, and the characters of the whole answer that stand before those it was cut of."""

    chunk: Chunk
    offset: int

    @property
    def start(self) -> int:
        """Where it begins in the answer."""
        return self.offset + self.chunk.start

    @property
    def end(self) -> int:
        """Where it ends in the answer."""
        return self.offset + self.chunk.end

    def heard(self, chars: int) -> int:
        """Return how much of the answer was heard when so many characters of the chunk were."""
        return self.offset + self.chunk.response_chars(chars)


class Response(msgspec.Struct):
    """A generation that was asked for; times are in seconds.

    `id` is the user message's, `choices` what held when it came.
    """

    number: int
    choices: Choices
    id: str | None
    started_at: float
    over: bool = False
    first_token_at: float | None = None
    pieces: list[str] = []  # since the last tools were asked for
    times: list[float] = []  # of every delta since then, reasoning included
    turn: Turn | None = None  # what of it is in the history, once it has ended
    interrupted: bool = False
    heard: int | None = None  # characters of the whole answer that were played; None: nobody told
    uncounted: UserMessage | None = None  # what it answers, while the engine counts its tokens
    tools_at: float | None = None  # when tools were asked for whose results are awaited
    steps: int = 0  # times that tools were asked for
    earlier_chars: int = 0
    earlier_deltas: int = 0
    earlier_tokens: int = 0
    chunks: dict[int, SpokenChunk] = {}  # what of it was cut to be spoken, by the chunks' ids

    @property
    def text(self) -> str:
        """The answer so far, without the reasoning, from the last results of tools on."""
        return "".join(self.pieces)

    @property
    def chars(self) -> int:
        """The length of the whole answer so far."""
        return self.earlier_chars + len(self.text)

    @property
    def heard_end(self) -> int | None:
        """What was played of the answer, in characters, with what follows that is for nobody's ear: code, an emoji."""
        end = self.heard
        if end:
            for spoken in self.chunks.values():
                if not spoken.chunk.text and spoken.start == end:
                    end = spoken.end
        return end

    def held(self, usage: Usage | None) -> Usage | None:
        """Return the count of what stays in the history: reasoning is generated, and then in no prompt."""
        if usage is None or len(self.pieces) == len(self.times):
            return usage
        return msgspec.structs.replace(
            usage, completion_tokens=usage.completion_tokens * len(self.pieces) // len(self.times)
        )

    @property
    def deltas(self) -> int:
        """How many deltas came."""
        return self.earlier_deltas + len(self.times)

    def measure(self, times: list[float]) -> None:
        """Take the list that the next generation's times are put into."""
        self.earlier_deltas += len(self.times)
        self.times = times

    def rest(self, text: str) -> None:
        """Let go of the parts of the answer's `text`, which is over: the session keeps it while it may be heard."""
        self.pieces = [text]
        self.measure([])

    def step(self, usage: Usage | None, now: float) -> None:
        """Take note that what was said so far is followed by calls of tools."""
        self.earlier_chars += len(self.text)
        self.earlier_tokens += usage.completion_tokens if usage is not None else len(self.times)
        self.pieces = []
        self.steps += 1
        self.tools_at = now

    def stats(self, finish: Finish, now: float, *, context_window: int, dropped_turns: int) -> ResponseStats:
        """Return the figures of `response_complete`."""
        seconds = now - self.started_at
        usage, first = finish.usage, self.first_token_at
        # An engine that does not count leaves the number of deltas, marked as an estimate.
        counted = usage or Usage(prompt_tokens=0, completion_tokens=len(self.times))
        tokens = self.earlier_tokens + counted.completion_tokens
        return ResponseStats(
            tokens_generated=tokens,
            processing_time_ms=round(seconds * 1000, 3),
            tokens_per_second=round(tokens / seconds, 3) if seconds > 0 else 0.0,
            finish_reason="length" if finish.reason == "length" else "stop",
            prompt_tokens=counted.prompt_tokens,
            time_to_first_token_ms=_milliseconds(None if first is None else first - self.started_at),
            context=ContextUse(
                used=counted.prompt_tokens + counted.completion_tokens,
                limit=context_window,
                dropped=dropped_turns,
            ),
            cached_tokens=counted.cached_tokens,
            prompt_ms=_milliseconds(counted.prompt_seconds),
            load_ms=_milliseconds(counted.load_seconds),
            estimated=usage is None,
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


class Taker:
    """Takes a response's deltas from the engine and sends each on, all in one call, until the response is over.

    The answer's text goes to `say`, its reasoning to `think`, and the `clock`'s time of each to `times`. An object with
    slots: a closure's cells lie apart from each other, and between two tokens of one session those of all others run,
    so that each costs a token its way from memory.
    """

    __slots__ = ("_clock", "_pieces", "_response", "_say", "_silent", "_think", "_times")

    def __init__(
        self,
        response: Response,
        *,
        say: Callable[[str], None],
        think: Callable[[str], None],
        clock: Callable[[], float],
        times: list[float],
    ) -> None:
        self._response = response
        self._say = say
        self._think = think
        self._clock = clock
        self._times = times
        self._pieces = response.pieces
        self._silent = response.first_token_at is None

    def take(self, delta: Delta) -> None:
        """Send it on."""
        if self._response.over:
            return
        # Taken out first, here and below: to call what a slot holds costs more than to call what a name does.
        clock = self._clock
        self._times.append(clock())
        text = delta.text
        if delta.thinking:
            self._think(text)
            return
        if self._silent:
            self._silent = False
            self._response.first_token_at = self._times[-1]
        self._pieces.append(text)
        say = self._say
        say(text)
