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

    def offer(self, *numbers: int) -> None:
        for number in numbers:
            self.hook.offer(Utterance(text=f"chunk {number}", id=number))

    def dropped(self) -> float:
        return self.registry.get_sample_value("fasttalk_speech_hook_drops_total") or 0.0

    async def until_called(self) -> None:
        async with asyncio.timeout(10):
            while self.hook._calling is not None:
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


async def test_what_it_raises_hurts_nobody() -> None:
    """The next chunk is offered all the same."""
    got: list[int] = []

    def fails(chunk: Utterance) -> None:
        got.append(chunk.id)
        raise ValueError(chunk.text)

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
