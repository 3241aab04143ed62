"""A session that speaks, over real sockets: a WebSocket on one side, a TTS on the other."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from llm_service.audio_frames import read_frame
from llm_service.chunk_hook import OnChunk
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import ContextOverflow, GenerationFailed
from llm_service.events import Audio
from llm_service.sentences import Chunker
from llm_service.speech import endpoints
from llm_service.speech.audio import wav_header
from llm_service.speech.base import Utterance
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.live import Event, Live, live_service, receive, send, start
from tests.processes import free_port
from tests.speech import doubles
from tests.talk import history

ANSWER = "Well, good morning to you. **This** is the second sentence. And here is the last one!"
SPEECH = {"enabled": True, "format": "pcm"}
# More than the sockets between service and client hold.
LOUD = wav_header(48_000, 6_000_000) + bytes(6_000_000)


def engine(text: str = ANSWER, rate: float = 2000.0) -> ScriptedEngine:
    pieces = [f"{word} " for word in text.split(" ")]
    pieces[-1] = pieces[-1][:-1]
    return ScriptedEngine(lambda _: pieces, tokens_per_second=rate, models=())


@asynccontextmanager
async def speaking(
    tts: FakeServer, scripted: ScriptedEngine | None = None, on_chunk: OnChunk | None = None, **environment: str
) -> AsyncGenerator[Live, None]:
    """Run the service with an OpenAI-shaped TTS."""
    variables = {"TTS_ENDPOINTS": f"openai={tts.url}/v1", "TTS_TIMEOUT": "5"} | environment
    async with live_service(scripted or engine(), variables, on_chunk=on_chunk) as live:
        yield live


@pytest.fixture
async def tts() -> AsyncGenerator[FakeServer, None]:
    """A TTS that answers as OpenAI's does, until the test says something else."""
    async with fake_server() as server:
        server.answer = doubles.openai
        yield server


class Heard:
    """All that came over one connection, sorted."""

    def __init__(self) -> None:
        self.text = ""
        self.chunks: list[Event] = []
        self.audio: list[Audio] = []
        self.order: list[str] = []
        self.terminal: Event = {}
        self.errors: list[Event] = []
        self.last_seq = 0

    def take(self, frame: str | bytes) -> None:
        if isinstance(frame, bytes):
            self.audio.append(read_frame(frame))
            self.order.append("audio")
            return
        event = json.loads(frame)
        self.order.append(event["type"])
        self.last_seq = event["seq"]
        match event["type"]:
            case "token":
                self.text += event["data"]
            case "chunk":
                self.chunks.append(event)
            case "audio":
                data = base64.b64decode(event.get("data", ""))
                self.audio.append(
                    Audio(
                        chunk=event["chunk"],
                        format=event["format"],
                        sample_rate=event.get("sample_rate"),
                        data=data,
                        last=event.get("last", False),
                    )
                )
            case "error" if not event.get("terminal"):
                self.errors.append(event["error"])
            case "response_complete" | "cancelled" | "error":
                self.terminal = event

    @property
    def whole(self) -> bool:
        """Whether the text is over, and the sound of every chunk that has some."""
        ended = {audio.chunk for audio in self.audio if audio.last}
        spoken = {chunk["id"] for chunk in self.chunks if chunk["text"]}
        return bool(self.terminal) and spoken <= ended

    def sound(self, chunk: int) -> bytes:
        return b"".join(audio.data for audio in self.audio if audio.chunk == chunk)


async def hear(socket: ClientConnection, *, silent: bool = False) -> Heard:
    """Receive a response until all of it was heard, or, where it stays `silent`, read."""
    heard = Heard()
    async with asyncio.timeout(20):
        while not (heard.terminal if silent else heard.whole):
            heard.take(await socket.recv())
    return heard


async def begin(socket: ClientConnection, *, events: tuple[str, ...] = ("chunk", "audio"), **speech: Any) -> Event:
    return await start(socket, speech=SPEECH | speech, events=list(events))


async def test_an_answer_is_spoken(tts: FakeServer) -> None:
    """Text, chunks that cover it without a gap, and the sound of each, in order."""
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)

    assert ANSWER == heard.text
    spans = [(chunk["start"], chunk["end"]) for chunk in heard.chunks]
    assert (0, len(ANSWER)) == (spans[0][0], spans[-1][1])
    assert all(left[1] == right[0] for left, right in pairwise(spans))
    assert "Well, good morning to you." in " ".join(chunk["text"] for chunk in heard.chunks)
    assert "**" not in "".join(chunk["text"] for chunk in heard.chunks)
    assert [chunk["id"] for chunk in heard.chunks] == sorted({audio.chunk for audio in heard.audio})
    assert all(doubles.samples() == heard.sound(chunk["id"]) for chunk in heard.chunks)
    assert {doubles.RATE} == {audio.sample_rate for audio in heard.audio if audio.data}
    assert [chunk["text"] for chunk in heard.chunks] == [
        exchange.json()["input"] for exchange in tts.exchanges if exchange.method == "POST"
    ]


