"""The on_chunk hook: every chunk, in order, and no harm."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from llm_service import chunk_hook as module
from llm_service.chunk_hook import ChunkHook, OnChunk
from llm_service.speech.base import Utterance
from llm_service.speech_metrics import SpeechMetrics


class Heard:
    def __init__(self, on_chunk: OnChunk) -> None:
        self.registry = CollectorRegistry()
        self.hook = ChunkHook(on_chunk, SpeechMetrics(self.registry))

    def offer(self, *numbers: int, session: str = "one", turn: int = 1) -> None:
        for number in numbers:
            self.hook.offer(Utterance(text=f"chunk {number}", id=number, session_id=session, turn=turn))

    def dropped(self) -> float:
        return self.registry.get_sample_value("fasttalk_speech_hook_drops_total") or 0.0

    async def until_called(self) -> None:
        async with asyncio.timeout(10):
            while self.hook._calling:
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("waits", [False, True])
async def test_chunks_come_in_order(waits: bool) -> None:
    """Asynchronous or not, it is called with one chunk after the other."""
    got: list[int] = []

    async def slow(chunk: Utterance) -> None:
        await asyncio.sleep(0.001 * (3 - chunk.id))
        got.append(chunk.id)

    heard = Heard(slow if waits else lambda chunk: got.append(chunk.id))
    heard.offer(1, 2, 3)
    await heard.until_called()

    assert [1, 2, 3] == got
    assert 0 == heard.dropped()


@pytest.mark.parametrize("error", [ValueError, SystemExit])
async def test_what_it_raises_hurts_nobody(error: type[BaseException]) -> None:
    """The next chunk is offered all the same, and the service does not end by what the hook would end by."""
    got: list[int] = []

    def fails(chunk: Utterance) -> None:
        got.append(chunk.id)
        raise error(chunk.text)

    heard = Heard(fails)
    heard.offer(1, 2)
    await heard.until_called()

    assert [1, 2] == got
    assert 2 == heard.dropped()


async def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs is given up, and what waits for it is bounded."""
    monkeypatch.setattr(module, "HOOK_TIMEOUT", 0.05)
    monkeypatch.setattr(module, "MAX_OFFERED", 2)
    got: list[int] = []

    async def hangs(chunk: Utterance) -> None:
        got.append(chunk.id)
        await asyncio.Event().wait()

    heard = Heard(hangs)
    heard.offer(1, 2, 3, 4)
    await heard.until_called()

    assert [1, 2] == got
    assert 4 == heard.dropped()


async def test_it_ends_with_the_service() -> None:
    """Closing stops a call that hangs."""

    async def hangs(chunk: Utterance) -> None:
        await asyncio.Event().wait()

    heard = Heard(hangs)
    heard.offer(1)
    await asyncio.sleep(0)

    await heard.hook.aclose()

    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_a_cancel_of_its_own_is_its_failure_alone() -> None:
    """A hook that waits for what somebody else cancelled has failed at that chunk; the next is offered."""
    got: list[int] = []

    async def waits_for_the_cancelled(chunk: Utterance) -> None:
        got.append(chunk.id)
        if chunk.id == 1:
            other = asyncio.create_task(asyncio.Event().wait())
            other.cancel()
            await other

    heard = Heard(waits_for_the_cancelled)
    heard.offer(1, 2)
    await heard.until_called()
    heard.offer(3)
    await heard.until_called()

    assert [1, 2, 3] == got
    assert 1 == heard.dropped()


async def test_one_session_waits_for_no_other() -> None:
    """A call that hangs holds up the chunks of its own session alone."""
    got: list[str] = []
    whole = asyncio.Event()

    async def hangs_for_one(chunk: Utterance) -> None:
        got.append(f"{chunk.session_id} {chunk.id}")
        if chunk.session_id == "two" and chunk.id == 2:
            whole.set()
        if chunk.session_id == "one":
            await asyncio.Event().wait()

    heard = Heard(hangs_for_one)
    heard.offer(1, 2)
    heard.offer(1, 2, session="two")
    async with asyncio.timeout(10):
        await whole.wait()
    await heard.hook.aclose()

    assert ["one 1", "two 1", "two 2"] == got


async def test_what_nobody_listens_to_is_dropped() -> None:
    """Of that session, while others go on; what comes later is offered again."""
    got: list[str] = []
    go_on = asyncio.Event()

    async def waits(chunk: Utterance) -> None:
        got.append(f"{chunk.session_id} {chunk.id}")
        await go_on.wait()

    heard = Heard(waits)
    for session in ("one", "two"):
        heard.offer(1, 2, session=session)
    while len(got) < 2:
        await asyncio.sleep(0)
    heard.hook.drop("one")
    heard.hook.drop("nobody")
    heard.offer(3)
    heard.offer(4, turn=2)
    heard.hook.drop("one", turn=2)
    go_on.set()
    await heard.until_called()

    assert ["one 1", "one 3", "two 1", "two 2"] == sorted(got)
    assert 0 == heard.dropped()


async def test_closing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that refuses to be cancelled is left behind."""
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.01)
    end, ended = asyncio.Event(), asyncio.Event()

    async def stubborn(chunk: Utterance) -> None:
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    heard = Heard(stubborn)
    heard.offer(1, 2)
    await asyncio.sleep(0)

    async with asyncio.timeout(10):
        await heard.hook.aclose()
        assert not ended.is_set()
        end.set()
        await ended.wait()
        await heard.until_called()
