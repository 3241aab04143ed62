"""`python -m benchmarks real`: what it asks, how it pairs, and what it makes of the answers."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from benchmarks import real, real_engines, real_figures
from benchmarks.real_engines import OLLAMA_ADVICE, SEED, SYSTEM_PROMPT, TEMPERATURE, TOP_K, TOP_P, WINDOW, Target
from benchmarks.real_figures import Answer, Estimate, Pair, Row
from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.openai import OpenAIEngine
from llm_service.generation import GenerationRequest, Message, SamplingParams


def answer(ttft: float = 100.0, rate: float = 50.0, tokens: int = 64, engine_ms: float | None = None) -> Answer:
    """Make up an answer."""
    return Answer(ttft, rate, tokens, 40, cached=None, finish="length", characters=300, engine_ms=engine_ms)


def pairs(added: float, ratio: float, count: int = 6) -> list[Pair]:
    """Make up pairs of which the service adds the same each time, while the engine itself drifts."""
    drift = [(100.0 + 10 * number, 50.0 - number) for number in range(count)]
    return [
        Pair(real.order(number)[0], answer(ttft, rate), answer(ttft + added, rate * ratio))
        for number, (ttft, rate) in enumerate(drift)
    ]


class TestRequests:
    """Directly and through the service the engine is asked the very same."""

    request = GenerationRequest(
        "m",
        (Message("system", SYSTEM_PROMPT), Message("user", "hello")),
        SamplingParams(temperature=TEMPERATURE, top_p=TOP_P, top_k=TOP_K, max_tokens=64, seed=SEED),
        context_window=WINDOW,
    )

    @pytest.mark.parametrize("threads", [None, 1])
    async def test_ollama(self, threads: int | None) -> None:
        """Ollama's request is the one the service's engine writes, with NUM_THREADS and without."""
        engine = OllamaEngine("http://127.0.0.1:1", options={"num_thread": threads} if threads else None)
        direct = msgspec.json.encode(Target("ollama", 1, 2, "m", threads=threads).body("hello", 64))
        assert msgspec.json.decode(direct) == msgspec.json.decode(msgspec.json.encode(engine._chat(self.request)))
        await engine.aclose()

    @pytest.mark.parametrize("extra", [None, {"return_progress": True}])
    async def test_openai(self, extra: dict[str, object] | None) -> None:
        """So is that of OpenAI's protocol, with and without what the embedded engine adds."""
        engine = OpenAIEngine("http://127.0.0.1:1/v1", extra=extra)
        direct = msgspec.json.encode(Target("openai", 1, 2, "m", extra=extra).body("hello", 64))
        assert msgspec.json.decode(direct) == msgspec.json.decode(msgspec.json.encode(engine._chat(self.request)))
        await engine.aclose()

    def test_a_session_asks_for_the_same(self) -> None:
        """The session's configuration has what the request says of sampling."""
        config = real_engines.session_config(64)
        sampling = self.request.sampling
        assert sampling == SamplingParams(**{name: config[name] for name in config if name != "system_prompt"})
        assert SYSTEM_PROMPT == config["system_prompt"]


class TestPairing:
    """Neither side is favoured by who came first."""

    def test_the_order_is_abba(self) -> None:
        """Each is asked first in half of the pairs, the warm-ups before them included."""
        assert [("direct", "service"), ("service", "direct")] * 2 == [real.order(number) for number in range(4)]
        assert ("service", "direct") == real.order(-1)

    def test_no_prompt_is_asked_twice(self) -> None:
        """As many prompts as the most pairs need are all different, and of as many words."""
        prompts = [real.prompt(number) for number in range(2 * (real.MAX_PAIRS + 2))]
        assert len(set(prompts)) == len(prompts)
        assert 1 == len({text.count(" ") for text in prompts})

    @pytest.mark.parametrize("number", [0, 106, 107, 1003])
    def test_two_in_a_row_differ_from_the_same_place_on(self, number: int) -> None:
        """What an engine finds in its cache of the prompt before is the same every time."""
        one, other = real.prompt(number), real.prompt(number + 1)
        head = one.index("about the ") + len("about the ")
        assert one[:head] == other[:head]
        assert one[head:].split()[0] != other[head:].split()[0]