async def test_chunks_come_before_the_end_and_sound_when_it_comes(tts: FakeServer) -> None:
    """All chunks are told before the terminal event; the sound, which takes longer, follows behind it."""
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)

    end = heard.order.index("response_complete")
    assert "chunk" not in heard.order[end:]
    assert heard.order.index("chunk") < heard.order.index("audio")


@pytest.mark.parametrize(("form", "first"), [("wav", b"RIFF"), ("mp3", b"ID3"), ("opus", b"OggS")])
async def test_formats_and_binary_frames(tts: FakeServer, form: str, first: bytes) -> None:
    """Sound comes in the format that was asked for, as binary frames if the client wants those."""
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket, format=form, binary=True)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)

    assert {form} == {audio.format for audio in heard.audio}
    assert all(heard.sound(chunk["id"]).startswith(first) for chunk in heard.chunks)


async def test_chunks_alone_need_no_tts() -> None:
    """A client with a voice of its own asks for chunks, and no TTS is needed or asked."""
    async with live_service(engine()) as live, live.connect() as socket:
        await begin(socket, events=("chunk",))
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)

    assert ANSWER == heard.text
    assert len(ANSWER) == heard.chunks[-1]["end"]
    assert [] == heard.audio


async def test_without_sound_from_here_sentences_stay_whole() -> None:
    """How much is ahead of a client with its own voice is unknown here: no clause goes early for fear of silence."""
    text = "Hello. When all the lights in the old town went out, she lit a candle. Done."
    async with live_service(engine(text)) as live, live.connect() as socket:
        await begin(socket, events=("chunk",))
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)

    assert ["Hello.", text[7:-6], "Done."] == [chunk["text"] for chunk in heard.chunks]


async def test_what_is_held_back_goes_before_the_sound_ends(tts: FakeServer) -> None:
    """A sentence waits while much sound is ahead; when there is less, it goes though the engine says nothing more."""

    async def long_winded(exchange: Exchange) -> None:
        if exchange.method == "POST":
            await exchange.answer(doubles.a_wav(5.6, 8000))
        else:
            await doubles.openai(exchange)

    tts.answer = long_winded
    pieces = ["Hello there. ", "Two is here. ", "Three"]
    scripted = ScriptedEngine(
        lambda _: [*pieces, "never"], tokens_per_second=5.0, models=(), faults=[Fault(after_tokens=3)]
    )
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = Heard()
        async with asyncio.timeout(20):
            while ["Hello there.", "Two is here."] != [chunk["text"] for chunk in heard.chunks]:
                heard.take(await socket.recv())

    assert "".join(pieces) == heard.text


async def test_rules_can_be_set() -> None:
    """SPEECH_RULES says what becomes of text that is not for the ear; the rest keeps its defaults."""
    async with live_service(engine(), {"SPEECH_RULES": "markdown=false"}) as live, live.connect() as socket:
        await begin(socket, events=("chunk",))
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)

    assert "**" in ANSWER
    assert "**" in "".join(chunk["text"] for chunk in heard.chunks)


@pytest.mark.parametrize(("chosen", "asked"), [({}, "auto"), ({"language": "zh"}, "zh")])
async def test_no_language_is_claimed_that_nobody_chose(chosen: dict[str, Any], asked: str) -> None:
    """Unless the client or TTS_LANGUAGE says which, the TTS finds it out where its wire lets it."""
    async with fake_server() as tts:
        tts.answer = doubles.GPTSoVITS()
        environment = {"TTS_ENDPOINTS": f"gpt_sovits={tts.url}"}
        async with (
            live_service(engine("你好，今天天气很好。我们去公园吧。"), environment) as live,
            live.connect() as socket,
        ):
            await begin(socket, **chosen)
            await send(socket, "user_message", text="Hello")
            await hear(socket)

    assert {asked} == {exchange.json()["text_language"] for exchange in tts.exchanges if exchange.method == "POST"}


async def test_sound_without_a_tts_is_refused_at_the_start() -> None:
    """The client is told what to do, and the session does not begin without it."""
    async with live_service(engine()) as live, live.connect() as socket:
        answer = await begin(socket)

    assert "invalid_config" == answer["error"]["code"]
    assert "TTS_ENDPOINTS" in answer["error"]["message"]


