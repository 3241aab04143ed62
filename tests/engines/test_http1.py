"""One connection: what it makes of bytes, when it serves again, and when it gives up. Clock and peer are the test's."""

import asyncio

import pytest

from llm_service.engines.http1 import DRAIN_SECONDS, MAX_HEAD_BYTES, BodyCutOff, HTTPConnection, InvalidHTTP, TakeBytes

SILENCE = 60.0
REST = 4.0
REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Clock:
    """What a connection needs of an event loop, with a time that stands still unless the test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now


class Peer(asyncio.Transport):
    """A connection's other side, in the test's hands; `told` is what the connection said of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.sent = b""
        self.closed = False
        self.told: list[str] = []
        self.connection = HTTPConnection(
            silence=SILENCE,
            rest=REST,
            rested=lambda _: self.told.append("rested"),
            lost=lambda _: self.told.append("lost"),
        )
        self.connection._loop = self.clock  # type: ignore[assignment]
        self.connection.connection_made(self)

    def advance(self, seconds: float) -> None:
        """Let time pass, with whoever owns the connection looking after it now and then."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + DRAIN_SECONDS / 20, end)
            self.connection.look()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        if not self.closed:
            self.close_it()

    def close_it(self, error: Exception | None = None) -> None:
        self.closed = True
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, error)

    def say(self, data: bytes) -> None:
        if not self.closed:
            self.connection.data_received(data)


class Exchange:
    """One exchange in a task of its own, which reads as the engines do."""

    def __init__(self, peer: Peer, take: TakeBytes | None = None) -> None:
        self.connection = peer.connection
        self.parts: list[bytes] = []
        self.take = take or self.keep
        self.task = asyncio.ensure_future(self.run())

    def keep(self, part: bytes) -> bool:
        self.parts.append(part)
        return False

    async def run(self) -> tuple[int, bytes]:
        try:
            answer = await self.connection.ask(REQUEST, self.take)
            if answer.status >= 300:
                await self.connection.read(self.take)
        finally:
            self.connection.leave()
        return answer.status, b"".join(self.parts)


async def settled() -> None:
    """Let everything run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def asked(peer: Peer, take: TakeBytes | None = None) -> Exchange:
    """Return an exchange whose request is out."""
    exchange = Exchange(peer, take)
    await settled()
    assert peer.sent.endswith(REQUEST)
    return exchange


@pytest.fixture
async def peer() -> Peer:
    """A new connection."""
    return Peer()


