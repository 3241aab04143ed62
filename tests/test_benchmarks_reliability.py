"""The reliability suite itself: it must see what is broken."""

import argparse
import asyncio
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from time import monotonic

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, serve

from benchmarks import wire
from benchmarks.fake_stream import State
from benchmarks.reliability import (
    barge_ins,
    cuts,
    frozen,
    garbage,
    kills,
    parts,
    soak,
    standards,
    stop_floor,
    stops,
    tested,
)
from benchmarks.reliability.client import Client, Hung, Lost, answer
from benchmarks.reliability.faults import FAULTS
from benchmarks.reliability.promise import Outcome, Part, line, write
from benchmarks.reliability.slow_tts import slow_tts
from benchmarks.reliability.tested import streams
from benchmarks.script import VOCABULARY, Script
from llm_service.engines.openai import OpenAIEngine
from llm_service.errors import EngineError
from llm_service.generation import Delta
from llm_service.speech.base import Utterance
from llm_service.speech.openai import OpenAISynthesizer
from tests.bench_engine import ENGINES, bench_engine, request
from tests.engines.requests import stream


@pytest.fixture
async def fake() -> AsyncGenerator[tuple[State, int], None]:
    async with bench_engine() as running:
        yield running


async def nothing(_count: int, _folder: Path) -> Outcome:
    return Outcome()


PART = Part("part", "It holds", "times", 10, 2, nothing)


@pytest.mark.parametrize(
    ("outcomes", "options", "runs", "status"),
    [
        (["slow", "ok"], ["--short"], 2, 0),
        (["slow", "slow"], ["--short"], 2, 1),
        (["wrong", "ok"], ["--short"], 1, 1),
        (["slow", "ok"], [], 1, 1),
        (["ok"], ["--short"], 1, 0),
    ],
)
def test_a_slow_machine_gets_another_chance(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: list[str],
    options: list[str],
    runs: int,
    status: int,
) -> None:
    """In the short run a time or a size is measured once more; what was wrong once is broken."""
    left = list(outcomes)

    async def run(_count: int, _folder: Path) -> Outcome:
        outcome, word = Outcome(), left.pop(0)
        outcome.none(int(word == "wrong"), "lost")
        outcome.most(9 if word == "slow" else 1, 5, "ms")
        return outcome

    monkeypatch.setattr(parts, "PARTS", (replace(PART, name="it", run=run),))
    parser = argparse.ArgumentParser()
    parts.add_to(parser.add_subparsers())
    arguments = parser.parse_args(["reliability", "it", *options])
    assert status == arguments.run(arguments)
    assert runs == len(outcomes) - len(left) == capsys.readouterr().out.count("it: ")


def test_an_outcome_tells_what_is_broken() -> None:
    """A figure past its promise is broken, one within it is not, and both are in the line."""
    outcome = Outcome()
    outcome.none(0, "lost")
    outcome.most(7.0, 5, "7 ms")
    outcome.least(2, 1, "2 cases")
    assert ["7 ms, promised: at most 5"] == outcome.broken
    assert "BROKEN part: 0 lost; 7 ms; 2 cases (1 s)" == line(PART, outcome, 1.4)
    assert "ok part:  (0 s)" == line(PART, Outcome(), 0)


def test_a_row_takes_the_place_of_its_last_one(tmp_path: Path) -> None:
    """The table has one row for a part; what stands around it stays."""
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- results -->\n| a |\n|---|\n<!-- end of results -->\nafter\n")
    for count in (1, 2):
        write(PART, Outcome([f"{count} done"]), "", page)
    write(PART, Outcome([], ["it fell"]), " --count 1", page)
    *_, row, end, after = page.read_text().splitlines()
    assert ("<!-- end of results -->", "after") == (end, after)
    assert row.startswith("| It holds | **broken**: it fell | 2")
    assert row.endswith("| `python -m benchmarks reliability part --count 1` |")
    assert 6 == len(page.read_text().splitlines()) - 1


