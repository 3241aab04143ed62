"""Long conversations, tools, acks and summaries as a client meets them: over real sockets."""

import asyncio
import json
import random
import re
from collections.abc import Iterable

import httpx
import msgspec
import pytest

from llm_service.conversation import Conversation
from llm_service.engines.llama_cpp import LlamaCppEngine
from llm_service.engines.ollama import OllamaEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import ContextOverflow, GenerationFailed
from llm_service.generation import Finish, GenerationRequest, SamplingParams, Sink, ToolCall, Usage
from llm_service.summary import cleaned, condensation
from llm_service.token_estimate import most_tokens
from llm_service.turn import Turn
from tests.engines.telling import TellingEngine
from tests.live import Live, ask, collect, live_service, receive, send, start
from tests.real_engines import EMBEDDED_WINDOW, OllamaServer, borrowed

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
SMALL_TALK = [
    Turn(
        "My name is Orla and I live in Galway. What is the capital of Portugal?", "The capital of Portugal is Lisbon."
    ),
    Turn("My sister Mei is a nurse and works nights. What would she like?", "A warm blanket would suit her."),
    Turn("I am allergic to peanuts, remember that. What snack can I have?", "You could have apple slices."),
    Turn("We decided to meet on Friday at 6. Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    Turn("What is 17 times 3?", "17 times 3 is 51."),
    Turn("What should I cook tonight?"),
]
TOLD = "the boat lies in the harbour and its oars are kept dry over winter by old men who like to talk"
WORDS = TOLD.split()


def _echo(request: GenerationRequest) -> Iterable[str]:
    if request.messages[0].content.startswith("You condense"):
        numbered = re.findall(r"^User: (\d+) ", request.messages[-1].content, re.MULTILINE)
        return [*(f"{number}, " for number in numbered), "They ", "spoke ", "of ", "boats."]
    return [f"{word} " for word in request.messages[-1].content.split()[:20]]


def _engine(tokens_per_second: float = 2000) -> ScriptedEngine:
    return ScriptedEngine(_echo, tokens_per_second=tokens_per_second, models=())


def _said(request: GenerationRequest) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in request.messages]


async def _metric(live: Live, name: str) -> float:
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"{live.monitoring_url}/metrics")).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def _asked(engine: ScriptedEngine, count: int) -> None:
    async with asyncio.timeout(5):
        while len(engine.requests) < count:
            await asyncio.sleep(0.001)


async def test_a_tool_is_called_and_answered() -> None:
    """The model's call comes as an event, its result goes back, and the answer follows: one response, one end."""
    engine = _engine()
    async with live_service(engine) as live, live.connect() as socket:
        await start(socket, tools=[ADD])
        await send(socket, "user_message", text='call add {"a": 2, "b": 3}', id="u")
        call = await receive(socket)
        assert ("tool_call", "add", {"a": 2, "b": 3}) == (call["type"], call["name"], call["arguments"])
        await send(socket, "tool_result", id="no such call", content="5")
        assert "unexpected_tool_result" == (await receive(socket))["error"]["code"]
        await send(socket, "tool_result", id=call["id"], content="five it is")
        answer = await collect(socket)
        assert ("five it is ", "u") == (answer.text, answer.terminal["id"])
        assert "response_complete" == answer.terminal["type"]
        await ask(socket, "thanks")
    asked = ToolCall(call["id"], "add", json.dumps({"a": 2, "b": 3}))
    roles = [message.role for message in engine.requests[-1].messages]
    assert ["system", "user", "assistant", "tool", "assistant", "user"] == roles
    (sent,) = engine.requests[-1].messages[2].tool_calls
    assert (asked.name, json.loads(asked.arguments)) == (sent.name, json.loads(sent.arguments))