async def test_a_session_that_does_not_ask_is_silent(tts: FakeServer) -> None:
    """No chunk, no sound, nobody asked the TTS, and its tokens go the way they go without any speech."""
    async with speaking(tts) as live, live.connect() as socket:
        await start(socket, events=["chunk", "audio"])
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)
        (connection,) = live.service.connections
        assert connection.live._sayer(1) == connection.live.outbox.say
        assert connection.live._speaking is None

    assert {"token", "response_complete"} == set(heard.order)
    assert [] == [exchange for exchange in tts.exchanges if exchange.method == "POST"]


async def test_a_client_that_reads_slowly_loses_no_sound(tts: FakeServer) -> None:
    """Sound never makes a client too slow: it is held until the client takes it."""

    async def loud(exchange: Exchange) -> None:
        if exchange.method == "GET":
            await doubles.openai(exchange)
        else:
            await exchange.answer(LOUD)

    tts.answer = loud
    async with (
        speaking(tts, MAX_PENDING_BYTES="65536", TTS_MAX_AHEAD="86400") as live,
        live.connect(max_queue=1) as socket,
    ):
        await begin(socket, format="wav")
        await send(socket, "user_message", text="Hello")
        async with asyncio.timeout(20):
            while not any(connection.live.outbox.paused for connection in live.service.connections):
                await asyncio.sleep(0.005)
        heard = await hear(socket)

    assert ANSWER == heard.text
    assert all(LOUD == heard.sound(chunk["id"]) for chunk in heard.chunks)


class Faults:
    """A TTS that serves some chunks, then does something else to each, until it is `mended`."""

    def __init__(self, at: int, fault: str) -> None:
        self.at = at
        self.fault = fault
        self.asked = 0
        self.mended = False

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "GET":
            await doubles.openai(exchange)
            return
        self.asked += 1
        if self.mended or self.asked <= self.at:
            await doubles.openai(exchange)
            return
        match self.fault:
            case "dies":
                exchange.reset()
            case "stalls":
                await exchange.start()
                await exchange.left.wait()
            case "half":
                await exchange.answer(doubles.a_wav()[:1500])
            case "cut":
                await exchange.start()
                await exchange.send(doubles.a_wav()[:1500])
                exchange.reset()
            case "garbage":
                await exchange.answer(b"\0\1\2" * 500)
            case "error":
                await exchange.answer(b'{"code": 400, "message": "cannot say: %s"}' % exchange.body[:99])
            case _:
                await exchange.answer(b"cannot say: " + exchange.body, 500)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("fault", ["dies", "stalls", "half", "cut", "garbage", "error", "status"])
