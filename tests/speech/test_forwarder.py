"""Chunks in, audio out: order, bounds, and silence at once."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager

import pytest
import structlog
from prometheus_client import CollectorRegistry

from llm_service.errors import SpeechError, SpeechFailed
from llm_service.events import Audio
from llm_service.pacing import Supply
from llm_service.speech.base import Synthesizer, TakeAudio, Utterance
from llm_service.speech.endpoints import Endpoints
from llm_service.speech.forwarder import PIECE_BYTES, Forwarder
from llm_service.speech_metrics import SpeechMetrics
from tests.speech.doubles import a_wav, samples
from tests.speech.test_endpoints import Fake


class Listener:
    """A client that takes what it is given, or nothing."""

    def __init__(self) -> None:
        self.heard: list[Audio] = []
        self.errors: list[SpeechError] = []
        self.chunks = 0
        self.takes = True

    def give(self, audio: Audio) -> bool:
        if self.takes:
            self.heard.append(audio)
        return self.takes

    def spoken(self) -> None:
        self.chunks += 1

    def failed(self, error: SpeechError) -> None:
        self.errors.append(error)

    def audio(self, chunk: int) -> bytes:
        return b"".join(audio.data for audio in self.heard if audio.chunk == chunk)


class Bench:
    """A forwarder with its listener, its tasks and a clock that the test moves."""

    def __init__(self, *synthesizers: Synthesizer, max_ahead: float = 1000.0, max_waiting: int = 64) -> None:
        self.registry = CollectorRegistry()
        metrics = SpeechMetrics(self.registry)
        self.listener = Listener()
        self.tasks: set[asyncio.Task[None]] = set()
        self.now = 100.0
        self.forwarder = Forwarder(
            Endpoints(synthesizers, metrics),
            self.listener,
            self.spawn,
            metrics,
            max_ahead=max_ahead,
            max_waiting=max_waiting,
            clock=lambda: self.now,
        )

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def say(self, number: int, text: str = "Hello.", turn: int = 1, **fields: object) -> None:
        utterance = Utterance(text=text, id=number, turn=turn, **({"format": "pcm"} | fields))  # type: ignore[arg-type]
        self.forwarder.say(utterance, audio=True)

    async def until_idle(self) -> None:
        async with asyncio.timeout(10):
            while self.tasks:
                await asyncio.wait(self.tasks)

    def unspoken(self) -> float:
        return self.registry.get_sample_value("fasttalk_speech_unspoken_characters_total") or 0.0


@asynccontextmanager
async def bench(*synthesizers: Synthesizer, **options: float) -> AsyncGenerator[Bench, None]:
    made = Bench(*synthesizers, **options)  # type: ignore[arg-type]
    yield made
    made.forwarder.hush()
    await made.until_idle()


async def test_chunks_are_spoken_in_their_order() -> None:
    """Each chunk's sound comes whole, behind that of the one before, and ends with an empty last piece."""
    async with bench(Fake()) as b:
        for number in range(1, 6):
            b.say(number)
        await b.until_idle()

    assert [1, 1, 2, 2, 3, 3, 4, 4, 5, 5] == [audio.chunk for audio in b.listener.heard]
    assert [False, True] * 5 == [audio.last for audio in b.listener.heard]
    assert all(samples() == b.listener.audio(number) for number in range(1, 6))
    assert 5 == b.listener.chunks
    assert not b.forwarder.busy


async def test_sound_comes_in_pieces() -> None:
    """No event is larger than clients take, and text can go between."""
    async with bench(Fake(parts=(a_wav(3.0),))) as b:
        b.say(1, format="wav")
        await b.until_idle()

    assert PIECE_BYTES == max(len(audio.data) for audio in b.listener.heard)
    assert a_wav(3.0) == b.listener.audio(1)


async def test_a_session_begins_with_the_tempo_of_those_before_it() -> None:
    """How fast the voice is need not be found out anew by each."""
    async with bench(Fake(parts=(a_wav(8.0),))) as first:
        first.say(1, "x" * 40)
        await first.until_idle()
        other = Forwarder(
            first.forwarder._endpoints,
            Listener(),
            first.spawn,
            SpeechMetrics(CollectorRegistry()),
            max_ahead=9.0,
            max_waiting=9,
        )

    assert 0.2 == pytest.approx(other.supply.lasts)
    assert first.forwarder.supply.making == pytest.approx(other.supply.making)