def test_parts_are_chosen_by_name() -> None:
    """Those named, in that order; all on request; a wrong name and none are told."""
    assert ["drain", "cancels"] == [part.name for part in parts.chosen(["drain", "cancels"], everything=False)]
    assert list(parts.PARTS) == parts.chosen([], everything=True)
    for names in (["nonsense"], []):
        with pytest.raises(ValueError, match=r"there are cuts-memory, "):
            parts.chosen(names, everything=False)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("fault", sorted({*FAULTS} - {"stall", "pieces"}))
@pytest.mark.parametrize("after", [0, 3, 7])
async def test_faults_are_errors(fake: tuple[State, int], kind: str, fault: str, after: int) -> None:
    """Each fault reaches the service as a typed error, with no word past it."""
    engine, said = ENGINES[kind](fake[1]), ""
    with pytest.raises(EngineError):
        async for event in stream(engine, request(Script(7, fault=fault, after=after))):
            said += event.text if isinstance(event, Delta) else ""
    assert said.count(" ") <= after
    await engine.aclose()


@pytest.mark.parametrize("kind", ENGINES)
async def test_words_in_pieces(fake: tuple[State, int], kind: str) -> None:
    """A word whose bytes come in several chunks is whole, wherever it stands."""
    engine = ENGINES[kind](fake[1])
    for after in (0, 6, 7):
        script, said = Script(7, seed=after, fault="pieces", after=after), ""
        async for event in stream(engine, request(script)):
            said += event.text if isinstance(event, Delta) else ""
        assert script.text() == said
    await engine.aclose()


def test_pieces_are_cut_within_characters() -> None:
    """Together they are the word; every character of several bytes lies in several of them."""
    (index,) = (index for index, word in enumerate(VOCABULARY) if word.startswith("日"))
    pieces = wire.pieces(wire.OLLAMA.words[index])
    data = [piece.split(b"\r\n", 1)[1].removesuffix(b"\r\n") for piece in pieces]
    whole = wire.OLLAMA.words[index].split(b"\r\n", 1)[1].removesuffix(b"\r\n")
    assert whole == b"".join(data)
    assert len(data) > len("日本語")
    assert any(piece[0] & 0xC0 == 0x80 for piece in data)


async def test_what_is_given_up_is_counted(fake: tuple[State, int]) -> None:
    """The engine's own count of running answers, and when one was given up: told once."""
    engine = OpenAIEngine(f"http://127.0.0.1:{fake[1]}/v1")
    answering = stream(engine, request(Script(1000, rate=100, seed=5)))
    await anext(answering)
    assert 1 == (await streams(fake[1])).running
    await answering.aclose()
    async with asyncio.timeout(5):
        while (seen := await streams(fake[1])).running:
            await asyncio.sleep(0.005)
    assert {5} == seen.given_up.keys() or {5} == fake[0].given_up.keys()
    await engine.aclose()


