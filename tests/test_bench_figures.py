"""The figures of the benchmark for users, exactly."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from llm_service.bench_figures import (
    Answer,
    ErrorFigures,
    Failure,
    Load,
    Rate,
    Records,
    Spread,
    errors,
    figures,
    gaps,
    rate,
    show,
    spread,
)

LOAD = Load(sessions=2, turns=2, prompt="private words", max_tokens=5)


class TestFigures:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([], None),
            ([0.25], Spread(0.25, 0.25, 0.25, 0.25)),
            ([2.0, 1.0], Spread(1.5, 1.95, 1.99, 2.0)),
            ([0.01 * number for number in range(101)], Spread(0.5, 0.95, 0.99, 1.0)),
        ],
    )
    def test_spread(self, values: list[float], expected: Spread | None) -> None:
        """Percentiles lie between two values where they must, whatever the order."""
        assert expected == spread(values)

    def test_gaps(self) -> None:
        """A gap is between two pieces; one piece has none."""
        assert [0.5, 1.0] == gaps([1.0, 1.5, 2.5])
        assert [] == gaps([1.0])

    def test_rates(self) -> None:
        """A session's pauses count for the whole, not for the session; sessions weigh alike."""
        answers = [
            Answer(0, asked=0.0, arrivals=(), ended=1.0, words=10, tokens=20),
            Answer(0, asked=3.0, arrivals=(), ended=4.0, words=30, tokens=20),
            Answer(1, asked=1.0, arrivals=(), ended=5.0, words=40, tokens=40),
        ]
        assert Rate(per_session=15.0, in_all=16.0) == rate(answers, lambda answer: answer.words)
        assert rate([], lambda answer: answer.words) is None
        assert rate([replace(answers[0], ended=0.0)], lambda answer: answer.words) is None

    def test_errors(self) -> None:
        """Each code once, the most frequent first, with the first one's words and what to do."""
        failures = [Failure("odd", "x"), Failure("max_connections", "full"), Failure("max_connections", "still full")]
        advised = "full; raise LLM_MAX_CONNECTIONS, or measure with fewer --sessions"
        found = errors(failures)
        assert {"max_connections": ErrorFigures(2, advised), "odd": ErrorFigures(1, "x")} == found
        assert ["max_connections", "odd"] == list(found)

    def test_all_of_them(self) -> None:
        """Times are from the question on, and an answer without a word has no first one."""
        answers = [Answer(0, 1.0, (1.25, 1.5), 2.0, 2, 3), Answer(1, 1.0, (), 2.0, 0, 5, estimated=True)]
        found = figures(replace(LOAD, turns=1), Records("m", answers))
        assert (2, 2, 2, 8, True, True) == (
            found.responses_asked_for,
            found.responses_completed,
            found.words,
            found.tokens,
            found.tokens_estimated,
            found.complete,
        )
        assert Spread(0.25, 0.25, 0.25, 0.25) == found.time_to_first_token_seconds == found.gap_seconds
        assert Spread(1.0, 1.0, 1.0, 1.0) == found.response_seconds
        assert Rate(1.0, 2.0) == found.words_per_second
        assert Rate(4.0, 8.0) == found.tokens_per_second

    def test_complete(self) -> None:
        """One missing answer, and one error, are each enough to be incomplete."""
        answers = [Answer(0, 1.0, (), 2.0, 1, 1)] * 4
        assert figures(LOAD, Records("m", answers)).complete
        assert not figures(LOAD, Records("m", answers[1:])).complete
        assert not figures(LOAD, Records("m", answers, [Failure("odd", "x")])).complete


class TestShow:
    def shown(self, records: Records) -> list[str]:
        output = io.StringIO()
        show(figures(LOAD, records), Console(file=output, width=80))
        return [line.rstrip() for line in output.getvalue().splitlines()]

    def test_table(self) -> None:
        """Times are in milliseconds; what is not in the table stands under it."""
        answer = Answer(0, 1.0, (1.25, 1.5), 2.0, 2, 3, estimated=True)
        lines = self.shown(Records("m", [answer], [Failure("odd", "x [b] \x1b[2J")], interrupted=True))
        rows = [line.split() for line in lines]
        assert ["p50", "p95", "p99", "max", "per", "session", "in", "all"] in rows
        assert ["first", "token,", "ms", *["250.0"] * 4] in rows
        assert ["gap,", "ms", *["250.0"] * 4] in rows
        assert ["whole", "answer,", "ms", *["1000"] * 4] in rows
        assert ["words", "a", "second", "2.0", "2.0"] in rows
        assert ["tokens", "a", "second", "3.0", "3.0"] in rows
        assert "interrupted: 1 of 4 responses completed, 2 words, about 3 tokens of m" == lines[-2]
        assert "1 × odd: x [b] [2J" == lines[-1]

    def test_large_figures(self) -> None:
        """Minutes and hundreds of thousands a second fit into 80 columns."""
        lines = self.shown(Records("m", [Answer(0, 0.0, (600.0, 1200.0), 1200.0, 10**9, 10**9)]))
        assert ["first", "token,", "ms", *["600000"] * 4] in [line.split() for line in lines]

    def test_nothing_measured(self) -> None:
        """Without an answer there is no table."""
        assert ["0 of 4 responses completed, 0 words, 0 tokens", "1 × odd: x"] == self.shown(
            Records(failures=[Failure("odd", "x")])
        )