async def test_a_cancel_while_a_tool_works() -> None:
    """The turn ends, the call is not in the history, and a late result is refused."""
    engine = _engine()
    async with live_service(engine) as live, live.connect() as socket:
        await start(socket, tools=[ADD])
        await send(socket, "user_message", text="call add {}")
        call = await receive(socket)
        await send(socket, "cancel")
        assert (await receive(socket))["success"]
        await send(socket, "tool_result", id=call["id"], content="5")
        assert "unexpected_tool_result" == (await receive(socket))["error"]["code"]
        await send(socket, "update_config", config={"tools": None})
        assert "session_configured" == (await receive(socket))["type"]
        await ask(socket, "next")
    assert not any(message.tool_calls for message in engine.requests[-1].messages)


async def test_results_that_do_not_come_end_the_turn() -> None:
    """After TOOL_TIMEOUT the client is told, and the session goes on."""
    async with live_service(_engine(), {"TOOL_TIMEOUT": "0.3"}) as live, live.connect() as socket:
        await start(socket, tools=[ADD])
        await send(socket, "user_message", text="call add {}")
        await receive(socket)
        error = await receive(socket)
        assert ("tool_results_overdue", True) == (error["error"]["code"], error["terminal"])
        assert "hello " == (await ask(socket, "hello")).text


async def test_an_interrupted_answer_ends_where_it_was_heard() -> None:
    """`played` moves the point up to which an interrupted answer is kept."""
    engine = _engine(100)
    async with live_service(engine) as live, live.connect() as socket:
        await start(socket)
        await send(socket, "user_message", text="one two three four five six seven")
        said = ""
        while len(said) < 12:
            said += (await receive(socket))["data"]
        await send(socket, "played", chars=6)
        await send(socket, "cancel")
        await collect(socket)
        await ask(socket, "next")
    assert ("assistant", "one tw") == _said(engine.requests[-1])[2]


async def test_a_partial_message_is_read_ahead() -> None:
    """It asks the engine for one token of the prompt to come, and nothing of it reaches the client."""
    engine = _engine()
    async with live_service(engine) as live, live.connect() as socket:
        await start(socket, warm=True)
        await send(socket, "partial_message", text="how are")
        await _asked(engine, 1)
        assert "how are you " == (await ask(socket, "how are you")).text
        warmed, asked = engine.requests
        assert (1, "how are") == (warmed.sampling.max_tokens, warmed.messages[-1].content)
        assert warmed.messages[:-1] == asked.messages[:-1]
        assert 1 == await _metric(live, 'fasttalk_asides_total{kind="warm"')


async def test_nothing_is_read_ahead_unless_it_was_asked_for() -> None:
    """Not by default, whatever partial messages come."""
    engine = _engine()
    async with live_service(engine) as live, live.connect() as socket, live.connect() as other:
        await start(socket)
        await send(socket, "partial_message", text="how are")
        await send(socket, "update_config", config={})
        await receive(socket)
        # One of another session that comes later would be read after it.
        await start(other, warm=True)
        await send(other, "partial_message", text="later")
        await _asked(engine, 1)
    assert ["later"] == [request.messages[-1].content for request in engine.requests]


async def test_a_turn_is_not_held_up_by_another_sessions_partial_message() -> None:
    """What one session says ahead is stopped by the turn of another, and not begun before that has been answered."""
    engine = _engine()
    engine.faults.extend([Fault(0), Fault(0), None])
    async with live_service(engine) as live, live.connect() as first, live.connect() as second:
        await start(first, warm=True)
        await start(second)
        await send(first, "partial_message", text="hangs")
        await _asked(engine, 1)
        await send(second, "user_message", text="is answered late")
        await _asked(engine, 2)
        assert ["closed"] == engine.endings
        await send(first, "partial_message", text="waits")
        await send(first, "update_config", config={})
        await receive(first)
        assert (2, 1) == (len(engine.requests), engine.running)
        await send(second, "cancel")
        await collect(second)
        await _asked(engine, 3)
    assert ["hangs", "is answered late", "waits"] == [request.messages[-1].content for request in engine.requests]