@pytest.mark.parametrize(
    ("numbers", "lost", "doubled"), [([2, 3, 4], 0, 0), ([2, 4, 5], 1, 0), ([2, 2, 3], 0, 1), ([5, 6, 7], 3, 0)]
)
async def test_numbers_are_checked(numbers: list[int], lost: int, doubled: int) -> None:
    """A number that is left out is a lost event, one that comes again is doubled, a wrong text is wrong."""

    async def service(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send('{"type":"session_started","seq":1,"session_id":"s"}')
        await socket.recv()
        for number in numbers[:2]:
            await socket.send(msgspec.json.encode({"type": "token", "seq": number, "data": "x "}).decode())
        await socket.send(msgspec.json.encode({"type": "response_complete", "seq": numbers[2]}).decode())
        await socket.wait_closed()

    async with serve(service, "127.0.0.1", 0) as server:
        seen = cuts.Cuts(1)
        caller = cuts.Caller(0, server.sockets[0].getsockname()[1], seen)
        caller._chance.random = lambda: 1.0  # type: ignore[method-assign]
        talking = asyncio.create_task(caller.talk())
        async with asyncio.timeout(5):
            while not seen.answers:
                await asyncio.sleep(0.01)
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
    assert (lost, doubled, 1) == (seen.lost, seen.doubled, seen.wrong)


async def test_a_client_sees_silence_and_the_end() -> None:
    """Nothing for a while is a client that hangs; a closing frame's code is told."""

    async def service(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.close(3001)

    async with serve(service, "127.0.0.1", 0) as server:
        client = await Client.connect(server.sockets[0].getsockname()[1])
        with pytest.raises(Hung):
            await client.event(0.05)
        with pytest.raises(Lost) as lost:
            await answer(client, "hello")
        assert 3001 == lost.value.code
    with pytest.raises(Lost):
        await Client.connect(server.sockets[0].getsockname()[1] if server.sockets else 1)


async def test_the_slow_tts_notes_who_leaves() -> None:
    """A reader that leaves within the sound is noted by its voice, with the moment; one that asks for health is not."""
    async with slow_tts() as tts:
        began = monotonic()
        synthesizer = OpenAISynthesizer(
            f"http://127.0.0.1:{tts.port}/v1", model="m", voice="anna", connect_timeout=5.0, silence=5.0
        )
        await synthesizer.ping()
        heard = asyncio.Event()
        speaking = asyncio.create_task(synthesizer.synthesize(Utterance(text="Hello."), lambda _: heard.set()))
        async with asyncio.timeout(5):
            await heard.wait()
            assert 1 == tts.running
            speaking.cancel()
            while tts.running:
                await asyncio.sleep(0.001)
        await synthesizer.aclose()

    assert ["anna"] == list(tts.left)
    assert [True] == [began < moment for moment in tts.left["anna"]]


def test_who_left_is_paired_with_the_cancel_before() -> None:
    """What was left before any cancel is nobody's barge-in."""
    assert [pytest.approx(500), pytest.approx(250)] == barge_ins._since([1.0, 2.0, 4.0], [0.5, 2.5, 4.25])


async def test_the_parser_is_given_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of it is refused, some of it is right, and what is neither is told."""
    outcome = await garbage.messages(2000, tmp_path)
    assert [] == outcome.broken
    refused = int(outcome.figures[0].split(", ")[1].split()[0].replace(",", ""))
    assert 1000 < refused < 2000
    monkeypatch.setattr(garbage, "parse", int)
    assert (await garbage.messages(20, tmp_path)).broken


def test_frames_are_right_and_wrong() -> None:
    """Texts that are masked and whole, and others that are not."""
    chance = random.Random(3)
    texts = garbage.mutated(chance)
    frames = [garbage.frame(chance, next(texts)) for _ in range(500)]
    assert 100 < sum(frame[0] == 0x81 and frame[1] >= 0x80 for frame in frames) < 450
    assert any(frame[1] & 0x7F == 127 for frame in frames)


@pytest.mark.parametrize(("prompts", "lost"), [((9, 19, 29, 39), 0), ((9, 19, 29, 20), 1), ((9, 19, 29, 60), 1)])
async def test_a_lost_history_is_seen(prompts: tuple[int, ...], lost: int) -> None:
    """A prompt that has not grown as the ones before it did has lost a turn, or has one too many."""
    left = list(prompts)

    async def service(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.send('{"type":"session_started","seq":1,"session_id":"s"}')
        while left:
            await socket.recv()
            await socket.send('{"type":"token","data":"yes "}')
            stats = {"prompt_tokens": left.pop(0), "tokens_generated": 1}
            await socket.send(msgspec.json.encode({"type": "response_complete", "stats": stats}).decode())
        await socket.wait_closed()

    async with serve(service, "127.0.0.1", 0) as server:
        seen = kills.Kills()
        talk = kills.Talk(kills.FakeEngine(), server.sockets[0].getsockname()[1], seen, 0)
        await talk.begin()
        await talk.whole()
        await talk.whole()
        await talk.end()
    assert (lost, 4) == (seen.lost, seen.histories)


def test_requests_of_garbage() -> None:
    """Each has the path, an end of its headers, and something that is wrong now and then."""
    chance = random.Random(5)
    requests = [standards._request("/health", chance) for _ in range(200)]
    assert all(b" /health" in request and b"\r\n\r\n" in request for request in requests)
    assert 20 < sum(request.startswith(b"GET ") for request in requests) < 120
    assert any(b"Content-Length: -1" in request for request in requests)


def test_the_slope_is_that_of_the_line() -> None:
    """What grows by two a second has a slope of two, whatever it is about; what goes up and down has none."""
    assert 2.0 == pytest.approx(soak.slope([(at, 5 + 2.0 * at) for at in range(10)]))
    assert 0.0 == pytest.approx(soak.slope([(at, at % 2) for at in (0.0, 1.0, 2.0, 3.0, 4.0)]))
    assert 0.0 == soak.slope([(1.0, 5.0)])


def test_a_soak_is_judged_by_its_second_half() -> None:
    """Files that were never so many before are a leak, and so is memory that grows by more than a few MiB."""

    def held(rss: float, files: int) -> frozen.Held:
        each = object.__new__(frozen.Held)
        each.rss, each.files, each.tasks = rss, files, 10.0
        return each

    steady = [(float(at), held(80.0, 50)) for at in range(20)]
    leaking = [(float(at), held(80.0 + 2 * at, 50 + 10 * at)) for at in range(20)]
    for samples, broken in ((steady, 0), (leaking, 2)):
        outcome = Outcome()
        soak._judge(outcome, soak.Users(), samples)
        assert broken == len(outcome.broken)


async def test_a_soak_tells_of_a_service_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen until then is told, and that it died; the run ends with it."""
    seen: list[frozen.Held] = []

    def held(service: tested.Tested) -> frozen.Held:
        seen.append(frozen.Held(service))
        if len(seen) == 2:
            service.process.process.kill()
            service.process.process.wait()
        return seen[-1]

    monkeypatch.setattr(soak, "Held", held)
    outcome = await soak.run(600, tmp_path)
    assert "the service ended" in str(outcome.broken)
    assert "MiB" in str(outcome.figures)


@pytest.mark.parametrize(("leaked", "broken"), [(0, 0), (5, 0), (100, 1)])
def test_a_leak_of_a_few_bytes_a_turn_is_seen(leaked: int, broken: int) -> None:
    """So many bytes a turn, at the 50 turns a second of a soak; memory comes in pages and goes up and down a little."""
    chance = random.Random(1)

    def held(at: float) -> frozen.Held:
        each = object.__new__(frozen.Held)
        noise = chance.choice((0, 0, 0, 4096, 8192))
        each.rss = (96_000_000 + (50 * leaked * at) // 4096 * 4096 + noise) / 2**20
        each.files, each.tasks = 50, 70.0
        return each

    outcome = Outcome()
    soak._judge(outcome, soak.Users(), [(float(at), held(at)) for at in range(800)])
    assert broken == len(outcome.broken)


async def test_the_floor_of_a_stop_is_measured_as_the_service_is(fake: tuple[State, int]) -> None:
    """It says an engine's words and a TTS's sound exactly, and a cancel ends both; the clients see nothing wrong."""
    state, engine_port = fake
    floor = barge_ins.BargeIns("floor", wanted=5)
    async with slow_tts() as tts:
        server = await stop_floor.serve(0, engine_port, tts.port)
        port = server.sockets[0].getsockname()[1]
        await barge_ins._barge_in_often(port, floor)
        async with asyncio.timeout(5):
            while tts.running or state.running:
                await asyncio.sleep(0.001)
        server.close()

    assert (5, 0, 0, 0) == (floor.done, floor.late, floor.wrong, floor.hung)
    assert barge_ins._times(floor, tts)
    assert state.given_up


@pytest.mark.parametrize(
    ("service", "within", "broken"),
    [
        ([1.0] * 100, 1.0, 0),
        ([9.1] * 5 + [1.0] * 1995, 1.0, 0),
        ([9.1] * 50 + [1.0] * 1950, 1.0, 1),
        ([1.0] * 100, 0.5, 1),
    ],
    ids=["as the floor", "seldom late", "often late", "slow in itself"],
)
def test_a_slow_stop_is_seen_beside_a_floor(service: list[float], within: float, broken: int) -> None:
    """What takes long beyond what a relay takes that only closes is the service's own."""
    outcome = Outcome()
    stops.tell(outcome, service, [1.0] * 98 + [2.0] * 2, within, what="engine freed")
    assert broken == len(outcome.broken)
