"""FastTalk TTS, which answers with a path on its own disk."""

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from llm_service.errors import (
    ConfigurationError,
    SpeechError,
    SpeechFailed,
    SpeechRejected,
    SpeechTimeout,
    SpeechUnavailable,
)
from llm_service.speech.base import Utterance
from llm_service.speech.fasttalk_tts import FastTalkSynthesizer
from tests.engines.fake_server import Exchange, FakeServer
from tests.processes import free_port
from tests.speech import doubles
from tests.speech.utterances import SENTENCE, TIMES, rendered, spoken


def synthesizer(url: str, files: str | Path, silence: float = 2.0) -> FastTalkSynthesizer:
    return FastTalkSynthesizer(url, files=str(files), voice="", connect_timeout=2.0, silence=silence)


async def test_the_file_is_read_from_the_mount(tmp_path: Path) -> None:
    """Its output folder, mounted here, has the file that it names."""
    async with doubles.fasttalk_tts(tmp_path) as double:
        data, rate = await rendered(synthesizer(double.url, tmp_path), format="pcm", voice="a:60,b:40", speed=1.5)
        await spoken(synthesizer(double.url, tmp_path), format="wav", language="en")
        await spoken(synthesizer(double.url, tmp_path), format="wav", language="pt-BR")

    assert (doubles.samples(), doubles.RATE) == (data, rate)
    assert {"text": SENTENCE, "speed": 1.5, "format": "wav", "voice": "a:60,b:40"} == double.requests[0]
    assert ["en-us", "pt-br"] == [request["lang"] for request in double.requests[1:]]


async def test_the_file_is_fetched_by_http(tmp_path: Path, tts: FakeServer) -> None:
    """Or it is served, at a URL of TTS_FILES."""

    async def serve(exchange: Exchange) -> None:
        await exchange.answer((tmp_path / exchange.path.removeprefix("/audio/")).read_bytes())

    tts.answer = serve
    async with doubles.fasttalk_tts(tmp_path) as double:
        speaker = synthesizer(double.url, f"{tts.url}/audio")
        data = await spoken(speaker, format="mp3")
        await speaker.aclose()

    assert data.startswith(b"ID3")
    assert ["/audio/1.mp3"] == [exchange.path for exchange in tts.exchanges]


async def test_a_url_that_does_not_serve_its_files(tmp_path: Path, tts: FakeServer) -> None:
    """The setting is named, not the voice."""

    async def nothing(exchange: Exchange) -> None:
        await exchange.answer(b"", 404)

    tts.answer = nothing
    async with doubles.fasttalk_tts(tmp_path) as double:
        speaker = synthesizer(double.url, tts.url)
        with pytest.raises(SpeechFailed, match="TTS_FILES"):
            await spoken(speaker)
        await speaker.aclose()


@pytest.mark.parametrize("files", ["", "/no/such/folder"])
def test_without_a_way_to_its_files_the_start_says_so(files: str) -> None:
    """Neither a mount nor a URL: the audio would never be found."""
    with pytest.raises(ConfigurationError, match="mount its output folder"):
        FastTalkSynthesizer("ws://localhost:8003", files=files, voice="", **TIMES)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "output/../../etc/passwd", "..", "", "output/", "a b.wav", ".hidden", "C:\\x\\.."]
)
async def test_its_word_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    """Only a plain name within the folder is read, whatever path it answers with."""
    folder = tmp_path / "mount"
    folder.mkdir()
    async with doubles.fasttalk_tts(folder) as double:
        double.path = path

        with pytest.raises(SpeechFailed, match=r"no name of a file|not in TTS_FILES"):
            await spoken(synthesizer(double.url, folder))


async def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link in the folder does not lead out of it."""
    folder, secret = tmp_path / "mount", tmp_path / "secret"
    folder.mkdir()
    secret.write_bytes(doubles.a_wav())
    (folder / "link.wav").symlink_to(secret)
    async with doubles.fasttalk_tts(folder) as double:
        double.path = "output/link.wav"

        with pytest.raises(SpeechFailed, match="not in TTS_FILES"):
            await spoken(synthesizer(double.url, folder))


async def test_its_refusals(tmp_path: Path) -> None:
    """An error message, a full house and nobody at all are told apart."""
    async with doubles.fasttalk_tts(tmp_path) as double:
        speaker = synthesizer(double.url, tmp_path)
        with pytest.raises(SpeechRejected, match="refused"):
            await spoken(speaker, text="")
        await speaker.ping()
        double.busy = True
        with pytest.raises(SpeechUnavailable, match="busy"):
            await spoken(speaker)
    absent = synthesizer(f"ws://127.0.0.1:{free_port()}", tmp_path)
    for work in (absent.ping(), spoken(absent)):
        with pytest.raises(SpeechUnavailable, match="connected to"):
            await work


async def test_cancel_closes_the_socket(tmp_path: Path) -> None:
    """It has no cancel: the connection's end is all it can be told."""
    async with doubles.fasttalk_tts(tmp_path) as double:
        double.stall = True
        task = asyncio.create_task(synthesizer(double.url, tmp_path).synthesize(Utterance(text=SENTENCE), _ignore))
        async with asyncio.timeout(5):
            while not double.requests:
                await asyncio.sleep(0.001)

        task.cancel()
        await asyncio.wait([task])

        async with asyncio.timeout(5):
            await double.left.wait()
        assert task.cancelled()


async def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """Who answers with one would choose who gets the text; where the setting is wrong it is named."""

    def elsewhere(_: ServerConnection, __: Request) -> Response:
        return Response(302, "Found", Headers({"Location": double.url}))

    async with (
        doubles.fasttalk_tts(tmp_path) as double,
        serve(double.serve, "127.0.0.1", 0, process_request=elsewhere) as server,
    ):
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(SpeechUnavailable, match="redirects elsewhere"):
            await spoken(synthesizer(f"ws://127.0.0.1:{port}", tmp_path))

    assert [] == double.requests


async def test_its_goodbye_is_hardly_waited_for(tmp_path: Path) -> None:
    """It speaks for the next client in its event loop, and reads nothing meanwhile: the file is there already."""
    (tmp_path / "1.wav").write_bytes(doubles.a_wav())

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send('{"status": "ok", "file": "output/1.wav"}')
        socket.transport.pause_reading()
        await socket.wait_closed()

    async with serve(answer, "127.0.0.1", 0, close_timeout=0.01) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with asyncio.timeout(0.9):
            assert doubles.a_wav() == await spoken(synthesizer(f"ws://127.0.0.1:{port}", tmp_path))


@pytest.mark.parametrize("said", ["[" * 60_000, "{", "[]", '{"status": 1}', b"\xff"])
async def test_what_is_not_its_protocol_is_a_failure(tmp_path: Path, said: str | bytes) -> None:
    """One of the TTS, which the next one can mend: not of the service."""

    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send(said)

    async with serve(answer, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(SpeechFailed, match="protocol"):
            await spoken(synthesizer(f"ws://127.0.0.1:{port}", tmp_path))


async def test_silence_is_bounded(tmp_path: Path) -> None:
    """A TTS that stalls is given up."""
    async with doubles.fasttalk_tts(tmp_path) as double:
        double.stall = True

        with pytest.raises(SpeechTimeout) as caught:
            await spoken(synthesizer(double.url, tmp_path, silence=0.1))

    assert isinstance(caught.value, SpeechError)


def _ignore(_: bytes) -> None:
    """Take no audio: none comes."""