async def test_the_next_is_made_while_the_last_is_heard_but_not_far_ahead() -> None:
    """Past `max_ahead` seconds of sound the TTS rests until the client has heard some."""
    fake = Fake(parts=(a_wav(2.0),))
    async with bench(fake, max_ahead=3.0) as b:
        for number in range(1, 5):
            b.say(number)
        for _ in range(50):
            await asyncio.sleep(0)

        assert 2 == len(fake.asked)  # after two chunks four seconds are ahead
        assert 4.0 == b.forwarder.ahead
        assert 8.0 == b.forwarder.supply.ahead  # the others will last as long as those did
        b.now += 1.5
        assert 2.5 == b.forwarder.ahead


async def test_what_is_ahead_and_how_fast_more_is_made() -> None:
    """Measured by the chunks before; what a chunk has been in the making for is taken off its time."""

    class Paced(Fake):
        async def synthesize(self, utterance: Utterance, take: TakeAudio) -> None:
            b.now += 1.0
            await super().synthesize(utterance, take)
            b.now += 1.0

    fake = Paced(parts=(a_wav(4.0),))
    async with bench(fake) as b:
        b.say(1, "twenty characters...")
        await b.until_idle()
        assert Supply(2.0, 0.0, 0.05, 0.1, 0.2) == pytest.approx(b.forwarder.supply)
        fake.hangs = True
        b.say(2, "twenty characters...")
        assert 2.0 == pytest.approx(b.forwarder.supply.busy)
        async with asyncio.timeout(10):
            while len(fake.asked) < 2:
                await asyncio.sleep(0)
        assert Supply(1.0 + 4.0, 1.0, 0.05, 0.1, 0.2) == pytest.approx(b.forwarder.supply)


async def test_a_client_that_takes_nothing_has_one_chunk_made_ahead() -> None:
    """What it has not taken is held, and the next chunk is not begun before it is gone."""
    fake = Fake()
    async with bench(fake) as b:
        b.listener.takes = False
        for number in range(1, 4):
            b.say(number)
        for _ in range(50):
            await asyncio.sleep(0)
        held = len(fake.asked)
        b.listener.takes = True
        b.forwarder.ready()
        await b.until_idle()

    assert 1 == held
    assert [1, 1, 2, 2, 3, 3] == [audio.chunk for audio in b.listener.heard]


async def test_what_was_held_for_the_client_is_dropped_with_the_rest() -> None:
    """Sound that it had not taken when all was dropped is not given once it takes some again."""
    async with bench(Fake()) as b:
        b.listener.takes = False
        b.say(1)
        await b.until_idle()
        held = b.forwarder.busy
        b.forwarder.hush()
        b.listener.takes = True
        b.forwarder.ready()
        assert (True, False) == (held, b.forwarder.busy)
        b.say(2)
        await b.until_idle()

    assert [2, 2] == [audio.chunk for audio in b.listener.heard]


async def test_nothing_is_ahead_of_a_silenced_client() -> None:
    """What it was sent and will not hear holds up no later chunk."""
    fake = Fake(parts=(a_wav(2.0),))
    async with bench(fake, max_ahead=1.0) as b:
        b.say(1)
        await b.until_idle()
        assert 2.0 == b.forwarder.ahead
        b.forwarder.hush()
        assert 0.0 == b.forwarder.ahead
        b.say(2)
        await b.until_idle()

    assert [1, 2] == [utterance.id for utterance in fake.asked]