async def test_the_real_message_drops_what_waits_to_be_read() -> None:
    """The partial message that waits behind the one being read is not read after the turn either."""
    engine = _engine()
    engine.faults.append(Fault(0))
    async with live_service(engine) as live, live.connect() as socket:
        await start(socket, warm=True)
        await send(socket, "partial_message", text="how")
        await _asked(engine, 1)
        await send(socket, "partial_message", text="how are")
        assert "how are you " == (await ask(socket, "how are you")).text
        await send(socket, "partial_message", text="and")
        await _asked(engine, 3)
    assert ["how", "how are you", "and"] == [request.messages[-1].content for request in engine.requests]


async def test_summaries_that_fail_shut_nobody_out() -> None:
    """However many do, the breaker stays closed, and turns of every session are answered."""

    def answer(request: GenerationRequest) -> Iterable[str]:
        if request.messages[0].content.startswith("You condense"):
            raise GenerationFailed("CUDA out of memory")
        return _echo(request)

    engine = ScriptedEngine(answer, tokens_per_second=2000, models=())
    async with (
        live_service(engine, {"DEFAULT_CONTEXT_WINDOW": "600", "ENGINE_RETRIES": "2"}, context_window=600) as live,
        live.connect() as socket,
        live.connect() as other,
    ):
        await start(socket, max_tokens=60, context_strategy="summarize")
        for number in range(20):
            assert "response_complete" == (await ask(socket, f"{number} {TOLD}")).terminal["type"]
            async with asyncio.timeout(5):
                while not live.service.idle_work.idle:
                    await asyncio.sleep(0.001)
        assert await _metric(live, 'fasttalk_asides_total{kind="summary",outcome="failed"}') >= 5
        await start(other)
        assert "hello " == (await ask(other, "hello")).text


async def test_what_ollama_would_read_for_long_is_not_begun() -> None:
    """Nothing is known of how fast it reads: neither a partial message nor dropped turns reach it, and turns do."""
    engine = ScriptedEngine(_echo, tokens_per_second=2000, models=(), name="ollama")
    async with (
        live_service(engine, {"DEFAULT_CONTEXT_WINDOW": "600"}, context_window=600) as live,
        live.connect() as socket,
    ):
        await start(socket, max_tokens=60, context_strategy="summarize", warm=True)
        for number in range(24):
            await send(socket, "partial_message", text=f"{number}")
            async with asyncio.timeout(5):
                while await _metric(live, 'fasttalk_asides_total{kind="warm",outcome="skipped"}') <= number:
                    await asyncio.sleep(0.001)
            answer = await ask(socket, f"{number} {TOLD}")
            assert "response_complete" == answer.terminal["type"]
        assert answer.terminal["stats"]["context"]["dropped"] > 0
        skipped = await _metric(live, 'fasttalk_asides_total{kind="summary",outcome="skipped"}')
        # Once before the first trim, and once after each.
        assert 2 <= skipped <= 1 + await _metric(live, "fasttalk_context_trims_total")
        assert 24 == len(engine.requests)


class _Reading(TellingEngine):
    """Tells how fast it reads, and never comes to the end of a summary; `condensing` counts those it was asked for."""

    condensing = 0

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        if request.background:
            self.condensing += 1
            await asyncio.Event().wait()
        return await super().generate(request, sink)


@pytest.mark.parametrize("name", ["ollama", "vllm"])
async def test_what_a_turn_stopped_is_not_read_twice(name: str) -> None:
    """Ollama would read a stopped summary again while turns wait; an engine that stops is asked after each of them."""
    engine = _Reading(_echo, tokens_per_second=2000, models=(), name=name)
    environment = {"DEFAULT_CONTEXT_WINDOW": "600", "ASIDE_READ_SECONDS": "60"}
    async with live_service(engine, environment, context_window=600) as live, live.connect() as socket:
        await start(socket, max_tokens=60, context_strategy="summarize")
        async with asyncio.timeout(20):
            while not engine.condensing:
                await ask(socket, TOLD)
                # Its task begins before this answer's.
                await _metric(live, "fasttalk_asides_total")
        for _ in range(2):
            await ask(socket, "short")
        if name == "ollama":
            assert 1 == await _metric(live, 'fasttalk_asides_total{kind="summary",outcome="preempted"}')
            assert 1 == engine.condensing
        else:
            async with asyncio.timeout(5):
                while engine.condensing < 3:
                    await asyncio.sleep(0.001)