async def test_a_tts_that_fails_costs_no_text(
    tts: FakeServer, fault: str, at: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a TTS does at whichever chunk: the text is whole, one error of speech is told, the session goes on."""
    faults = tts.answer = Faults(at, fault)
    async with speaking(tts, TTS_TIMEOUT="0.3") as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = Heard()
        async with asyncio.timeout(20):
            while not (heard.terminal and heard.errors):
                heard.take(await socket.recv())
        faults.mended = True
        await send(socket, "user_message", text="Again")
        again = await hear(socket)

    assert ANSWER == heard.text == again.text
    assert "response_complete" == heard.terminal["type"] == again.terminal["type"]
    assert [("speech", "low")] == [(error["category"], error["severity"]) for error in heard.errors]
    assert [] == again.errors
    assert len(heard.chunks) == len(again.chunks) >= 3
    logged = capfd.readouterr().err
    assert "speech_failed" in logged
    assert "morning" not in logged


@pytest.mark.parametrize("method", ["feed", "finish"])
async def test_a_bug_in_the_cutting_costs_no_text(
    tts: FakeServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The text is whole even where our own chunker fails, and the client is told."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Chunker, method, broken)
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)

    assert (ANSWER, "response_complete") == (heard.text, heard.terminal["type"])
    assert ["speech_failed"] == [error["code"] for error in heard.errors]


async def test_clients_are_not_told_where_the_tts_is(capfd: pytest.CaptureFixture[str]) -> None:
    """A TTS that is gone is told without its address, which is in the log for the operator."""
    port = free_port()
    async with (
        live_service(engine(), {"TTS_ENDPOINTS": f"opea=http://127.0.0.1:{port}"}) as live,
        live.connect() as socket,
    ):
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = Heard()
        async with asyncio.timeout(20):
            while not heard.errors:
                heard.take(await socket.recv())

    (error,) = heard.errors
    assert ("speech_unavailable", "no TTS can be reached now; the text goes on alone") == (
        error["code"],
        error["message"],
    )
    assert f"127.0.0.1:{port}" in capfd.readouterr().err


async def test_the_next_tts_takes_over(tts: FakeServer) -> None:
    """With two, the first's death is heard by nobody."""
    async with fake_server() as other:
        other.answer = Faults(1, "dies")
        tts.answer = doubles.OPEA()
        async with (
            speaking(tts, TTS_ENDPOINTS=f"openai={other.url}/v1,opea={tts.url}") as live,
            live.connect() as socket,
        ):
            await begin(socket)
            await send(socket, "user_message", text="Hello")
            heard = await hear(socket)

    assert [] == heard.errors
    assert all(doubles.samples() == heard.sound(chunk["id"]) for chunk in heard.chunks)


class Deaf:
    """A TTS that answers nothing while it synthesises, one chunk at a time, each until a probe has come in vain."""

    def __init__(self) -> None:
        self.unanswered = 0
        self._one_at_a_time = asyncio.Lock()
        self._probed = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "GET":
            if self._one_at_a_time.locked():
                await exchange.left.wait()
                self.unanswered += 1
                self._probed.set()
            else:
                await doubles.openai(exchange)
            return
        async with self._one_at_a_time:
            self._probed.clear()
            await self._probed.wait()
        await doubles.openai(exchange)


class Slow:
    """A TTS that streams slowly, and knows which of its answers are still running."""

    def __init__(self, pieces: int = 40, pause: float = 0.02) -> None:
        self.pieces = pieces
        self.pause = pause
        self.running = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.method == "GET":
            await doubles.openai(exchange)
            return
        self.running += 1
        try:
            await exchange.start()
            await exchange.send(doubles.a_wav(0)[:40] + b"\xff\xff\xff\xff")
            for _ in range(self.pieces):
                await exchange.send(doubles.samples(0.02))
                try:
                    async with asyncio.timeout(self.pause):
                        await exchange.left.wait()
                    return
                except TimeoutError:
                    continue
            await exchange.end()
        finally:
            self.running -= 1


async def broken(exchange: Exchange) -> None:
    """A TTS that has an answer to all, and it is an error of its own."""
    await exchange.answer(b"", 503)


async def until_sound(socket: ClientConnection) -> Heard:
    heard = Heard()
    async with asyncio.timeout(10):
        while not heard.audio:
            heard.take(await socket.recv())
    return heard


def posted(tts: FakeServer) -> int:
    """How many chunks a TTS was asked for; the others are probes."""
    return sum(exchange.method == "POST" for exchange in tts.exchanges)


async def until_free(slow: Slow) -> None:
    async with asyncio.timeout(10):
        while slow.running:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("rate", [20.0, 5000.0], ids=["while the text runs", "when the text is over"])
@pytest.mark.parametrize("how", ["cancel", "end_session", "start_session", "user_message", "disconnect", "lost"])
async def test_who_wants_no_more_gets_no_more(tts: FakeServer, how: str, rate: float) -> None:
    """Each way of not listening drops what waits, and closes the TTS's request on the wire."""
    slow = tts.answer = Slow(pieces=10_000)
    async with speaking(tts, engine(rate=rate)) as live, live.connect() as socket:
        await start(socket, speech=SPEECH, events=["audio"], on_busy="interrupt")
        await send(socket, "user_message", text="Hello")
        await until_sound(socket)
        asked = posted(tts)
        live_session = next(iter(live.service.connections)).live

        if how == "disconnect":
            await socket.close()
        elif how == "lost":
            socket.transport.abort()
        elif how == "user_message":
            tts.answer = doubles.openai
            await send(socket, "user_message", text="Stop")
        else:
            await send(socket, how)
        await until_free(slow)

        if how != "user_message":
            assert asked == posted(tts)
            assert not live_session.speaking


async def test_no_sound_follows_an_answer_that_failed(tts: FakeServer) -> None:
    """An engine that breaks off within its answer ends its sound, too: the turn is undone."""
    slow = tts.answer = Slow(pieces=10_000)
    scripted = engine(rate=20.0)
    scripted.faults.append(Fault(after_tokens=12, error=GenerationFailed("gone")))
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await until_sound(socket)
        async with asyncio.timeout(10):
            while not heard.terminal:
                heard.take(await socket.recv())
        await until_free(slow)
        asked = posted(tts)
        await send(socket, "update_config", config={})
        after = await receive(socket)

    assert "error" == heard.terminal["type"]
    assert "session_configured" == after["type"]
    assert 1 == asked == posted(tts)


async def test_no_sound_follows_a_cancel(tts: FakeServer) -> None:
    """Behind `cancelled` nothing is heard of the answer."""
    slow = tts.answer = Slow(pieces=10_000)
    async with speaking(tts, engine(rate=5000.0)) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        await until_sound(socket)
        await send(socket, "cancel")
        events: list[Event] = []
        async with asyncio.timeout(10):
            while not (events and events[-1]["type"] == "cancelled"):
                events.append(json.loads(await socket.recv()))
        await until_free(slow)
        await send(socket, "update_config", config={})
        after = await receive(socket)

    assert "session_configured" == after["type"]


async def test_a_queued_message_waits_for_no_silence(tts: FakeServer) -> None:
    """Under `queue` nobody is interrupted: the second answer is heard behind the first."""
    async with speaking(tts) as live, live.connect() as socket:
        await start(socket, speech=SPEECH, events=["chunk", "audio"], on_busy="queue")
        await send(socket, "user_message", text="One")
        await send(socket, "user_message", text="Two")
        heard = Heard()
        async with asyncio.timeout(20):
            while not (heard.whole and heard.order.count("response_complete") == 2):
                heard.take(await socket.recv())

    spoken = [audio.chunk for audio in heard.audio]
    assert ANSWER + ANSWER == heard.text
    assert spoken == sorted(spoken)
    assert {chunk["id"] for chunk in heard.chunks} == set(spoken)


@pytest.mark.parametrize("error", [GenerationFailed("gone"), ContextOverflow("too long")], ids=lambda error: error.code)
async def test_a_queued_answer_that_fails_silences_no_other(tts: FakeServer, error: Any) -> None:
    """The answer before it is heard to its end; so is one that is tried again with less of the history."""
    slow = tts.answer = Slow(pieces=10)
    scripted = engine(rate=5000.0)
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await start(socket, speech=SPEECH, events=["chunk", "audio"], on_busy="queue")
        await send(socket, "user_message", text="One")
        heard = await until_sound(socket)
        async with asyncio.timeout(10):
            while not heard.terminal:
                heard.take(await socket.recv())
            assert slow.running
            scripted.faults.append(Fault(error=error))
            heard.terminal = {}
            await send(socket, "user_message", text="Two")
            while not heard.whole:
                heard.take(await socket.recv())

    assert ("error" if isinstance(error, GenerationFailed) else "response_complete") == heard.terminal["type"]
    assert [1, 2, 3] == [audio.chunk for audio in heard.audio if audio.last][:3]


@pytest.mark.parametrize("order", [("played", "cancel"), ("cancel", "played"), ("played",)], ids="-".join)
async def test_an_ack_of_a_chunk_moves_the_end(tts: FakeServer, order: tuple[str, ...]) -> None:
    """What was heard of a chunk, mapped back to the answer's own characters, is what stays in the history.

    Whether the client stops the sound itself, or by its next message, which needs no `on_busy` for that.
    """
    scripted = engine()
    tts.answer = Slow(pieces=10_000)
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = Heard()
        async with asyncio.timeout(20):
            while not heard.terminal:
                heard.take(await socket.recv())
        marked = next(chunk for chunk in heard.chunks if "This" in chunk["text"])
        said = marked["text"].index("This") + len("This is")
        fields = {"played": {"chunk": marked["id"], "chars": said}}
        for what in order:
            await send(socket, what, **fields.get(what, {}))
        await send(socket, "user_message", text="Go on")
        async with asyncio.timeout(20):
            while len(scripted.requests) < 2:
                heard.take(await socket.recv())

    assert ("assistant", ANSWER[: ANSWER.index(" the second")]) == history(scripted)[1]


async def test_under_queue_a_cancel_ends_all_that_was_not_heard(tts: FakeServer) -> None:
    """While the first answer sounds the second is whole: one ack says where the one ends, and the other is unheard."""
    scripted = engine()
    tts.answer = Slow(pieces=10_000)
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await start(socket, speech=SPEECH, events=["chunk", "audio"], on_busy="queue")
        for text in ("Hello", "Go on"):
            await send(socket, "user_message", text=text)
            heard = await hear(socket, silent=True)
            assert ANSWER == heard.text
        await send(socket, "played", chunk=1, chars=4)
        await send(socket, "cancel")
        await send(socket, "user_message", text="What?")
        async with asyncio.timeout(20):
            while len(scripted.requests) < 3:
                await socket.recv()

    assert [("user", "Hello"), ("assistant", "Well"), ("user", "Go on\nWhat?")] == history(scripted)


@pytest.mark.parametrize("busy", ["interrupt", "reject", "queue"])
async def test_an_answer_heard_whole_keeps_its_code(tts: FakeServer, busy: str) -> None:
    """What is for nobody's ear at its end is in the history, though no ack can tell of it."""
    answer = "Here is the code.\n\n```python\nprint(1)\n```"
    scripted = engine(answer)
    async with speaking(tts, scripted) as live, live.connect() as socket:
        await start(socket, speech=SPEECH, events=["chunk", "audio"], on_busy=busy)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)
        for chunk in heard.chunks:
            if chunk["text"]:
                await send(socket, "played", chunk=chunk["id"], chars=len(chunk["text"]))
        await send(socket, "user_message", text="Explain that")
        await hear(socket)

    assert "" == heard.chunks[-1]["text"]
    assert ("assistant", answer) == history(scripted)[1]


