"""`python -m benchmarks speech`: what a client notes, what a player would lack, and how the paced double speaks."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest

from benchmarks import speech, speech_figures
from benchmarks.paced_tts import CHARACTERS_PER_SECOND, PIECE, paced_tts, schedule
from benchmarks.processes import BenchmarkFailed
from benchmarks.speech_client import Cut, Heard, Sound, hear
from benchmarks.speech_figures import Gap, Row, figures, gaps, played, positions, table, write
from llm_service.audio_frames import binary_frame
from llm_service.engines.scripted import ScriptedEngine
from llm_service.events import Audio
from tests.live import live_service

TEXT = "Well, here it is, then. And this is the end of it."


def answer() -> Heard:
    """Make up an answer of two chunks, with a second without sound between them."""
    return Heard(
        text="Well, yes.",
        written=[(0.5, 5), (0.75, 10)],
        cuts=[Cut(0.5, 1, 0, 5, "Well,"), Cut(0.75, 2, 5, 10, "yes.")],
        sounds=[Sound(1.0, 1, 0.5), Sound(1.25, 1, 0.5), Sound(3.0, 2, 1.0)],
        over=0.8,
        ended=[1, 2],
    )


def frame(**event: object) -> str:
    return json.dumps(event)


class TestFigures:
    """From what came to what is heard."""

    def test_gaps(self) -> None:
        """A gap lasts from the end of what was there to the next piece; sound that waits makes none."""
        assert [Gap(2.0, 1.0)] == gaps(answer().sounds)
        assert [] == gaps([Sound(1.0, 1, 1.0), Sound(1.5, 1, 1.0), Sound(3.0, 2, 1.0)])
        assert [] == gaps([])

    def test_played(self) -> None:
        """A piece is played as it comes, or behind the one before."""
        assert [(1.0, 1.5), (1.5, 2.0), (3.0, 4.0)] == played(answer().sounds)

    def test_positions(self) -> None:
        """A chunk's sound stands for its part of the answer, evenly."""
        assert [2.5, 5.0, 10.0] == positions(answer())

    def test_figures(self) -> None:
        """Moments are those of the first of each kind, and of the last sound that is played."""
        found = figures(answer())
        assert (0.5, 0.5, 1.0, 0.8, 4.0) == (
            found.first_text,
            found.first_chunk,
            found.first_sound,
            found.text_over,
            found.sound_over,
        )
        assert (2, 2, 2.0, 1.0) == (found.words, found.chunks, found.sound, found.silence)

    def test_table(self) -> None:
        """A row that failed has no figures and says why."""
        rows = [Row("scripted", "paced", answer(), 0.5), Row("scripted", "espeak-ng", note="failed: none", failed=True)]
        lines = table(rows).splitlines()
        assert 1 == len({line.count("|") for line in lines[:4]})
        assert ["2.0", "1", "1.0", "1.00", "0.50"] == [cell.strip() for cell in lines[2].split("|")[-6:-1]]
        assert 12 == lines[3].count(" - ")
        assert "scripted, espeak-ng: failed: none" == lines[-1]

    def test_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The file has each row with all its moments, the page the table and the plot."""
        monkeypatch.setattr(speech_figures, "_plot", lambda path, rows: [path])
        rows = [Row("scripted", "paced", answer(), 0.123456), Row("scripted", "none", note="failed: so", failed=True)]
        data, page, plot = write(tmp_path / "new", rows, {"cores": 2}, "python -m benchmarks speech")
        found = json.loads(data.read_bytes())
        assert [0.123, 0.0] == [row["synthesis"] for row in found["rows"]]
        assert answer() == msgspec.convert(found["rows"][0]["heard"], Heard)
        assert 1.0 == found["figures"]["scripted, paced"]["silence"]
        assert "speech.svg" == plot.name
        assert "(speech.svg)" in page.read_text()
        assert table(rows) in page.read_text()


class TestClient:
    """What a client takes for an answer."""

    def test_it_takes_what_comes(self) -> None:
        """Text, chunks and sound are noted with their moments; the answer is whole once the last chunk's sound is."""
        heard = Heard()
        heard.take(frame(type="token", data="Well,"), 1.0)
        heard.take(frame(type="chunk", id=1, start=0, end=5, text="Well,"), 1.0)
        heard.take(frame(type="token", data=" ```x```"), 1.5)
        heard.take(frame(type="chunk", id=2, start=5, end=13, text=""), 1.5)
        heard.take(frame(type="response_complete"), 2.0)
        whole = [heard.whole]
        heard.take(binary_frame(Audio(chunk=1, format="pcm", sample_rate=1000, data=bytes(500))), 3.0)
        heard.take(binary_frame(Audio(chunk=1, format="pcm", last=True)), 3.0)
        heard.check()
        assert [False, True] == [*whole, heard.whole]
        assert ([(1.0, 5), (1.5, 13)], [Sound(3.0, 1, 0.25)], 2.0) == (heard.written, heard.sounds, heard.over)

    def test_an_error_is_no_answer(self) -> None:
        """What is neither text nor sound ends the run."""
        with pytest.raises(BenchmarkFailed, match="speech_failed"):
            Heard().take(frame(type="error", error={"code": "speech_failed"}), 1.0)

    @pytest.mark.parametrize(
        ("ended", "end"),
        [([1], 10), ([2, 1], 10), ([1, 1, 2], 10), ([1, 2], 9)],
        ids=["missing", "order", "two", "span"],
    )
    def test_a_wrong_answer_has_no_figures(self, ended: list[int], end: int) -> None:
        """Chunks that are not the answer, or sound that is missing, doubled or out of order, are found."""
        wrong = answer()
        wrong.ended, wrong.cuts[-1].end = ended, end
        with pytest.raises(BenchmarkFailed):
            wrong.check()