async def test_a_summary_tells_what_it_drops() -> None:
    """Dropped turns are in the metrics as soon as their summary stands: there may be no other turn."""
    async with (
        live_service(_engine(), {"DEFAULT_CONTEXT_WINDOW": "600"}, context_window=600) as live,
        live.connect() as socket,
    ):
        await start(socket, max_tokens=60, context_strategy="summarize")
        async with asyncio.timeout(20):
            while not await _metric(live, 'fasttalk_asides_total{kind="summary",outcome="finished"}'):
                await ask(socket, TOLD)
                while not live.service.idle_work.idle:
                    await asyncio.sleep(0.001)
        assert 1 == await _metric(live, "fasttalk_context_trims_total")
        assert await _metric(live, "fasttalk_dropped_tokens_total") > 0


async def test_what_is_dropped_is_told_and_condensed() -> None:
    """Dropped turns are counted in stats and metrics, and their summary stands in the prompts that follow."""
    engine = _engine()
    async with live_service(engine, {"DEFAULT_CONTEXT_WINDOW": "600"}, context_window=600) as live:
        async with live.connect() as socket:
            await start(socket, max_tokens=60, context_strategy="summarize", events=["context"])
            for number in range(24):
                answer = await ask(socket, f"{number} {' '.join(WORDS)}")
                context = await receive(socket)
                assert context["dropped"] == answer.terminal["stats"]["context"]["dropped"]
                async with asyncio.timeout(5):
                    while engine.running:
                        await asyncio.sleep(0.001)
        assert context["dropped"] >= 4
        assert await _metric(live, "fasttalk_dropped_tokens_total") > 50
        assert await _metric(live, 'fasttalk_asides_total{kind="summary",outcome="finished"}') >= 1
    head = next(r for r in reversed(engine.requests) if not r.messages[0].content.startswith("You condense"))
    assert head.messages[0].content.endswith("They spoke of boats.")


# Texts of many kinds, as people write them and as machines do
_KINDS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps. ",
    "Die Straßenbahn fährt heute später, größere Verspätungen sind möglich. ",
    "今天天气很好，我们去公园散步吧。",
    "今日は天気がいいので、公園へ散歩に行きましょう。",
    "الطقس جميل اليوم فلنذهب إلى الحديقة. ",
    "आज मौसम अच्छा है, चलो पार्क चलते हैं। ",
    "วันนี้อากาศดีมากไปเดินเล่นกัน",
    "def f(x):\n    return [i**2 for i in range(x) if i % 3 == 0]\n",
    "🙂🎉🚀👩‍👩‍👧 ",
    "+49 30 901820, 3.14159, 2026-11-26T03:13:00Z, $1,299.00. ",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    # Letters that are no words: ids, product keys, base64 in short lines, names that nobody has.
    "kWqTzVbNxRjPdLmYcGhF\nQvBnXzKjWpRtMdLsHgCf\n",
    "dKqXwZpTbRv hJkLmNbVcXz ",
    "X7KQ2-9WZTR-PLM4V-BQ8NX ",
    "MKTAYIAKQRQISFVKSHFS ",
    "qzjxkvbwpfhg mndtrlcsyx ",
    "bazuco firota memiku dopesa ",
)


def _text(dice: random.Random, longest: int) -> str:
    pieces = [dice.choice(_KINDS) for _ in range(dice.randint(1, 6))]
    return "".join(pieces * 20)[: dice.randint(1, longest)]