class TestAnswers:
    ANSWERS = (
        # What is sent, whether the connection ends then, status and body, and whether the connection rests.
        (LENGTH, False, (200, b"hello"), True),
        (CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n", False, (200, b"hello"), True),
        (CHUNKED + b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\nRetry-After: 9\r\n\r\n", False, (200, b"hello"), True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello", False, (200, b"hello"), False),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True, (200, b"hello"), False),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", True, (200, b"hello"), False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", False, (200, b"hello"), False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH, False, (200, b"hello"), True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nContent-Length: 9\r\n\r\n" + LENGTH, False, (200, b"hello"), True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, (204, b""), True),
        (b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\nno", False, (503, b"no"), True),
    )

    @pytest.mark.parametrize(("data", "ends", "answer", "rests"), ANSWERS)
    @pytest.mark.parametrize("woken", [True, False], ids=["woken between", "not woken between"])
    async def test_an_answer_split_anywhere(
        self, data: bytes, ends: bool, answer: tuple[int, bytes], rests: bool, woken: bool
    ) -> None:
        """Wherever the reads divide it, whoever runs between them, an answer is the same, and so is what follows."""
        splits = [[data[:cut], data[cut:]] for cut in range(1, len(data))]
        for reads in ([data], *splits, [data[at : at + 1] for at in range(len(data))]):
            peer = Peer()
            exchange = await asked(peer)
            for read in reads:
                peer.say(read)
                if woken:
                    await settled()
            if ends:
                peer.close_it()
            assert answer == await exchange.task
            await settled()
            assert (["rested"] if rests else ["lost"]) == peer.told
            if rests:
                assert REST == peer.connection.due

    async def test_bytes_are_handed_over_within_the_read(self, peer: Peer) -> None:
        """No task runs between a read and whoever takes what it brought."""
        exchange = await asked(peer)
        peer.say(CHUNKED)
        await settled()
        peer.say(b"1\r\na\r\n")
        assert [b"a"] == exchange.parts
        peer.say(b"1\r\nb\r\n1\r\nc\r\n")
        assert [b"a", b"b", b"c"] == exchange.parts
        peer.say(b"0\r\n\r\n")
        assert (200, b"abc") == await exchange.task

    async def test_headers(self, peer: Peer) -> None:
        """Names are found in any case; those of an interim answer and of a trailer are not the answer's."""
        asking = asyncio.ensure_future(peer.connection.ask(REQUEST, lambda _: False))
        await settled()
        answered = [peer.connection.answered]
        peer.say(b"HTTP/1.1 103 X\r\nEarly: 1\r\n\r\n" + CHUNKED.replace(b"OK\r\n", b"OK\r\nReTry-After: 7\r\n"))
        peer.say(b"0\r\nLate: 1\r\n\r\n")
        answer = await asking
        answered.append(peer.connection.answered)
        assert [False, True] == answered
        assert ("7", "", "") == tuple(answer.header(name) for name in ("retry-after", "early", "late"))

    async def test_one_exchange_after_the_other(self, peer: Peer) -> None:
        """Nothing of an answer reaches the next one's reader."""
        for number in range(3):
            exchange = await asked(peer)
            body = b"%d" % number
            peer.say(LENGTH.replace(b"hello", body * 5) if number % 2 else CHUNKED + b"1\r\n" + body + b"\r\n0\r\n\r\n")
            assert (200, body * (5 if number % 2 else 1)) == await exchange.task
        assert ["rested"] * 3 == peer.told
        assert REQUEST * 3 == peer.sent


class TestServingAgain:
    async def test_not_before_it_was_left(self, peer: Peer) -> None:
        """A connection whose answer came as a whole is not for others until its own reader has it."""
        parts: list[bytes] = []

        def take(part: bytes) -> bool:
            parts.append(part)
            return False

        asking = asyncio.ensure_future(peer.connection.ask(REQUEST, take))
        await settled()
        peer.say(LENGTH.replace(b"200 OK", b"500 No"))
        await asking
        assert ([], []) == (peer.told, parts)
        await peer.connection.read(take)
        assert ([], [b"hello"]) == (peer.told, parts)
        peer.connection.leave()
        assert ["rested"] == peer.told

    @pytest.mark.parametrize("whole", [True, False])
    async def test_the_last_word(self, peer: Peer, whole: bool) -> None:
        """Who needs no more is let go at once, and gets no more; the end may follow, and the connection rests."""
        parts: list[bytes] = []

        def take(part: bytes) -> bool:
            parts.append(part)
            return part == b"DONE"

        exchange = await asked(peer, take)
        peer.say(CHUNKED + b"2\r\nhm\r\n")
        await settled()
        peer.say(b"4\r\nDONE\r\n4\r\nmore\r\n")
        if whole:
            peer.say(b"0\r\n\r\n")
            assert [] == peer.told, "its reader has not left it yet"
        await exchange.task
        if not whole:
            assert [] == peer.told
            peer.advance(DRAIN_SECONDS * 0.9)
            peer.say(b"4\r\nmore\r\n0\r\n\r\n")
        assert (["rested"], [b"hm", b"DONE"]) == (peer.told, parts)
        peer.advance(REST * 0.9)
        assert not peer.closed

    async def test_the_last_word_in_the_first_read(self, peer: Peer) -> None:
        """An answer that is over in one read rests as long as any other."""
        exchange = await asked(peer, lambda part: True)
        peer.say(CHUNKED + b"4\r\nDONE\r\n0\r\n\r\n")
        await exchange.task
        peer.advance(REST * 0.9)
        assert (["rested"], False) == (peer.told, peer.closed)

    @pytest.mark.parametrize("early", [True, False])
    async def test_an_end_that_does_not_come(self, peer: Peer, early: bool) -> None:
        """The last word without the end of its body: the connection is closed, soon, and never rests."""
        exchange = await asked(peer, lambda part: True)
        peer.say(CHUNKED)
        if not early:
            await settled()
        peer.say(b"4\r\nDONE\r\n")
        assert (200, b"") == await exchange.task
        peer.advance(DRAIN_SECONDS * 0.9)
        peer.say(b"4\r\nmore\r\n")
        assert not peer.closed
        peer.advance(DRAIN_SECONDS * 0.2)
        await settled()
        assert ["lost"] == peer.told

    async def test_the_last_word_before_a_break(self, peer: Peer) -> None:
        """Who got the last word misses nothing when the connection breaks behind it, even before it was read."""
        exchange = await asked(peer, lambda part: True)
        peer.say(CHUNKED + b"4\r\nDONE\r\n")
        peer.closed = True
        peer.connection.connection_lost(ConnectionResetError())
        assert (200, b"") == await exchange.task
        await settled()
        peer.advance(DRAIN_SECONDS)
        assert ["lost"] == peer.told

    async def test_a_rest_has_an_end(self, peer: Peer) -> None:
        """A connection that nobody needs is closed after its time, and not while it is at work."""
        for _ in range(2):
            exchange = await asked(peer)
            peer.advance(REST * 2)
            peer.say(LENGTH)
            await exchange.task
            peer.advance(REST * 0.9)
            assert not peer.closed
        peer.advance(REST * 0.2)
        await settled()
        assert ["rested", "rested", "lost"] == peer.told

    async def test_bytes_that_nobody_asked_for(self, peer: Peer) -> None:
        """They close a connection that rests."""
        exchange = await asked(peer)
        peer.say(LENGTH)
        await exchange.task
        peer.say(b"H")
        assert peer.closed
        await settled()
        assert ["rested", "lost"] == peer.told
        with pytest.raises(ConnectionResetError):
            await peer.connection.ask(REQUEST, lambda _: False)

    @pytest.mark.parametrize("more", [b"H", b"\r\nHTTP/1.1 200", LENGTH, b"junk"])
    async def test_more_than_was_asked_for(self, peer: Peer, more: bytes) -> None:
        """What stands behind an answer in the same read is nobody's: the answer is whole, the connection is closed."""
        exchange = await asked(peer)
        peer.say(LENGTH + more)
        assert (200, b"hello") == await exchange.task
        await settled()
        assert ["lost"] == peer.told

    async def test_the_peer_closes_it_while_it_rests(self, peer: Peer) -> None:
        """It is told."""
        exchange = await asked(peer)
        peer.say(LENGTH)
        await exchange.task
        peer.close_it()
        await settled()
        assert ["rested", "lost"] == peer.told

    @pytest.mark.parametrize("said", [b"", b"H"])
    async def test_whether_anything_was_answered(self, peer: Peer, said: bytes) -> None:
        """After a loss it is known whether a byte had come, of this answer and not of the last."""
        exchange = await asked(peer)
        peer.say(LENGTH)
        await exchange.task
        exchange = await asked(peer)
        if said:
            peer.say(said)
        peer.close_it()
        with pytest.raises(ConnectionResetError):
            await exchange.task
        assert peer.connection.answered == bool(said)


class TestFailures:
    @pytest.mark.parametrize(
        ("data", "ends", "error"),
        [
            (b"SSH-2.0-x\r\n\r\n", False, InvalidHTTP),
            (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", False, InvalidHTTP),
            (b"HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False, InvalidHTTP),
            (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, False, InvalidHTTP),
            (b"HTTP/1.1 100 X\r\n\r\n" * (MAX_HEAD_BYTES // 18 + 1), False, InvalidHTTP),
            (CHUNKED + b"5\r\nhello\r\nzz\r\n", False, InvalidHTTP),
            (b"", True, ConnectionResetError),
            (b"HTTP/1.1 200 OK\r\nContent-", True, ConnectionResetError),
            (b"HTTP/1.1 100 Continue\r\n\r\n", True, ConnectionResetError),
            (LENGTH[:-1], True, BodyCutOff),
            (CHUNKED + b"5\r\nhello\r\n", True, BodyCutOff),
        ],
    )
    @pytest.mark.parametrize("woken", [True, False], ids=["read by read", "at once"])
    async def test_what_is_no_answer(
        self, peer: Peer, data: bytes, ends: bool, error: type[Exception], woken: bool
    ) -> None:
        """Rubbish, too large a head and a connection that ends too early are errors; it serves nobody again."""
        exchange = await asked(peer)
        half = len(data) // 2
        for read in (data[:half], data[half:]) if woken else (data,):
            if read:
                peer.say(read)
                await settled() if woken else None
        if ends:
            peer.close_it()
        with pytest.raises(error):
            await exchange.task
        await settled()
        assert ["lost"] == peer.told

    async def test_a_reset_within_a_body_without_a_length(self, peer: Peer) -> None:
        """Such a body ends with an orderly end alone."""
        exchange = await asked(peer)
        peer.say(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await settled()
        peer.close_it(ConnectionResetError())
        with pytest.raises(BodyCutOff):
            await exchange.task

    @pytest.mark.parametrize("early", [True, False])
    async def test_what_the_taker_raises(self, peer: Peer, early: bool) -> None:
        """It comes out as it is, and ends the exchange: nothing more is taken, and the connection is closed."""
        taken: list[bytes] = []

        def take(part: bytes) -> bool:
            taken.append(part)
            raise error

        error = KeyError("mine")
        exchange = await asked(peer, take)
        peer.say(CHUNKED)
        if not early:
            await settled()
        peer.say(b"5\r\nhello\r\n5\r\nthere\r\n")
        with pytest.raises(KeyError) as caught:
            await exchange.task
        assert caught.value is error
        await settled()
        assert (["lost"], [b"hello"]) == (peer.told, taken)

    async def test_what_the_taker_raises_of_a_whole_answer(self, peer: Peer) -> None:
        """It comes out, too, when the answer's end came with it."""

        def take(part: bytes) -> bool:
            raise error

        error = KeyError("mine")
        exchange = await asked(peer, take)
        peer.say(LENGTH)
        with pytest.raises(KeyError) as caught:
            await exchange.task
        assert caught.value is error

    @pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"5\r\nhello\r\n"])
    async def test_silence(self, peer: Peer, said: bytes) -> None:
        """Nothing for too long is a timeout, wherever the answer stands, counted from its last byte."""
        exchange = await asked(peer)
        peer.advance(SILENCE * 0.7)
        if said:
            peer.say(said)
            await settled()
            peer.advance(SILENCE * 0.7)
        peer.advance(SILENCE * 0.2)
        await settled()
        assert not exchange.task.done()
        peer.advance(SILENCE * 0.2)
        with pytest.raises(TimeoutError):
            await exchange.task
        await settled()
        assert ["lost"] == peer.told

    async def test_an_answer_slower_than_the_longest_silence(self, peer: Peer) -> None:
        """A stream may take many times the silence."""
        exchange = await asked(peer)
        peer.say(CHUNKED)
        for _ in range(100):
            peer.advance(SILENCE * 0.1)
            peer.say(b"1\r\nx\r\n")
            await settled()
        peer.say(b"0\r\n\r\n")
        assert (200, b"x" * 100) == await exchange.task

    @pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", CHUNKED, CHUNKED + b"5\r\nhello\r\n"])
    async def test_a_cancel(self, peer: Peer, said: bytes) -> None:
        """Whatever it waits for, a task that is cancelled has closed its connection when it ends."""
        exchange = await asked(peer)
        if said:
            peer.say(said)
            await settled()
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task
        assert peer.closed
        await settled()
        assert ["lost"] == peer.told

    @pytest.mark.parametrize("said", [b"", CHUNKED])
    async def test_an_abort(self, peer: Peer, said: bytes) -> None:
        """Who waits on a connection that is aborted gets the error that was named, and no more."""
        error = KeyError("mine")
        exchange = await asked(peer)
        if said:
            peer.say(said)
            await settled()
        peer.connection.abort(error)
        peer.connection.abort()
        with pytest.raises(KeyError) as caught:
            await exchange.task
        assert caught.value is error
        await settled()
        assert ["lost"] == peer.told