class TestPacedTTS:
    """The double with a real-time factor."""

    @pytest.mark.parametrize("factor", [0.5, 1.5])
    def test_schedule(self, factor: float) -> None:
        """Each piece is there when so much was synthesised; together they last as long as the text."""
        pieces = list(schedule(TEXT, factor))
        seconds = len(TEXT) / CHARACTERS_PER_SECOND
        assert seconds == pytest.approx(sum(lasts for _, lasts in pieces))
        assert factor * seconds == pytest.approx(pieces[-1][0])
        assert (factor * PIECE, PIECE) == pieces[0]

    async def test_a_slow_one_leaves_gaps(self) -> None:
        """The service has it speak; its sound is whole, and silence is at least what it lacks to real time."""
        engine = ScriptedEngine(lambda _: [f"{word} " for word in TEXT.split(" ")], tokens_per_second=1000.0, models=())
        async with paced_tts(1.2) as tts:
            variables = {"TTS_ENDPOINTS": f"openai=http://127.0.0.1:{tts.port}/v1"}
            async with live_service(engine, variables) as live:
                heard = await hear(live.port, "Hello", {})
        found = figures(heard)
        assert f"{TEXT} " == heard.text
        spoken = sum(len(cut.text) for cut in heard.cuts)
        assert spoken / CHARACTERS_PER_SECOND == pytest.approx(found.sound, abs=0.01)
        assert found.silence > 0.1 * found.sound

    async def test_closing_ends_what_it_says(self) -> None:
        """Whoever listens is cut off, and nothing is left running."""
        async with asyncio.timeout(10):
            async with paced_tts(100.0) as tts:
                reader, writer = await asyncio.open_connection("127.0.0.1", tts.port)
                body = b'{"input": "Hello"}'
                writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await reader.readuntil(b"RIFF")
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readuntil(b"never")
            writer.close()


def test_chosen() -> None:
    """Engines are named by their providers, and a wrong name is told with the right ones."""
    assert ["scripted"] == [engine.provider for engine in speech.chosen("scripted")]
    assert list(speech.ENGINES) == speech.chosen("")
    with pytest.raises(ValueError, match="no such engine: x; there are llama_cpp, scripted"):
        speech.chosen("scripted,x")
