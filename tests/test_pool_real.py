"""Several real engines behind the service: one is killed in the middle of its answer, and another goes on with it."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator

import pytest
from websockets.asyncio.client import ClientConnection

from llm_service.config import Settings
from llm_service.engines import open_engine
from tests.live import Live, ask, collect, live_service, receive, send, start
from tests.real_engines import LlamaServer, OllamaServer

QUESTION = "Tell me a long story about a lighthouse keeper and the sea."
GREEDY = {"temperature": 0.0, "max_tokens": 80}


@contextlib.asynccontextmanager
async def serving(*specs: dict[str, object], model: str = "small") -> AsyncGenerator[Live, None]:
    """Run the service with these engines."""
    environment = {
        "ENGINES": json.dumps(specs),
        "LLM_MODEL": model,
        "DEFAULT_CONTEXT_WINDOW": "2048",
        "COMPUTE_DEVICE": "cpu",
        "ENGINE_RETRIES": "0",
    }
    opened = await open_engine(Settings.load(environment))
    async with live_service(
        opened.engine, environment, model=model, context_window=opened.context_window, members=opened.members
    ) as live:
        yield live


def serving_both(one: LlamaServer, other: LlamaServer) -> contextlib.AbstractAsyncContextManager[Live]:
    """Run the service with two of one kind."""
    return serving(
        {"name": "one", "provider": "openai", "url": one.url},
        {"name": "other", "provider": "openai", "url": other.url},
    )


async def some_words(socket: ClientConnection, count: int) -> str:
    """Receive the first tokens of an answer."""
    text = ""
    for _ in range(count):
        event = await receive(socket)
        assert "token" == event["type"]
        text += event["data"]
    return text


@pytest.mark.embedded
async def test_a_llama_server_that_is_killed(two_llama_servers: tuple[LlamaServer, LlamaServer]) -> None:
    """By kill -9 after ten words: the client gets the rest from the other; both say what one would have."""
    one, other = two_llama_servers
    async with (
        serving_both(one, other) as live,
        live.connect() as socket,
    ):
        await start(socket, **GREEDY)
        whole = await ask(socket, QUESTION)
        await start(socket, **GREEDY)
        await send(socket, "user_message", text=QUESTION)
        text = await some_words(socket, 10)
        killed = time.monotonic()
        one.kill()
        following = await receive(socket)
        pause = time.monotonic() - killed
        assert "token" == following["type"]
        rest = await collect(socket)
        assert "response_complete" == rest.terminal["type"]
        said = text + following["data"] + rest.text
        stats = rest.terminal["stats"]
        # Read as a prompt, words may weigh a shade otherwise than as they were generated: the two may part, far behind.
        parted = (
            at
            for at, (one_char, other_char) in enumerate(zip(whole.text, said, strict=False))
            if one_char != other_char
        )
        same = next(parted, len(whole.text))
        assert same >= len(text) + 20
        # What was said before the seam is counted by its deltas, which need not be its tokens.
        assert abs(stats["tokens_generated"] - len(rest.tokens) - 11) <= 2
        assert abs(stats["prompt_tokens"] - whole.terminal["stats"]["prompt_tokens"]) <= 2
        await live.service.health.check()
        assert [False, True] == [member.health.reachable for member in live.service.engines.members]
        # The conversation goes on with the answer as it was said.
        assert "response_complete" == (await ask(socket, "Go on.")).terminal["type"]
        (session,) = live.service.manager.sessions
        assert said == session.conversation.turns[0].answer
    print(f"\nkill -9: the next word came after {1000 * pause:.0f} ms; {same} of {len(said)} characters are the same")


@pytest.mark.embedded
async def test_a_llama_server_that_freezes(
    two_llama_servers: tuple[LlamaServer, LlamaServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGSTOP: who is asking it by then is answered by the other, as soon as two pings went unanswered."""
    monkeypatch.setattr("llm_service.engine_health.INTERVAL", 0.5)
    one, other = two_llama_servers
    async with (
        serving_both(one, other) as live,
        live.connect() as socket,
    ):
        await start(socket, temperature=0.0, max_tokens=5)
        frozen = time.monotonic()
        one.freeze()
        await send(socket, "user_message", text=QUESTION)
        async with asyncio.timeout(60):
            answer = await collect(socket)
        assert "response_complete" == answer.terminal["type"]
        stats = live.service.engines.statistics(0.0)["engines"]
        assert isinstance(stats, dict)
        assert [False, True] == [stats[name]["healthy"] for name in ("one", "other")]
    print(f"\nSIGSTOP: the whole answer was there after {time.monotonic() - frozen:.1f} s")


@pytest.mark.ollama
@pytest.mark.embedded
@pytest.mark.parametrize("leaves_open", [True, False])
async def test_an_ollama_goes_on_or_does_not(
    two_llama_servers: tuple[LlamaServer, LlamaServer], ollama_server: OllamaServer, ollama_open: str, leaves_open: bool
) -> None:
    """It depends on its model's template: where that closes the message there is one error, and the turn is undone."""
    one, _ = two_llama_servers
    model = ollama_open if leaves_open else ollama_server.model
    async with (
        serving(
            {"name": "one", "provider": "openai", "url": one.url},
            {"name": "ollama", "provider": "ollama", "url": ollama_server.url, "models": {"small": model}},
        ) as live,
        live.connect() as socket,
    ):
        await start(socket, **GREEDY)
        await send(socket, "user_message", text=QUESTION)
        text = await some_words(socket, 10)
        one.kill()
        rest = await collect(socket)
        print(f"\n{text!r} + {rest.text!r}")
        if leaves_open:
            assert "response_complete" == rest.terminal["type"]
            assert len(rest.text) > 20
            assert 1 == live.service.manager.totals().turns
        else:
            assert "error" == rest.terminal["type"]
            assert rest.terminal["error"]["code"] in ("engine_unreachable", "generation_failed")
            assert 0 == live.service.manager.totals().turns