@pytest.mark.embedded
@pytest.mark.asyncio(loop_scope="session")
class TestEmbedded:
    async def test_no_text_has_more_tokens_than_the_most(self, embedded_engine: LlamaCppEngine) -> None:
        """The real tokenizer never finds more tokens in a text than are held for the most it can have."""
        dice = random.Random(1)
        for text in [*(kind * 9 for kind in _KINDS), *(_text(dice, 900) for _ in range(150))]:
            counted = await embedded_engine.count_tokens(embedded_engine.model, text)
            assert counted is not None
            assert counted <= most_tokens(text), text

    @pytest.mark.parametrize("counts", [True, False], ids=["counted", "estimated"])
    async def test_no_prompt_passes_the_window(self, embedded_engine: LlamaCppEngine, counts: bool) -> None:
        """Of any conversation every prompt fits the real engine's window, with its own count and without it."""
        dice = random.Random(2)
        conversation, engine = Conversation(system_prompt="Be brief.", max_messages=1000), embedded_engine
        sizes, dropped = [], 0
        for _ in range(40):
            text = _text(dice, 1500)
            tokens = await engine.count_tokens(engine.model, text) if counts else None
            try:
                prompt = conversation.begin(text, context_window=EMBEDDED_WINDOW, max_tokens=256, tokens=tokens)
            except ContextOverflow:
                continue
            dropped += prompt.dropped_turns
            # SmolLM2's template, which the engine counts with its own tokens as one each.
            said = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in prompt.messages)
            real = await engine.count_tokens(engine.model, said + "<|im_start|>assistant\n")
            assert real is not None
            # A message that is too long alone, with nothing left to drop, the engine refuses.
            alone = [m.role for m in prompt.messages] == ["system", "user"]
            assert real <= EMBEDDED_WINDOW or (alone and not counts)
            sizes.append(real)
            answer = _text(dice, 300)
            more = await engine.count_tokens(engine.model, answer)
            conversation.commit(answer, usage=Usage(prompt_tokens=real, completion_tokens=more or 0))
        assert dropped > 10
        assert max(sizes) > EMBEDDED_WINDOW / 2
        assert sum(size > EMBEDDED_WINDOW for size in sizes) <= 2

    @pytest.mark.parametrize("turns", [3, 5, 6])
    async def test_an_answer_is_not_taken_for_a_summary(self, embedded_engine: LlamaCppEngine, turns: int) -> None:
        """A model this small answers a question of the conversation that it is to condense, and that is seen."""
        job = condensation(SMALL_TALK[:turns], "", room=1024, max_tokens=96)
        assert job is not None
        sampling = SamplingParams(temperature=0.0, top_p=1.0, top_k=1, max_tokens=96)
        request = GenerationRequest(embedded_engine.model, job.messages, sampling, 2048, think=False)
        told: list[str] = []
        await embedded_engine.generate(request, Sink(lambda delta: told.append(delta.text), []))
        answer = "".join(told)
        print(f"\nof {turns} turns: {answer!r}")
        assert "question" in answer or "answer" in answer.lower(), "the model has become better: find another test"
        assert "" == cleaned(answer, job)

    async def test_reading_ahead_leaves_little_to_read(self, embedded_engine: LlamaCppEngine) -> None:
        """From turn to turn only what is new is evaluated, and after a partial message less; the times are printed."""
        text = " ".join(WORDS * 4)
        evaluated, first_token = {}, {}
        async with (
            live_service(borrowed(embedded_engine), model=embedded_engine.model, context_window=2048) as live,
            live.connect() as socket,
        ):
            for warm in (False, True):
                await start(socket, max_tokens=24, temperature=0.0, warm=warm, system_prompt=" ".join(WORDS * 10))
                first = (await ask(socket, "Say hello.")).terminal["stats"]
                await send(socket, "partial_message", text=text)
                async with asyncio.timeout(20):
                    while warm and not await _metric(live, 'fasttalk_asides_total{kind="warm",outcome="finished"}'):
                        await asyncio.sleep(0.02)
                second = (await ask(socket, text + " and go home")).terminal["stats"]
                assert second["prompt_tokens"] > first["prompt_tokens"] + 60
                evaluated[warm] = second["prompt_tokens"] - second["cached_tokens"]
                first_token[warm] = second["time_to_first_token_ms"]
        print(
            f"\na message of {len(text.split())} words: {evaluated[False]} tokens evaluated, first token after", end=" "
        )
        print(f"{first_token[False]:.0f} ms; read ahead: {evaluated[True]} tokens, {first_token[True]:.0f} ms")
        assert evaluated[False] < 150
        assert evaluated[True] < 20