async def test_an_ack_of_a_chunk_that_was_never_sent(tts: FakeServer) -> None:
    """It is a client's mistake, and told."""
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "played", chunk=1, chars=3)
        answer = await receive(socket)

    assert "unknown_chunk" == answer["error"]["code"]


async def test_a_slow_tts_holds_up_no_text(tts: FakeServer) -> None:
    """The text is over while the first chunk is still being made."""
    tts.answer = Slow(pieces=10_000)
    async with speaking(tts, engine(ANSWER * 20)) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)

    assert ANSWER * 20 == heard.text
    assert 1 == len({audio.chunk for audio in heard.audio})


async def test_a_thousand_barge_ins(tts: FakeServer) -> None:
    """At random moments, with a slow TTS: nothing is spoken after, and no task, request or socket is left."""
    slow = tts.answer = Slow(pieces=200, pause=0.005)
    chance = random.Random(7)
    async with speaking(tts, engine(rate=400.0)) as live:
        async with live.connect() as warm:
            await begin(warm)
        before = our_tasks()
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(_barge_in(live, random.Random(chance.random()), times=100))
        async with asyncio.timeout(20):
            while live.service.connections or live.service.resumption.busy:
                await asyncio.sleep(0.01)
        await until_free(slow)

        async with asyncio.timeout(20):
            while our_tasks() > before:
                await asyncio.sleep(0.01)