class TestEstimate:
    """The median and its interval."""

    def test_it_is_the_same_every_time(self) -> None:
        """The seed is fixed: a run's figures can be had again from its pairs."""
        values = [0.1, 3.0, 2.0, 8.0, 1.5, 2.2, 2.4]
        assert real_figures.estimate(values) == real_figures.estimate(values)

    def test_it_holds_the_median(self) -> None:
        """The interval lies about the median, within the values."""
        values = [float(value) for value in range(21)]
        found = real_figures.estimate(values)
        assert 10 == found.value
        assert 0 < found.low < 10 < found.high < 20

    def test_one_pair_has_no_width(self) -> None:
        """A single value is all there is."""
        assert Estimate(2.5, 2.5, 2.5) == real_figures.estimate([2.5])

    def test_pairs_take_out_the_drift(self) -> None:
        """What both sides drift by is in neither the difference nor the ratio."""
        row = real_figures.row("x", "an engine", pairs(added=2.0, ratio=0.98))
        assert Estimate(2, 2, 2) == row.added_ttft_ms
        assert Estimate(0.98, 0.98, 0.98) == row.rate_ratio
        assert (125, 127) == (row.direct_ttft_ms, row.service_ttft_ms)
        assert 6 == row.same_length

    def test_what_the_engine_tells_is_taken_out(self) -> None:
        """However long the engine reads, what is beside that is the same; one that does not tell leaves it open."""
        read = [(80.0, 20.0), (30.0, 90.0), (50.0, 50.0)]
        told = [Pair("direct", answer(10 + a, engine_ms=a), answer(12 + b, engine_ms=b)) for a, b in read]
        row = real_figures.row("x", "an engine", told)
        assert Estimate(2, 2, 2) == row.added_beside_ms
        assert row.added_ttft_ms is not None
        assert row.added_ttft_ms.high > 50
        cells = [cell.strip() for cell in real_figures.table([row]).splitlines()[2].strip("|").split("|")]
        assert ["+2.00 (+2.00 to +2.00)", "met"] == cells[5:7]
        assert real_figures.row("x", "an engine", [*told, *pairs(0, 1, 1)]).added_beside_ms is None


class TestVerdict:
    """Met or not, and whether that is sure."""

    @pytest.mark.parametrize(
        ("estimate", "said"),
        [
            (Estimate(1, 0.5, 2), "met"),
            (Estimate(1, 0.5, 3), "met"),
            (Estimate(1, -5, 4), "met, undecided"),
            (Estimate(4, 2, 5), "not met, undecided"),
            (Estimate(4, 3.5, 5), "not met"),
        ],
    )
    def test_at_most(self, estimate: Estimate, said: str) -> None:
        """The time to the first token is to be at most so much longer."""
        assert said == real_figures.verdict(estimate, 3, at_most=True)

    @pytest.mark.parametrize(
        ("estimate", "said"),
        [
            (Estimate(1, 0.99, 1.1), "met"),
            (Estimate(1, 0.98, 1.1), "met, undecided"),
            (Estimate(0.98, 0.97, 0.985), "not met"),
        ],
    )
    def test_at_least(self, estimate: Estimate, said: str) -> None:
        """The rate is to be at least so much of the direct one."""
        assert said == real_figures.verdict(estimate, 0.99, at_most=False)


