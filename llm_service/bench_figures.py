"""The figures of `python main.py bench`: what is noted of each response, what is made of that, and how it is shown.

All times are in seconds, of `perf_counter`.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import mean, quantiles

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_service.chat_client import printable

# What to do, where the service's own words, which are for its clients, do not say it to who measures.
ADVICE = {
    "max_connections": "raise LLM_MAX_CONNECTIONS, or measure with fewer --sessions",
    "unauthorized": "give a key with --api-key",
}


@dataclass(frozen=True)
class Load:
    """What is asked: `turns` questions one after the other in each of `sessions` sessions, all at the same time."""

    sessions: int
    turns: int
    prompt: str
    max_tokens: int

    @property
    def config(self) -> dict[str, object]:
        """What a session's start_session asks for."""
        return {"max_tokens": self.max_tokens, "temperature": 0}


@dataclass(frozen=True)
class Answer:
    """One response that was completed: when it was asked for, when each token event came, when it ended."""

    session: int
    asked: float
    arrivals: tuple[float, ...]
    ended: float
    words: int
    tokens: int
    estimated: bool = False


@dataclass(frozen=True)
class Failure:
    """A response that failed, or a session that could not go on."""

    code: str
    message: str


@dataclass
class Records:
    """What was measured so far."""

    model: str = ""
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class Spread:
    """Of several times, in seconds."""

    p50: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True)
class Rate:
    """A second: the mean of what the sessions saw while they were answered, and what the service did for all."""

    per_session: float
    in_all: float


@dataclass(frozen=True)
class ErrorFigures:
    """How often there was an error of one code, and the first one's words."""

    count: int
    message: str


@dataclass(frozen=True)
class Figures:
    """What `--json` prints: docs/bench.md. `None` where nothing was measured."""

    model: str
    sessions: int
    turns: int
    max_tokens: int
    interrupted: bool
    responses_asked_for: int
    responses_completed: int
    time_to_first_token_seconds: Spread | None
    gap_seconds: Spread | None
    response_seconds: Spread | None
    words: int
    tokens: int
    tokens_estimated: bool
    words_per_second: Rate | None
    tokens_per_second: Rate | None
    errors: dict[str, ErrorFigures]

    @property
    def complete(self) -> bool:
        """Whether every response there was to be was completed."""
        return self.responses_completed == self.responses_asked_for and not self.errors


def figures(load: Load, records: Records) -> Figures:
    """Make the figures of what was noted."""
    answers = records.answers
    return Figures(
        model=records.model,
        sessions=load.sessions,
        turns=load.turns,
        max_tokens=load.max_tokens,
        interrupted=records.interrupted,
        responses_asked_for=load.sessions * load.turns,
        responses_completed=len(answers),
        time_to_first_token_seconds=spread(a.arrivals[0] - a.asked for a in answers if a.arrivals),
        gap_seconds=spread(gap for a in answers for gap in gaps(a.arrivals)),
        response_seconds=spread(a.ended - a.asked for a in answers),
        words=sum(a.words for a in answers),
        tokens=sum(a.tokens for a in answers),
        tokens_estimated=any(a.estimated for a in answers),
        words_per_second=rate(answers, lambda a: a.words),
        tokens_per_second=rate(answers, lambda a: a.tokens),
        errors=errors(records.failures),
    )


def spread(values: Iterable[float]) -> Spread | None:
    """Return percentiles, between two of the values if need be, as the benchmarks' own are; None for no values."""
    known = list(values)
    if not known:
        return None
    # For a single value `quantiles` has no answer in Python 3.11.
    cuts = quantiles(known * 2 if len(known) == 1 else known, n=100, method="inclusive")
    return Spread(*(round(value, 6) for value in (cuts[49], cuts[94], cuts[98], max(known))))


def gaps(arrivals: Sequence[float]) -> list[float]:
    """Return the times between one arrival and the next."""
    return [later - earlier for earlier, later in pairwise(arrivals)]


def rate(answers: Sequence[Answer], count: Callable[[Answer], int]) -> Rate | None:
    """Return how much of what `count` counts came a second; None if no time passed.

    A session's seconds are those in which it was being answered; all sessions' are from the first question to the
    last answer's end.
    """
    counts: dict[int, int] = defaultdict(int)
    seconds: dict[int, float] = defaultdict(float)
    for answer in answers:
        counts[answer.session] += count(answer)
        seconds[answer.session] += answer.ended - answer.asked
    if not counts or not all(seconds.values()):
        return None
    whole = max(a.ended for a in answers) - min(a.asked for a in answers)
    per_session = mean(counts[session] / seconds[session] for session in counts)
    return Rate(round(per_session, 3), round(sum(counts.values()) / whole, 3))


def errors(failures: Sequence[Failure]) -> dict[str, ErrorFigures]:
    """Return the errors by code, the most frequent first, each with its words and what to do."""
    first = {failure.code: failure.message for failure in reversed(failures)}
    found = Counter(failure.code for failure in failures).most_common()
    return {code: ErrorFigures(count, _with_advice(code, first[code])) for code, count in found}


def _with_advice(code: str, message: str) -> str:
    return f"{message}; {ADVICE[code]}" if code in ADVICE else message


def show(found: Figures, console: Console) -> None:
    """Print the figures as a table, and under it what went wrong."""
    if found.responses_completed:
        console.print(_table(found))
    about, state = "about " * found.tokens_estimated, "interrupted: " * found.interrupted
    count = f"{found.responses_completed} of {found.responses_asked_for} responses completed"
    model = f" of {found.model}" if found.model else ""
    words = f"{found.words} words, {about}{found.tokens} tokens{model}"
    console.print(Text(printable(f"{state}{count}, {words}")), soft_wrap=True)
    for code, error in found.errors.items():
        console.print(Text(printable(f"{error.count} × {code}: {error.message}"), style="red"), soft_wrap=True)


def _table(found: Figures) -> Table:
    # A plain box: it is to fit into 80 columns, which a file or a pipe is taken to have.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column()
    for name in ("p50", "p95", "p99", "max", "per session", "in all"):
        table.add_column(name, justify="right")
    for name, times in (
        ("first token, ms", found.time_to_first_token_seconds),
        ("gap, ms", found.gap_seconds),
        ("whole answer, ms", found.response_seconds),
    ):
        if times is not None:
            table.add_row(name, *map(_ms, (times.p50, times.p95, times.p99, times.max)))
    for name, speed in (("words a second", found.words_per_second), ("tokens a second", found.tokens_per_second)):
        if speed is not None:
            table.add_row(name, "", "", "", "", f"{speed.per_session:.1f}", f"{speed.in_all:.1f}")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds < 1 else f"{1000 * seconds:.0f}"