def our_tasks() -> int:
    """How many tasks there are beside those of the TTS."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    return sum(getattr(each, "__qualname__", "") not in ("FakeServer.serve", "_first_byte") for each in coroutines)


async def _barge_in(live: Live, chance: random.Random, times: int) -> None:
    """Interrupt again and again; a chunk of an answer that was left must never be heard again."""
    async with live.connect() as socket:
        await begin(socket)
        left = 0
        for number in range(times):
            await send(socket, "user_message", text="Hello", id=str(number))
            heard = Heard()
            try:
                async with asyncio.timeout(chance.random() * 0.06):
                    while True:
                        frame = await socket.recv()
                        heard.take(frame)
            except TimeoutError:
                pass
            await send(socket, "cancel")
            async with asyncio.timeout(20):
                while "cancelled" not in heard.order:
                    heard.take(await socket.recv())
            assert all(audio.chunk > left for audio in heard.audio)
            left = max([left, *(chunk["id"] for chunk in heard.chunks)])


async def test_the_service_asks_after_its_tts_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is probed again and again while the service runs: one that dies is seen, and one that comes back."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY", 0.01)
    async with fake_server() as tts:
        tts.answer = doubles.openai
        down = f"opea=http://127.0.0.1:{free_port()}"
        async with speaking(tts, TTS_ENDPOINTS=f"{down},openai={tts.url}/v1") as live:

            async def until_known(*healthy: float | None) -> None:
                value = live.service.registry.get_sample_value
                async with asyncio.timeout(10):
                    while healthy != tuple(
                        value("fasttalk_speech_endpoint_healthy", {"endpoint": name}) for name in ("1-opea", "2-openai")
                    ):
                        await asyncio.sleep(0.001)

            await until_known(0, 1)
            tts.answer = broken
            await until_known(0, 0)
            tts.answer = doubles.openai
            await until_known(0, 1)

    assert 0 == posted(tts)


async def test_a_tts_that_is_deaf_while_it_speaks_keeps_the_voice(
    tts: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many a TTS answers no probe while it synthesises: that is not taken for its death, and one voice says it all."""
    monkeypatch.setattr(endpoints, "PROBE_EVERY", 0.02)
    monkeypatch.setattr(endpoints, "PROBE_TIMEOUT", 0.25)  # the first probe is answered, on a busy machine, too
    deaf = tts.answer = Deaf()
    async with fake_server() as other:
        other.answer = doubles.OPEA()
        async with (
            speaking(tts, TTS_ENDPOINTS=f"openai={tts.url}/v1,opea={other.url}") as live,
            live.connect() as socket,
        ):
            await begin(socket)
            await send(socket, "user_message", text="Hello")
            heard = await hear(socket)
            assert live.service.speech.all[0].healthy

    assert deaf.unanswered >= 3
    assert len(heard.chunks) == posted(tts)
    assert 0 == posted(other)