class TestWhatIsShown:
    """The table and the files."""

    rows = (
        real_figures.row("llama-server", "llama.cpp's server", pairs(added=4.0, ratio=1.0)),
        Row("ollama", "Ollama", note=OLLAMA_ADVICE),
        Row("embedded", "embedded", note="failed: it ended", failed=True),
    )

    def test_a_row_has_its_figures_and_the_goals(self) -> None:
        """Medians, differences with their interval, and whether the goals are met."""
        line = next(line for line in real_figures.table(self.rows).splitlines() if line.startswith("| llama.cpp"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert ["6", "125.00", "129.00", "+4.00 (+4.00 to +4.00)", "-", "not met"] == cells[1:7]
        assert ["47.5", "47.5", "1.000 (1.000-1.000)", "met"] == cells[7:]

    def test_a_control_has_no_goals(self) -> None:
        """It has figures, which no goal is for."""
        line = real_figures.table([real_figures.row("control", "control", pairs(added=0, ratio=1))]).splitlines()[2]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert ["-", "-"] == [cells[6], cells[10]]

    def test_a_missing_engine_says_how_to_get_it(self) -> None:
        """The row is there, and so is the advice; one that failed says why."""
        shown = real_figures.table(self.rows)
        assert "| missing |" in shown.replace("  ", "")
        assert OLLAMA_ADVICE in shown
        assert "embedded: failed: it ended" in shown

    def test_answers_of_other_length_are_told(self) -> None:
        """Their words/s are compared all the same, which a reader has to know."""
        unequal = [Pair("direct", answer(), answer(tokens=30)), *pairs(0, 1, 2)]
        assert "x: 2 of 3 pairs" in real_figures.table([real_figures.row("x", "x", unequal)])

    def test_the_files_can_be_read_back(self, tmp_path: Path) -> None:
        """JSON has every pair; the page has the machine, the command and the table."""
        data, page = real_figures.write(
            tmp_path / "new", self.rows, {"cpu": "a cpu", "cores": 2}, ["real", "--rounds", "6"]
        )
        found = msgspec.json.decode(data.read_bytes())
        assert list(self.rows) == msgspec.convert(found["rows"], list[Row])
        assert {"added_ttft_ms": 3.0, "rate_ratio": 0.99} == found["goals"]
        text = page.read_text()
        assert all(part in text for part in ("- cpu: a cpu", "`python -m benchmarks real --rounds 6`", found["at"]))
        assert real_figures.table(self.rows) in text


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine with fewer threads than there are cores has so many to itself, another one shares all with all."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    everywhere = frozenset(range(4))
    assert (frozenset({3}), frozenset({0, 1, 2})) == real_engines.shared_out(1)
    assert (frozenset({1, 2, 3}), frozenset({0})) == real_engines.shared_out(3)
    assert (everywhere, everywhere) == real_engines.shared_out(4) == real_engines.shared_out(None)


def test_who_asks_has_its_cores_back() -> None:
    """Of those it was given for an engine nothing is left to the next one."""
    before = os.sched_getaffinity(0)
    with real._on(frozenset({min(before)})):
        assert {min(before)} == os.sched_getaffinity(0)
    assert before == os.sched_getaffinity(0)
    with real._on(frozenset()):
        assert before == os.sched_getaffinity(0)


def test_a_named_ollama_must_be_there(tmp_path: Path) -> None:
    """A wrong path is said at once, not measured around."""
    with pytest.raises(ValueError, match="there is no program"):
        real_engines.find_ollama(tmp_path / "ollama")


@pytest.mark.embedded
def test_a_real_run(tmp_path: Path) -> None:
    """llama.cpp in a process of its own, direct and through the service: every figure is there."""
    with real_engines.llama_server_target(tmp_path) as target:
        measured = asyncio.run(real.measure(target, 2, max_tokens=16))
        (control,) = asyncio.run(real.measure(target, 1, max_tokens=16, control=True))
    found = real_figures.row("llama-server", "llama.cpp's server", measured)
    assert ["direct", "service"] == [pair.first for pair in measured]
    for pair in measured:
        for side in (pair.direct, pair.service):
            assert side.ttft_ms > 0
            assert side.tokens_per_second > 0
            assert side.characters > 0
            assert side.engine_ms
            assert 16 == side.tokens
            assert "length" == side.finish
        # The same length of prompt, and as much of it in the cache.
        assert (pair.direct.prompt_tokens, pair.direct.cached) == (pair.service.prompt_tokens, pair.service.cached)
        assert pair.direct.cached
    assert found.added_ttft_ms is not None
    assert found.rate_ratio is not None
    assert found.rate_ratio.value > 0
    assert 2 == found.same_length
    assert control.service.tokens == control.direct.tokens == 16
