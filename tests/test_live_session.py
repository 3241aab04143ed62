"""A session at work: what it stops has ended on the wire before the message that stops it is dealt with."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from time import monotonic

import msgspec
import pytest

from llm_service import events
from llm_service.engines.openai import OpenAIEngine
from llm_service.live_session import LiveSession
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.live import Live, live_service, receive, send, start
from tests.speech import doubles

SPEECH = {"enabled": True, "format": "pcm"}


async def endless_answer(exchange: Exchange) -> None:
    """An engine that says two sentences and never comes to an end."""
    if exchange.method == "GET":
        await exchange.answer(b'{"data": [{"id": "test"}]}')
        return
    await exchange.start(Content_Type="text/event-stream")
    for word in ("Well, ", "good ", "morning. ", "And "):
        part = {"choices": [{"index": 0, "delta": {"content": word}}]}
        await exchange.send(b"data: " + msgspec.json.encode(part) + b"\n\n")
    await exchange.left.wait()


async def endless_sound(exchange: Exchange) -> None:
    """A TTS that never comes to an end."""
    if exchange.method == "GET":
        await doubles.openai(exchange)
        return
    await exchange.start()
    await exchange.send(doubles.a_wav(0)[:40] + b"\xff\xff\xff\xff" + doubles.samples())
    await exchange.left.wait()


@dataclass
class Talk:
    """A session whose engine and TTS are both within an answer."""

    live: Live
    session: LiveSession
    engine: FakeServer
    tts: FakeServer

    def running(self) -> list[Exchange]:
        """What they are at."""
        asked = [*self.engine.exchanges, *self.tts.exchanges]
        return [exchange for exchange in asked if exchange.method == "POST" and not exchange.left.is_set()]

    def stops(self) -> float | None:
        return self.live.service.registry.get_sample_value("fasttalk_stop_seconds_count")


@pytest.fixture
async def talk() -> AsyncGenerator[Talk, None]:
    async with fake_server() as engine, fake_server() as tts:
        engine.answer, tts.answer = endless_answer, endless_sound
        variables = {"TTS_ENDPOINTS": f"openai={tts.url}/v1", "TTS_TIMEOUT": "60"}
        async with live_service(OpenAIEngine(f"{engine.url}/v1"), variables) as live, live.connect() as socket:
            await start(socket, speech=SPEECH, events=["audio"], on_busy="interrupt")
            await send(socket, "user_message", text="Hello")
            async with asyncio.timeout(10):
                while (await receive(socket))["type"] != "audio":
                    pass
            yield Talk(live, next(iter(live.service.connections)).live, engine, tts)


STOPS: dict[str, events.ClientMessage] = {
    "cancel": events.Cancel(),
    "end_session": events.EndSession(),
    "start_session": events.StartSession(),
    "user_message": events.UserMessage(text="Stop"),
}


@pytest.mark.parametrize("how", STOPS)
async def test_what_stops_an_answer_has_ended_it_before_it_returns(talk: Talk, how: str) -> None:
    """Engine and TTS see their reader gone, with not one turn of the event loop: others' work holds none of it up."""
    running = talk.running()
    assert 2 == len(running)
    assert not any(exchange.is_left() for exchange in running)

    talk.session.receive(STOPS[how], monotonic())

    assert all(exchange.is_left() for exchange in running)
    assert 1.0 == talk.stops()


async def test_a_client_that_leaves_ends_the_sound_before_that_returns(talk: Talk) -> None:
    """Nobody is spoken to; the answer itself goes on for a client that comes back."""
    engine, tts = talk.running()

    talk.session.detach()

    assert tts.is_left()
    assert not engine.is_left()


async def test_what_stops_nothing_is_not_timed(talk: Talk) -> None:
    """The time to a stop is told of those that stopped something: of the sound alone, too, but not of silence."""
    talk.session.receive(events.Cancel(), monotonic())
    talk.session.receive(events.Cancel(), monotonic())
    talk.session.receive(events.Played(chars=3), monotonic())
    assert 1.0 == talk.stops()
