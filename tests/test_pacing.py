"""How large chunks may be, by the audio that is ahead and the time it takes to make more."""

from itertools import pairwise

import pytest

from llm_service.pacing import Supply, Tempo
from llm_service.sentences import Chunk, Chunker

TEXT = (
    "Well, good morning to you. Lyon is a city in France with a long history. It lies where two rivers meet, the Rhone "
    "and the Saone. The Romans founded it in 43 BC. Later it grew rich on silk. Today about half a million people live "
    "there, and many more in the towns around it. The old town is worth a visit. So is the hill above it, with its "
    "white church. You can take a small train up. Try the food as well: it is famous. Would you like to hear about "
    "hotels? I can name a few near the river. They are not cheap. Some are quite nice."
)
STEP = 0.01  # seconds


class Voice:
    """A TTS on a clock of the test's: it gives each chunk's sound as a whole, `factor` seconds for each of it."""

    def __init__(self, factor: float, before: Tempo | None) -> None:
        self.factor = factor
        self.now = self.began = self.heard_until = 0.0
        self.tempo = Tempo() if before is None else before.successor()
        self.waiting: list[int] = []
        self.sizes: list[int] = []
        self.silences: list[float] = []

    def supply(self) -> Supply:
        underway = self.now - self.began if self.waiting else 0.0
        return self.tempo.supply(max(0.0, self.heard_until - self.now), sum(self.waiting), underway)

    def take(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            if not self.waiting:
                self.began = self.now
            self.waiting.append(len(chunk.text))
            self.sizes.append(len(chunk.text))

    def tick(self) -> None:
        self.now += STEP
        while self.waiting and self.now >= self.began + (took := 0.1 + self.waiting[0] / 15 * self.factor):
            seconds = self.waiting[0] / 15
            self.tempo.observe(self.waiting.pop(0), until_heard=took, took=took, seconds=seconds)
            self.began = self.now
            if self.heard_until:
                self.silences.append(max(0.0, self.now - self.heard_until))
            self.heard_until = max(self.heard_until, self.now) + seconds


def spoken(characters_per_second: float, factor: float, before: Tempo | None = None) -> Voice:
    """Have TEXT said by an engine of this speed and a voice of this real-time factor."""
    voice, chunker, given = Voice(factor, before), Chunker(language="en"), 0
    while given < len(TEXT) or voice.waiting:
        voice.tick()
        upto = min(int(voice.now * characters_per_second), len(TEXT))
        if upto > given:
            voice.take(chunker.feed(TEXT[given:upto], voice.supply()))
            if upto == len(TEXT):
                voice.take(chunker.finish(voice.supply()))
            given = upto
        elif given < len(TEXT):
            voice.take(chunker.due(voice.supply()))
    return voice


@pytest.mark.parametrize("speed", [60, 120, 400, 5000])
@pytest.mark.parametrize("factor", [0.02, 0.2, 0.3, 0.5])
def test_no_chunk_is_larger_than_the_audio_ahead_allows(speed: float, factor: float) -> None:
    """However fast the engine is, a voice at twice real time never falls silent, and chunks grow by and by."""
    voice = spoken(speed, factor)
    assert [] == [silence for silence in voice.silences if silence > 0.1]
    assert all(later <= max(120, 2 * earlier) for earlier, later in pairwise(voice.sizes))
    assert 100 < max(voice.sizes)


def test_the_plan_for_a_slow_voice() -> None:
    """Sentences first, then two and more at once, each about what is made by then."""
    assert [26, 45, 55, 59, 114, 204, 20] == spoken(400, 0.5).sizes


@pytest.mark.parametrize("factor", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("speed", [400, 5000])
def test_a_session_begins_with_what_others_found_out(speed: float, factor: float) -> None:
    """A fast engine's answer is cut before anything of it is heard: for a voice that is slow, then, too."""
    first = spoken(speed, factor)
    later = spoken(speed, factor, first.tempo)
    assert sum(later.silences) < 0.15 * sum(first.silences)


def test_a_tempo_of_ones_own_counts_more() -> None:
    """What others found out is soon outweighed: they may have had another voice."""
    before = Tempo()
    unknown = before.successor().supply(1.0, 15, 0.0)
    assert before.supply(1.0, 15, 0.0) == unknown, "nobody has found out anything"
    before.observe(1000, until_heard=100.0, took=100.0, seconds=100.0)
    tempo = before.successor()
    assert Supply(1.0 + 1.5, 1.5, 0.1, 0.1, 0.1) == pytest.approx(tempo.supply(1.0, 15, 0.0))
    tempo.observe(40, until_heard=0.8, took=0.8, seconds=4.0)
    assert 0.036 == pytest.approx(tempo.supply(1.0, 0, 0.0).making)
    assert before.supply(1.0, 0, 0.0).making < 0.1, "and those that come later begin with it"


def test_a_voice_slower_than_speech_gets_sentences() -> None:
    """It is always behind: nothing is joined that would make the next silence longer."""
    assert 100 > max(spoken(60, 1.2).sizes)


def test_what_can_be_made_meanwhile() -> None:
    """Four fifths of what is left when the making begins; without a cost there is no bound but the given one."""
    assert 300 == Supply(0.0).most(300)
    assert 80 == Supply(10.0, busy=0.0, until_heard=0.1).most(300)
    assert 40 == Supply(10.0, busy=5.0, until_heard=0.1).most(300)
    assert 0 == Supply(1.0, busy=5.0, until_heard=0.1).most(300)
    assert 4.0 == Supply(10.0, busy=5.0, until_heard=0.1).left_after(10)
    assert Supply(12.0, 2.0, 0.1, 0.1, 0.2) == Supply(10.0, 1.0, 0.1, 0.1, 0.2).after(10)


def test_a_tempo_is_that_of_the_latest_chunks() -> None:
    """Measured a character; what is underway counts less; the latest chunks count most."""
    tempo = Tempo()
    assert 10.0 + 1.0 == pytest.approx(tempo.supply(10.0, 15, 0.0).ahead)
    tempo.observe(100, until_heard=1.0, took=5.0, seconds=10.0)
    assert Supply(3.0, 0.25, 0.01, 0.05, 0.1) == pytest.approx(tempo.supply(1.0, 20, 0.75))
    assert 0.0 == tempo.supply(1.0, 20, 9.0).busy
    tempo.observe(100, until_heard=1.0, took=8.0, seconds=10.0)
    assert 0.07 == pytest.approx(tempo.supply(1.0, 0, 0.0).making)
