"""Events on their way to the client."""

import asyncio
import json

import pytest

from llm_service.events import Cancelled, Queued, Token
from llm_service.outbox import Outbox


class Client:
    """Takes frames, or does not while `taking` is cleared."""

    def __init__(self) -> None:
        self.frames: list[dict[str, object]] = []
        self.closed: tuple[int, str] | None = None
        self.taking = asyncio.Event()
        self.taking.set()

    async def send(self, text: str) -> None:
        await self.taking.wait()
        self.frames.append(json.loads(text))

    async def close(self, code: int, reason: str) -> None:
        await self.taking.wait()
        self.closed = (code, reason)

    def outbox(self, max_bytes: int = 65_536) -> Outbox:
        return Outbox(self.send, self.close, max_bytes=max_bytes)


async def test_events_are_written_in_order_and_numbered_from_1() -> None:
    """What is put comes out in the same order, with seq 1, 2, 3."""
    client = Client()
    outbox = client.outbox()
    writer = asyncio.create_task(outbox.run())
    for event in (Queued(position=1), Queued(position=2), Cancelled(success=False)):
        outbox.put(event)
    outbox.close(1000, "bye")
    await writer
    assert [("queued", 1), ("queued", 2), ("cancelled", 3)] == [
        (frame["type"], frame["seq"]) for frame in client.frames
    ]
    assert (1000, "bye") == client.closed
    assert 3 == outbox.sent


async def test_tokens_that_wait_become_one() -> None:
    """Tokens put while the client takes nothing are merged: the text is exact, the events fewer."""
    client = Client()
    client.taking.clear()
    outbox = client.outbox()
    writer = asyncio.create_task(outbox.run())
    words = [f"word{number} " for number in range(100)]
    outbox.put(Token(data=words[0]))
    await asyncio.sleep(0)
    for word in words[1:50]:
        outbox.put(Token(data=word))
    outbox.put(Queued(position=1))
    for word in words[50:]:
        outbox.put(Token(data=word))
    client.taking.set()
    outbox.close(1000, "")
    await writer
    assert ["token", "token", "queued", "token"] == [frame["type"] for frame in client.frames]
    assert "".join(words) == "".join(str(frame["data"]) for frame in client.frames if frame["type"] == "token")
    assert [1, 2, 3, 4] == [frame["seq"] for frame in client.frames]


async def test_a_client_that_keeps_up_gets_each_token() -> None:
    """Tokens are not held back in order to merge them."""
    client = Client()
    outbox = client.outbox()
    writer = asyncio.create_task(outbox.run())
    for number, word in enumerate("abc", start=1):
        outbox.put(Token(data=word))
        while len(client.frames) < number:
            await asyncio.sleep(0)
    outbox.close(1000, "")
    await writer
    assert ["a", "b", "c"] == [frame["data"] for frame in client.frames]


async def test_what_waits_is_bounded() -> None:
    """Past the bound the outbox is overfull and takes nothing more."""
    outbox = Client().outbox(max_bytes=65_536)
    overfull = []
    for size in (60_000, 6_000):
        outbox.put(Token(data="x" * size))
        overfull.append(outbox.overfull)
    assert [False, True] == overfull
    before = repr(outbox)
    outbox.put(Token(data="x"))
    assert before == repr(outbox)


async def test_a_client_that_keeps_up_never_overfills() -> None:
    """The count of what waits goes back to nothing: any amount passes through a small bound."""
    client = Client()
    outbox = client.outbox(max_bytes=1024)
    writer = asyncio.create_task(outbox.run())
    for _ in range(200):
        for _ in range(5):
            outbox.put(Token(data="x" * 100))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    outbox.close(1000, "")
    await writer
    assert not outbox.overfull
    assert "<Outbox: 0 events, 0 bytes," in repr(outbox)
    assert 100_000 == sum(len(str(frame["data"])) for frame in client.frames)


async def test_a_stall_is_measured() -> None:
    """Only while something is being written and not taken does the client stall."""
    client = Client()
    outbox = client.outbox()
    writer = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    assert 0.0 == outbox.stalled_seconds(1e12)
    client.taking.clear()
    outbox.put(Token(data="x"))
    await asyncio.sleep(0)
    assert outbox.stalled_seconds(1e12) > 0
    client.taking.set()
    outbox.close(1000, "")
    await writer
    assert 0.0 == outbox.stalled_seconds(0)


async def test_cut_forgets_what_waits() -> None:
    """A client that is given up gets the closing frame and nothing before it."""
    client = Client()
    outbox = client.outbox()
    outbox.put(Token(data="x"))
    outbox.cut(3008, "slow client")
    await outbox.run()
    assert [] == client.frames
    assert (3008, "slow client") == client.closed


async def test_nothing_follows_the_close() -> None:
    """What is put after close is dropped, and only the first close counts."""
    client = Client()
    outbox = client.outbox()
    outbox.put(Token(data="x"))
    outbox.close(1000, "first")
    outbox.close(3001, "second")
    outbox.put(Token(data="y"))
    await outbox.run()
    assert ["x"] == [frame["data"] for frame in client.frames]
    assert (1000, "first") == client.closed


async def test_the_writer_can_be_cancelled() -> None:
    """Cancelling the writer while it waits ends it at once."""
    outbox = Client().outbox()
    writer = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