async def test_of_a_turn_that_is_dropped_nothing_more_is_heard() -> None:
    """What waits of it goes while the one before is spoken to its end; what is spoken of it is aborted."""
    fake = Fake(parts=(a_wav(1.01),))
    async with bench(fake, max_ahead=1.0) as b:
        b.say(1)
        b.say(2)
        b.say(3, "Bye.", turn=2)
        while b.listener.chunks < 1:
            await asyncio.sleep(0)
        b.forwarder.drop(2)
        b.now += 2.0
        await b.until_idle()
        assert [1, 2] == [utterance.id for utterance in fake.asked]
        assert 4.0 == b.unspoken()

        fake.hangs, b.now = True, b.now + 2.0
        b.say(4, turn=3)
        while len(fake.asked) < 3:
            await asyncio.sleep(0)
        b.say(5, turn=3)
        b.forwarder.drop(3)
        await b.until_idle()

    assert 1 == fake.aborted
    assert [1, 2, 4] == [utterance.id for utterance in fake.asked]
    assert not b.forwarder.busy


@pytest.mark.parametrize("at", range(4))
async def test_a_failure_costs_the_response_its_sound_once(at: int) -> None:
    """Whichever chunk fails, one error is told, the rest of that response is silent, and the next is spoken again."""
    fake = Fake()
    async with bench(fake) as b:
        for number in range(at):
            b.say(number)
        await b.until_idle()
        fake.error, fake.parts = SpeechFailed("no"), ()
        for number in range(at, 6):
            b.say(number)
        await b.until_idle()
        b.say(7)
        await b.until_idle()
        fake.error, fake.parts = None, (a_wav(),)
        b.say(8, turn=2)
        await b.until_idle()

    assert ["the TTS failed; the text goes on alone"] == [error.message for error in b.listener.errors]
    assert [*range(at), 8] == sorted({audio.chunk for audio in b.listener.heard})
    assert (6 - at + 1) * len("Hello.") == b.unspoken()


async def test_half_a_chunk_is_closed() -> None:
    """A chunk that broke off within its sound has its last piece, so that no client waits for more."""
    async with bench(Fake(parts=(a_wav()[:2000],))) as b:
        b.say(1)
        await b.until_idle()

    assert b.listener.heard[-1].last
    assert 1 == len(b.listener.errors)


async def test_what_waits_is_bounded() -> None:
    """A TTS that is too slow for the response loses it; whoever speaks the chunks has never waited."""
    fake = Fake(parts=())
    fake.hangs = True
    async with bench(fake, max_waiting=3) as b:
        for number in range(20):
            b.say(number)
            await asyncio.sleep(0)
        codes = [error.code for error in b.listener.errors]
        b.say(30, turn=2)

        assert ["speech_too_slow"] == codes
        assert 1 == len(fake.asked)


@pytest.mark.parametrize("steps", range(12))
async def test_hush_is_the_end_of_it(steps: int) -> None:
    """However far a synthesis is, nothing is given after a hush, what runs is aborted and no task is left."""
    fake = Fake(parts=(a_wav()[:1000], a_wav()[1000:]))
    fake.hangs = True
    async with bench(fake) as b:
        for number in range(3):
            b.say(number)
        for _ in range(steps):
            await asyncio.sleep(0)

        b.forwarder.hush()
        heard = len(b.listener.heard)
        await b.until_idle()

        assert heard == len(b.listener.heard)
        assert len(fake.asked) == fake.aborted
        assert (0.0, False) == (b.forwarder.ahead, b.forwarder.busy)
        assert 3 * len("Hello.") == b.unspoken()
        assert [] == b.listener.errors


async def test_after_a_hush_the_next_is_spoken() -> None:
    """A barge-in costs what was said before, and nothing that is said after."""
    fake = Fake(parts=())
    fake.hangs = True
    async with bench(fake) as b:
        b.say(1)
        await asyncio.sleep(0)
        b.forwarder.hush()
        fake.hangs, fake.parts = False, (a_wav(),)
        b.say(2, turn=2)
        await b.until_idle()

    assert {2} == {audio.chunk for audio in b.listener.heard}


async def test_a_bug_costs_the_sound_alone() -> None:
    """What no TTS should raise is told as a failure of speech, and logged."""
    fake = Fake(parts=(), error=ZeroDivisionError())  # type: ignore[arg-type]
    with structlog.testing.capture_logs() as lines:
        async with bench(fake) as b:
            b.say(1)
            await b.until_idle()

    assert ["speech_crashed"] == [line["event"] for line in lines]
    assert ["speech_failed"] == [error.code for error in b.listener.errors]