async def test_speech_is_measured(tts: FakeServer) -> None:
    """Time to the first chunk and to the first sound, what was spoken, and by which kind of TTS."""
    async with speaking(tts) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)
        value = live.service.registry.get_sample_value

        assert 1 == value("fasttalk_speech_time_to_first_chunk_seconds_count")
        assert 1 == value("fasttalk_speech_time_to_first_audio_seconds_count")
        assert len(heard.chunks) == value("fasttalk_speech_chunks_total")
        spoken = value("fasttalk_speech_audio_seconds_total", {"kind": "openai"})
        assert pytest.approx(0.1 * len(heard.chunks)) == spoken
        assert 0 == value("fasttalk_speech_unspoken_characters_total")


async def test_what_nobody_hears_is_no_first_chunk(tts: FakeServer) -> None:
    """The time to the first chunk is that to the first one with something to say."""
    async with speaking(tts, engine("```\nx = 1\n```\n")) as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)
        value = live.service.registry.get_sample_value

        assert [""] == [chunk["text"] for chunk in heard.chunks]
        assert 0 == value("fasttalk_speech_time_to_first_chunk_seconds_count")


async def test_the_hook_gets_every_chunk(tts: FakeServer) -> None:
    """`on_chunk` hears what is spoken in order, with the session and the end; what it raises hurts nobody."""
    got: list[Utterance] = []

    async def on_chunk(chunk: Utterance) -> None:
        got.append(chunk)
        raise RuntimeError

    async with speaking(tts, on_chunk=on_chunk) as live, live.connect() as socket:
        started = await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)

    assert [chunk["text"] for chunk in heard.chunks] == [chunk.text for chunk in got]
    assert {(started["session_id"], 1)} == {(chunk.session_id, chunk.turn) for chunk in got}
    assert [*[False] * (len(got) - 1), True] == [chunk.final for chunk in got]


@pytest.mark.parametrize("how", ["user_message", "cancel", "start_session"])
async def test_a_barge_in_drops_what_waits_for_the_hook(how: str) -> None:
    """Of an answer that nobody listens to any more `on_chunk` hears nothing more; the next one it hears again."""
    got: list[tuple[int, int]] = []
    go_on = asyncio.Event()

    async def on_chunk(chunk: Utterance) -> None:
        got.append((chunk.turn, chunk.id))
        await go_on.wait()

    async with live_service(engine(), on_chunk=on_chunk) as live, live.connect() as socket:
        await begin(socket, events=("chunk",))
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket, silent=True)
        if how == "cancel":
            await send(socket, "cancel")
            assert not (await receive(socket))["success"]
        elif how == "start_session":
            await begin(socket, events=("chunk",))
        await send(socket, "user_message", text="Stop")
        again = await hear(socket, silent=True)
        go_on.set()
        async with asyncio.timeout(10):
            while len(got) < 1 + len(again.chunks):
                await asyncio.sleep(0.001)

    assert len(heard.chunks) > 1
    assert sorted([(1, 1), *((2, chunk["id"]) for chunk in again.chunks)]) == sorted(got)


async def test_a_webhook_gets_every_chunk_and_the_end() -> None:
    """A client that takes no audio has its chunks handed on, signed; a response's end is marked, once."""
    async with fake_server() as hook:

        async def take(exchange: Exchange) -> None:
            await exchange.answer(b"")

        hook.answer = take
        environment = {"TTS_ENDPOINTS": f"webhook={hook.url}/chunks", "TTS_WEBHOOK_SECRET": "s3"}
        async with live_service(engine(), environment) as live, live.connect() as socket:
            await begin(socket, events=("chunk",))
            await send(socket, "user_message", text="Hello")
            heard = await hear(socket, silent=True)
            async with asyncio.timeout(10):
                while not (hook.exchanges and hook.exchanges[-1].json()["final"]):
                    await asyncio.sleep(0.005)

    said = [exchange.json() for exchange in hook.exchanges]
    assert [chunk["text"] for chunk in heard.chunks] == [body["text"] for body in said if body["text"]]
    assert 1 == sum(bool(body["final"]) for body in said)
    assert all("x-fasttalk-signature" in exchange.headers for exchange in hook.exchanges)