class _Smaller:
    """An engine with a smaller window than the service knows of; notes how each generation ended."""

    def __init__(self, engine: OllamaEngine) -> None:
        self._engine = engine
        self.asked: list[type[Exception] | None] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        try:
            finish = await self._engine.generate(msgspec.structs.replace(request, context_window=256), sink)
        except ContextOverflow as error:
            self.asked.append(type(error))
            raise
        self.asked.append(None)
        return finish

    async def aclose(self) -> None:
        await self._engine.aclose()


@pytest.mark.ollama
class TestOllama:
    async def test_an_overflow_is_tried_again_with_less_history(self, ollama_server: OllamaServer) -> None:
        """A prompt that Ollama finds too long is asked again with less of the history, and the drop is told."""
        engine = _Smaller(OllamaEngine(ollama_server.url))
        async with (
            live_service(borrowed(engine), model=ollama_server.model, context_window=512) as live,
            live.connect() as socket,
        ):
            await start(socket, max_tokens=8, temperature=0.0, system_prompt="Be brief.")
            answers = [await ask(socket, f"{number}: {' '.join(WORDS)}") for number in range(7)]
        await engine.aclose()
        assert {"response_complete"} == {answer.terminal["type"] for answer in answers}
        assert all(answer.text for answer in answers)
        assert ContextOverflow in engine.asked
        assert answers[-1].terminal["stats"]["context"]["dropped"] > 0
        assert max(answer.terminal["stats"]["prompt_tokens"] for answer in answers) <= 256

    async def test_the_first_answer_costs_no_load(self, ollama_server: OllamaServer) -> None:
        """Ready means loaded: the model is in memory with the window that answers ask for, and stays there."""
        engine = OllamaEngine(ollama_server.url)
        await engine.load(ollama_server.model, 512)
        before = await engine.loaded()
        async with (
            live_service(engine, model=ollama_server.model, context_window=512) as live,
            live.connect() as socket,
        ):
            # A smaller window of a session's own must not make Ollama load the model again.
            await start(socket, max_tokens=8, context_window=300)
            await ask(socket, "hello")
            assert before == await engine.loaded()
        (window,) = before.values()
        assert 512 == window

    @pytest.mark.parametrize(("seconds", "outcome"), [("0", "skipped"), ("60", "finished")])
    async def test_what_no_user_waits_for(self, ollama_server: OllamaServer, seconds: str, outcome: str) -> None:
        """A prompt is read ahead if Ollama has read it within ASIDE_READ_SECONDS, as it tells how fast it reads."""
        async with (
            live_service(
                OllamaEngine(ollama_server.url),
                {"ASIDE_READ_SECONDS": seconds},
                model=ollama_server.model,
                context_window=512,
            ) as live,
            live.connect() as socket,
        ):
            await start(socket, max_tokens=4, temperature=0.0, warm=True)
            await ask(socket, "Hello.")
            await send(socket, "partial_message", text=TOLD)
            name = f'fasttalk_asides_total{{kind="warm",outcome="{outcome}"}}'
            async with asyncio.timeout(60):
                while not await _metric(live, name):
                    await asyncio.sleep(0.02)
            assert 1 == await _metric(live, 'fasttalk_asides_total{kind="warm"')
            assert "response_complete" == (await ask(socket, "Hello.")).terminal["type"]
