"""From records to figures: percentiles, what was added to the engine's own times, medians of rounds."""

from collections.abc import Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.clients import Turn, session_of

# By seed: when the engine had the request, and when it wrote each word.
EngineLog = dict[int, tuple[float, list[float]]]


class Spread(msgspec.Struct, frozen=True):
    """p50 and p99, in milliseconds."""

    p50: float
    p99: float


class Sample(msgspec.Struct, frozen=True):
    """One measurement. `busy` is the share of its core that the tested process used; 1 is saturated.

    `first` and `gap` are what was added to the engine's own time to first token and gaps between words;
    `delay` is from the engine's write of a word to its arrival. Memory in KiB.
    """

    cpu_us_per_word: float
    words_per_second: float
    busy: float
    engine_busy: float
    load_busy: float
    first: Spread
    gap: Spread
    delay: Spread
    words_per_frame: float
    turns: int
    rss: int
    pss: int


class Row(msgspec.Struct, frozen=True):
    """The samples of one system under one load, of so many sessions.

    `over_floor` are the rounds' own ratios, and `first_over_direct` the median of their differences. `note` says what
    went wrong; `failed`, that it did so while it was measured.
    """

    system: str
    title: str
    load: str
    sessions: int
    samples: list[Sample]
    over_floor: list[float] = []
    first_over_direct: Spread | None = None
    note: str = ""
    failed: bool = False

    @property
    def middle(self) -> Sample | None:
        """The sample with the median CPU per word: one that was, not a mixture of several."""
        if not self.samples:
            return None
        ordered = sorted(self.samples, key=lambda sample: sample.cpu_us_per_word)
        return ordered[(len(ordered) - 1) // 2]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of the values lie, between two of them if need be; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread:
    """Return p50 and p99 of times in seconds."""
    return Spread(round(percentile(values, 0.5) * 1000, 3), round(percentile(values, 0.99) * 1000, 3))


def over(values: Sequence[float], own: Sequence[float]) -> Spread:
    """Return how much higher p50 and p99 are than those of the engine's own times."""
    seen, engine = spread(values), spread(own)
    return Spread(round(seen.p50 - engine.p50, 3), round(seen.p99 - engine.p99, 3))


def words_between(turns: Sequence[Turn], begin: float, end: float) -> int:
    """Count the words that arrived in a window of time."""
    return sum(begin <= at < end for turn in turns for at in turn.arrivals)


def added_first(turns: Sequence[Turn], log: EngineLog, begin: float) -> list[float]:
    """Return what was added to each time to first token: the way there and the way back.

    Answers asked for before `begin`, while sessions still came in, count only where there are no others.
    """
    answered = [turn for turn in turns if turn.arrivals and log.get(turn.seed, (0.0, []))[1]]
    settled = [turn for turn in answered if turn.asked >= begin] or answered
    added = []
    for turn in settled:
        received, sent = log[turn.seed]
        added.append((turn.arrivals[0] - turn.asked) - (sent[0] - received))
    return added


def gaps(turns: Sequence[Turn], log: EngineLog, begin: float, end: float) -> tuple[list[float], list[float]]:
    """Return the gaps between the words that arrived in the window, and the engine's own of the same words.

    Of a word that was sent and is still due at the end, what passed until then counts where it is the longer one.
    """
    seen, own = [], []
    for turn in turns:
        sent = log.get(turn.seed, (0.0, []))[1]
        for index in range(1, min(len(turn.arrivals), len(sent))):
            if begin <= turn.arrivals[index - 1] and turn.arrivals[index] < end:
                seen.append(turn.arrivals[index] - turn.arrivals[index - 1])
                own.append(sent[index] - sent[index - 1])
        next_ = sum(at < end for at in turn.arrivals)
        if 0 < next_ < len(sent) and sent[next_] < end and begin <= turn.arrivals[next_ - 1]:
            waited, engine = end - turn.arrivals[next_ - 1], sent[next_] - sent[next_ - 1]
            if waited > engine:
                seen.append(waited)
                own.append(engine)
    return seen, own


def silent(turns: Sequence[Turn], begin: float, end: float) -> int:
    """Count the sessions that got no word in a window of time."""
    sessions, heard = set(), set()
    for turn in turns:
        sessions.add(session_of(turn.seed))
        if any(begin <= at < end for at in turn.arrivals):
            heard.add(session_of(turn.seed))
    return len(sessions - heard)


def delays(turns: Sequence[Turn], log: EngineLog, begin: float, end: float) -> list[float]:
    """Return the time from the engine's write to the arrival, for the words that arrived in the window."""
    return [
        at - sent
        for turn in turns
        for at, sent in zip(turn.arrivals, log.get(turn.seed, (0.0, []))[1], strict=False)
        if begin <= at < end
    ]


def ratios(tested: Mapping[int, Sample], floor: Mapping[int, Sample]) -> list[float]:
    """Return the CPU per word ÷ the floor's of the rounds that have both: drift hits both of a pair alike."""
    return [
        round(tested[number].cpu_us_per_word / floor[number].cpu_us_per_word, 3)
        for number in sorted(tested.keys() & floor.keys())
        if floor[number].cpu_us_per_word
    ]


def paired_first(tested: Mapping[int, Sample], direct: Mapping[int, Sample]) -> Spread | None:
    """Return how much later the first word comes than from the engine asked directly: the median of the rounds.

    Client, kernel and engine take their time on a direct way, too; what is left is what lies between.
    """
    pairs = [(tested[number].first, direct[number].first) for number in sorted(tested.keys() & direct.keys())]
    if not pairs:
        return None
    return Spread(
        round(median(through.p50 - alone.p50 for through, alone in pairs), 3),
        round(median(through.p99 - alone.p99 for through, alone in pairs), 3),
    )