async def test_a_service_that_speaks_by_default() -> None:
    """With SPEECH_ENABLED a client that knows nothing of speech has its answers handed on, and sees nothing of it."""
    async with fake_server() as hook:

        async def take(exchange: Exchange) -> None:
            await exchange.answer(b"")

        hook.answer = take
        environment = {"TTS_ENDPOINTS": f"webhook={hook.url}", "SPEECH_ENABLED": "true"}
        async with live_service(engine(), environment) as live, live.connect() as socket:
            await start(socket)
            await send(socket, "user_message", text="Hello")
            heard = await hear(socket, silent=True)
            async with asyncio.timeout(10):
                while not (hook.exchanges and hook.exchanges[-1].json()["final"]):
                    await asyncio.sleep(0.005)

    assert {"token", "response_complete"} == set(heard.order)
    assert len(hook.exchanges) >= 3


async def test_a_drain_lets_a_whole_answer_be_heard(tts: FakeServer) -> None:
    """At a shutdown the connection is kept until what was said is heard, within the drain's time."""
    tts.answer = Slow(pieces=10)
    async with speaking(tts, DRAIN_TIMEOUT="10") as live, live.connect() as socket:
        await begin(socket)
        await send(socket, "user_message", text="Hello")
        heard = Heard()
        async with asyncio.timeout(20):
            while not heard.terminal:
                heard.take(await socket.recv())
        whole = heard.whole
        live.service.drain()
        async with asyncio.timeout(20):
            while not heard.whole:
                heard.take(await socket.recv())
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()

    assert not whole
    assert closed.value.rcvd is not None
    assert 3001 == closed.value.rcvd.code


async def test_who_comes_back_gets_the_text_and_no_sound(tts: FakeServer) -> None:
    """After a lost connection text and chunks are made up for; the next response is heard again."""
    tts.answer = Slow(pieces=10_000)
    async with speaking(tts, engine(rate=40.0)) as live:
        async with live.connect() as socket:
            session_id = (await begin(socket))["session_id"]
            await send(socket, "user_message", text="Hello")
            heard = await until_sound(socket)
            socket.transport.abort()
        tts.answer = doubles.openai
        async with live.connect() as socket:
            last = heard.last_seq
            await send(socket, "start_session", session_id=session_id, last_seq=last)
            assert (await receive(socket))["resumed"]
            while not heard.terminal:
                heard.take(await socket.recv())
            missed = len(heard.audio)
            await send(socket, "user_message", text="Again")
            again = await hear(socket)

    assert ANSWER == heard.text
    assert all(not audio.last for audio in heard.audio[:missed])
    assert all(doubles.samples() == again.sound(chunk["id"]) for chunk in again.chunks)


@pytest.mark.parametrize("events", [("chunk",), ("chunk", "audio")])
@pytest.mark.parametrize("questions", [1, 2])
async def test_who_comes_back_is_told_of_every_chunk(tts: FakeServer, events: tuple[str, ...], questions: int) -> None:
    """Chunks go on while nobody listens, of an answer that begins then as well: their spans are the whole answers."""
    async with speaking(tts, engine(rate=60.0)) as live:
        heard, ends = Heard(), 0
        async with live.connect() as socket:
            started = await start(socket, speech=SPEECH, events=list(events), on_busy="queue")
            for _ in range(questions):
                await send(socket, "user_message", text="Hello")
            while not heard.chunks:
                heard.take(await socket.recv())
            socket.transport.abort()
        async with live.connect() as socket, asyncio.timeout(20):
            await send(socket, "start_session", session_id=started["session_id"], last_seq=heard.last_seq)
            assert (await receive(socket))["resumed"]
            while ends < questions:
                heard.take(await socket.recv())
                ends += heard.order[-1] == "response_complete"

    spans = [(chunk["start"], chunk["end"]) for chunk in heard.chunks]
    assert questions * ANSWER == heard.text == "".join(ANSWER[start:end] for start, end in spans)
    assert questions == [start for start, _ in spans].count(0)


@pytest.mark.espeak
async def test_espeak_speaks(espeak_program: str) -> None:
    """The voice of this machine, from a user's message to sound."""
    async with live_service(engine(), {"TTS_ENDPOINTS": "espeak"}) as live, live.connect() as socket:
        await begin(socket, binary=True)
        await send(socket, "user_message", text="Hello")
        heard = await hear(socket)

    assert {22_050} == {audio.sample_rate for audio in heard.audio if audio.data}
    seconds = sum(len(audio.data) for audio in heard.audio) / 2 / 22_050
    assert 3 < seconds < 15
