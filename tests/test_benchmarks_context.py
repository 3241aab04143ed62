"""`python -m benchmarks context`: what is said, what a naive client drops, what is recorded, and what is made of it."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from benchmarks import context, context_engines, context_figures, context_script
from benchmarks.context_clients import Direct, Proxy, Said, Service
from benchmarks.context_engines import STRATEGIES, Asked, OllamaLog
from benchmarks.context_figures import Row, Turn, figures, table, verdict
from benchmarks.context_script import CHARACTERS_PER_TOKEN, SYSTEM_FACT, SYSTEM_PROMPT, TURNS, fitting
from benchmarks.processes import BenchmarkFailed
from benchmarks.real_engines import Target

SLOT = (
    'time=12:00 level=DEBUG source=cache.go:151 msg="loading cache slot" id=0 cache=80 prompt=120 used=75 remaining={}'
)


def turn(number: int, evaluated: int = 50, ttft: float = 200.0, *, recent: bool | None = True) -> Turn:
    """Make up a turn with a hundred new tokens."""
    return Turn(number, ttft, 1000, evaluated, 100, messages=9, system_fact=True, recent_fact=recent)


class TestConversation:
    """Everyone hears the same."""

    def test_messages(self) -> None:
        """Each has 20 to 60 words, and no two are the same."""
        said = [context_script.message(number) for number in range(1, TURNS + 1)]
        assert all(20 <= len(text.split()) <= 60 for text in said)
        assert TURNS == len(set(said))
        assert said == [context_script.message(number) for number in range(1, TURNS + 1)]

    def test_facts(self) -> None:
        """One turn of three tells a fact, no fact is told twice, and each is said in its message."""
        facts = {number: context_script.fact(number) for number in range(1, TURNS + 1)}
        told = {number: fact for number, fact in facts.items() if fact}
        assert list(range(2, TURNS + 1, 3)) == list(told)
        assert len(told) == len(set(told.values()))
        assert all(fact in context_script.message(number) for number, fact in told.items())
        assert "the code of box 17 is amber" == told[2]

    @pytest.mark.parametrize(("number", "told"), [(1, 0), (2, 0), (3, 2), (4, 2), (5, 2), (6, 5), (60, 59)])
    def test_recent_fact(self, number: int, told: int) -> None:
        """It is of one of the three turns before, never of the turn itself."""
        assert (context_script.fact(told) if told else "") == context_script.recent_fact(number)

    def test_appended(self) -> None:
        """The first turn adds the system prompt, the others the answer before."""
        assert SYSTEM_PROMPT in context_script.appended(1, "")
        second = context_script.appended(2, "Yes.")
        assert second.startswith("Yes.<|im_end|>\n<|im_start|>user\n")
        assert SYSTEM_PROMPT not in second


class TestNaiveWindow:
    """A client that counts characters."""

    messages = ({"role": "system", "content": "s" * 40}, *({"role": "user", "content": "u" * 40} for _ in range(9)))

    def test_what_fits_is_sent_whole(self) -> None:
        """Nothing is dropped as long as the estimate fits."""
        assert list(self.messages) == fitting(self.messages, window=110, max_tokens=10)

    def test_the_oldest_messages_go(self) -> None:
        """As many single messages go as must, but not the system prompt."""
        sent = fitting(self.messages, window=60, max_tokens=10)
        assert [self.messages[0], *self.messages[6:]] == sent
        assert sum(len(each["content"]) for each in sent) <= 50 * CHARACTERS_PER_TOKEN

    def test_the_newest_message_stays(self) -> None:
        """However long it is."""
        assert [self.messages[0], self.messages[-1]] == fitting(self.messages, window=11, max_tokens=10)


class _Engine(BaseHTTPRequestHandler):
    """Answers like llama.cpp; a prompt of more than three messages is refused."""

    def do_POST(self) -> None:
        """Answer."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        refused = len(body["messages"]) > 3
        final = {"choices": [], "usage": {"prompt_tokens": 30}, "timings": {"prompt_n": 12}}
        parts = [{"choices": [{"delta": {"content": text}}]} for text in ("", "Well", ", yes.")]
        lines = "".join(f"data: {json.dumps(part)}\n\n" for part in [*parts, final])
        answer = ('{"error": "too long"}' if refused else f"{lines}data: [DONE]\n\n").encode()
        self.send_response(400 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before an engine that is made up."""
    with HTTPServer(("127.0.0.1", 0), _Engine) as server:
        serving = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        with contextlib.closing(Proxy(server.server_port)) as proxy:
            yield proxy
        server.shutdown()
        serving.join()


class TestProxy:
    """What passes is kept, and nothing is changed."""

    def test_an_answer_and_what_it_was_an_answer_to(self, proxy: Proxy) -> None:
        """The request's messages and the engine's count of what it evaluated are told once."""
        direct = Direct(Target("openai", 0, 0, "m", "key"), proxy.port)
        said = direct.ask([{"role": "user", "content": "Is it?"}])
        assert ("Well, yes.", 30, "") == (said.text, said.prompt_tokens, said.refused)
        assert said.ttft_ms > 0
        chats, evaluated = proxy.taken()
        assert [[{"role": "user", "content": "Is it?"}]] == [chat["messages"] for chat in chats]
        assert 12 == evaluated
        assert ([], None) == proxy.taken()

    def test_other_requests_are_not_kept(self, proxy: Proxy) -> None:
        """A chat without messages is one that loads a model; it passes all the same."""
        connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", "/api/chat", json.dumps({"messages": []}))
            assert 200 == connection.getresponse().status
        assert [] == proxy.taken()[0]


class TestConverse:
    """One conversation with an engine."""

    def test_until_it_is_refused(self, proxy: Proxy) -> None:
        """With its whole history it ends where the engine takes no more; the turns before are kept."""
        target = Target("openai", 0, 0, "m")
        asked = Asked(Direct(target, proxy.port), target, proxy)
        whole = next(each for each in STRATEGIES if each.name == "llama.cpp, whole")
        row, answers = context.converse(whole, asked, 3)
        assert ["Well, yes."] == answers
        assert 'turn 2 was refused: {"error": "too long"}' == row.note
        (only,) = row.turns
        assert (1, 12, 30, 2) == (only.turn, only.evaluated, only.prompt_tokens, only.messages)
        assert (True, None) == (only.system_fact, only.recent_fact)

    def test_the_embedded_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it evaluated is from the service's stats, and of its prompt nothing is claimed."""
        service = Service.__new__(Service)
        monkeypatch.setattr(service, "ask", lambda text: Said(f"{len(text)}", 100.0, 90, 60))
        row, _ = context.converse(STRATEGIES[0], Asked(service), 2)
        assert [30, 30] == [each.evaluated for each in row.turns]
        assert {None} == {each.system_fact for each in row.turns}

    def test_new_tokens(self) -> None:
        """They are of the answer before and the new message."""
        turns = [turn(1), turn(2)]
        context.counted(turns, ["Yes.", "No."], lambda texts: [text.count("Yes.") for text in texts])
        assert [0, 1] == [each.new for each in turns]


class TestOllamaLog:
    """Of what Ollama evaluated only its log tells."""

    def test_what_is_new_counts(self, tmp_path: Path) -> None:
        """Each prompt counts once, a summary's as well as an answer's."""
        path = tmp_path / "ollama.log"
        path.write_text(f"{SLOT.format(45)}\nother remaining=7\n")
        log = OllamaLog(path)
        assert 45 == log.evaluated(1)
        with path.open("a") as file:
            file.write(f"{SLOT.format(5)}\n{SLOT.format(6)}\n")
        assert 11 == log.evaluated(2)

    def test_a_log_without_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An Ollama that says nothing of its cache has no figures."""
        monkeypatch.setattr(context_engines, "_LOG_SECONDS", 0.0)
        (tmp_path / "log").write_text("nothing\n")
        with pytest.raises(BenchmarkFailed, match="0 cache slots for 1 requests"):
            OllamaLog(tmp_path / "log").evaluated(1)


class TestFigures:
    """From turns to a table."""

    def test_means_and_medians(self) -> None:
        """Evaluated over new has every turn in it; times are of the turns about 10 and up to 60."""
        turns = [turn(number, 650 if number % 10 == 0 else 50, 100.0 + number) for number in range(1, 61)]
        found = figures(turns)
        assert pytest.approx(1.1) == found.evaluated_ratio
        assert (110.0, 158.0, 160.0) == (found.early_ttft_ms, found.late_ttft_ms, found.worst_ttft_ms)
        assert "60 of 60" == found.system_fact

    def test_turns_that_were_not_reached(self) -> None:
        """A conversation that was refused has no late turns, and no ratio."""
        found = figures([turn(number, recent=None) for number in range(1, 20)])
        assert (200.0, None, None) == (found.early_ttft_ms, found.late_ttft_ms, found.ttft_ratio)
        assert "-" == found.recent_fact

    @pytest.mark.parametrize(("ratio", "said"), [(1.3, "met"), (1.31, "not met"), (None, "not reached")])
    def test_verdict(self, ratio: float | None, said: str) -> None:
        """The goal itself meets it."""
        assert said == verdict(ratio, 1.3)

    def test_table(self) -> None:
        """The goals are the service's alone; what is missing and why is said."""
        turns = [turn(number, 140) for number in range(1, 61)]
        rows = [
            Row("ollama", "service", "with the service", turns),
            Row("ollama", "naive", "naive", turns),
            Row("llama.cpp", "whole", "whole", note="failed: why", failed=True),
        ]
        service, naive, failed = table(rows).splitlines()[2:5]
        assert (1, 1) == (service.count("| not met "), service.count("| met "))
        assert "met" not in naive
        assert "failed" in failed
        assert "llama.cpp, whole: failed: why" in table(rows)

    def test_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The page says what was run; the data have each turn."""
        monkeypatch.setattr(context_figures, "_plot", lambda path, rows: [path])
        row = Row("ollama", "service", "the service", [turn(1)])
        written = context_figures.write(tmp_path, [row], {"cores": 2}, 1, "the command")
        data = msgspec.json.decode(written[0].read_bytes())
        assert [1] == [each["turn"] for each in data["rows"][0]["turns"]]
        page = written[1].read_text()
        assert "`the command`" in page
        assert "A run of 1 turns" in page
        assert "(context.svg)" in page


class TestChoice:
    """What is measured."""

    def test_engines(self) -> None:
        """All, or those that are named."""
        assert list(STRATEGIES) == context.chosen("")
        assert {"ollama"} == {each.engine for each in context.chosen("ollama")}
        with pytest.raises(ValueError, match=r"no such engine: vllm; there are llama\.cpp, ollama"):
            context.chosen("ollama,vllm")

    def test_without_ollama(self) -> None:
        """Its rows say what to do."""
        rows = list(context.run(context.chosen("ollama"), 1, "", None))
        assert [False] * 3 == [row.failed for row in rows]
        assert all("build-ollama" in row.note for row in rows)

    def test_the_system_prompt_has_its_fact(self) -> None:
        """Or it could not be kept."""
        assert SYSTEM_FACT in SYSTEM_PROMPT
