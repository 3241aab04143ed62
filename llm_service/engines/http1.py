"""HTTP/1.1 to an engine, as far as it stands on the token path: one connection, one exchange at a time.

A body is handed over from within the read that brought it. A task that is woken for every read would cost a
token more than all the rest of its way does (docs/benchmarks): here the task sleeps until the answer is over.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

import httptools
import msgspec

MAX_HEAD_BYTES = 65_536
# Seconds in which what follows an answer's last word must have come, for its connection to serve again.
DRAIN_SECONDS = 0.5

TakeBytes = Callable[[bytes], bool]
"""Gets a part of a body; returns whether the rest is not needed. What it raises ends the exchange."""


class InvalidHTTP(Exception):
    """The peer sent something that is not HTTP/1.1."""


class BodyCutOff(Exception):
    """The connection ended within an answer."""


class Answer(msgspec.Struct):
    """Status and headers, the names of these in lower case."""

    status: int = 0
    headers: dict[bytes, bytes] = {}

    def header(self, name: str) -> str:
        """Return a header's value, or ""."""
        return self.headers.get(name.encode("ascii"), b"").decode("latin-1")


def drop(transport: asyncio.BaseTransport) -> None:
    """End a connection before this returns; asyncio's `abort` alone leaves it open for another turn of the loop."""
    if transport.is_closing():
        return  # its file descriptor may be another's by now
    peer = transport.get_extra_info("socket")
    if peer is not None:
        # What uvloop shows of a transport's socket has no `shutdown` of its own.
        with contextlib.suppress(OSError, ValueError):
            view = socket.socket(peer.family, peer.type, peer.proto, peer.fileno())
            try:
                view.shutdown(socket.SHUT_RDWR)
            finally:
                view.detach()
    cast("asyncio.WriteTransport", transport).abort()


class _Waiting(asyncio.Future[None]):
    """What the task of an exchange waits for.

    Cancelling the task cancels this before it returns, and so the peer learns of it then. The task itself is woken a
    turn of the event loop later, behind all that others have to do in it.
    """

    def __init__(self, abort: Callable[[], None]) -> None:
        super().__init__()
        self._abort = abort

    def cancel(self, msg: Any | None = None) -> bool:
        cancelled = super().cancel(msg)
        if cancelled:
            self._abort()
        return cancelled


class HTTPConnection(asyncio.Protocol):
    """One connection: `ask`, `read` if that left a body, then `leave`; and again, once it has `rested`.

    Times are in seconds: `silence` is the longest one within an exchange, `rest` how long a connection waits
    for its next. `rested` is called when it can serve again, `lost` when it never will. Its owner calls `look` from
    time to time.
    """

    __slots__ = (
        "_answer",
        "_begun",
        "_complete",
        "_error",
        "_failed",
        "_head_bytes",
        "_heard",
        "_heard_at",
        "_keep",
        "_left",
        "_loop",
        "_lost",
        "_over",
        "_parser",
        "_partless_bytes",
        "_parts",
        "_rest",
        "_rested",
        "_sated",
        "_silence",
        "_spare",
        "_take",
        "_transport",
        "_until",
        "_waiter",
        "_wanted",
        "on_body",
        "take_error",
    )

    def __init__(
        self,
        *,
        silence: float,
        rest: float,
        rested: Callable[["HTTPConnection"], None],
        lost: Callable[["HTTPConnection"], None],
    ) -> None:
        self._silence = silence
        self._rest = rest
        self._rested = rested
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._spare: httptools.HttpResponseParser | None = None
        # What the body's parts wait in until somebody takes them. The parser calls `on_body` for each: a list's
        # own method costs a token less than one of ours.
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._waiter: asyncio.Future[None] | None = None
        self._take: TakeBytes | None = None
        # What is read only sets a flag, since it is read for every token: `look` knows the time.
        self._heard = False
        self._heard_at = self._loop.time()
        self._until: float | None = None  # when it is closed, outside of an exchange
        self._prepare()

    def _prepare(self) -> None:
        self._answer = Answer()
        self._head_bytes = 0
        self._partless_bytes = 0
        self.take_error: Exception | None = None  # what `take` raised, which is not HTTP's
        self._begun = False  # status and headers are there
        self._over = False  # the parser saw the end
        self._complete = False
        self._keep = False  # the peer keeps the connection open
        self._sated = False  # the rest of the body is not needed
        self._left = False
        self._failed = False
        self._error: Exception | None = None  # what it failed with
        self._take = None
        self._wanted: TakeBytes | None = None
        self._parts.clear()

    @property
    def answered(self) -> bool:
        """Whether any byte of the last answer has come."""
        return self._head_bytes > 0

    async def ask(self, request: bytes, take: TakeBytes) -> Answer:
        """Send a request. The body of a success goes to `take` as it comes, and is over when this returns.

        Any other answer is returned once its headers are there, its body left to `read`.

        Raises:
            ConnectionError: the connection was lost before.
            TimeoutError: nothing came for too long.
            InvalidHTTP: what came was no answer.
            BodyCutOff: the connection ended before the body did.
        """
        self._until = None
        self._prepare()
        self._wanted = take
        # Of an answer that was whole the parser takes the next.
        self._parser, self._spare = self._spare or httptools.HttpResponseParser(self), None
        self._heard_at = self._loop.time()
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._transport.write(request)
        await self._wait()
        return self._answer

    async def read(self, take: TakeBytes) -> None:
        """Hand the body over as it comes; returns when it is complete or `take` needs no more.

        Raises:
            BodyCutOff: the connection ended before the body did.
            TimeoutError: nothing came for too long.
            InvalidHTTP: what came was no body.
        """
        self._sated = any(take(part) for part in self._parts)
        self._parts.clear()
        if self._sated or self._complete:
            return
        if self._error is not None:
            raise self._error
        self._take = take
        await self._wait()

    def leave(self) -> None:
        """End the exchange: a connection whose answer is over, or soon will be, rests; another is aborted.

        Of who asked nothing is held from now on.
        """
        self._left = True
        self._wanted = None
        # What was raised holds the frames it went through, and they hold this.
        self.take_error = self._error = None
        if self._complete:
            self._retire()
        elif self._sated:
            self._until = self._loop.time() + DRAIN_SECONDS
        else:
            self.abort()

    @property
    def due(self) -> float:
        """When it is given up, by the event loop's clock, if nothing is heard of it or asked of it before."""
        return self._heard_at + self._silence if self._until is None else self._until

    def look(self) -> None:
        """Give up an exchange that is silent for too long, and a connection that has rested long enough."""
        now = self._loop.time()
        if self._heard:
            self._heard, self._heard_at = False, now
        if now > self.due:
            self._fail(TimeoutError())

    def abort(self, error: Exception | None = None) -> None:
        """Close the connection before this returns; whoever waits on it gets `error`."""
        if self._transport is not None:
            drop(self._transport)
        self._fail(error or ConnectionAbortedError())

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:  # noqa: C901 - in one: it runs for every token
        parser = self._parser
        if parser is None:
            self.abort()  # nobody asked
            return
        self._heard = True
        if not self._begun:
            self._head_bytes += len(data)
        broken = False
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            broken = True
        take = self._take
        if take is not None and self._parts:
            try:
                for part in self._parts:
                    if take(part):
                        self._take = None
                        self._sated = True
                        self._wake()
                        break
            except Exception as error:  # noqa: BLE001 - of `take`: whoever gave it gets it
                self.take_error = error
                self._fail(error)
            self._parts.clear()
            self._partless_bytes = 0
        elif self._sated:
            self._parts.clear()
        elif self._begun and not self._parts:
            # The head of a chunk, or a trailer: neither has a reason to be long.
            self._partless_bytes += len(data)
            broken = broken or self._partless_bytes > MAX_HEAD_BYTES
        if broken or self._over or not self._begun:
            self._look(broken)

    def connection_lost(self, exc: Exception | None) -> None:
        headers = self._answer.headers
        if exc is None and self._begun and b"content-length" not in headers and b"transfer-encoding" not in headers:
            # RFC 9112, 6.3: such a body ends with its connection.
            self._end()
        self._fail(BodyCutOff() if self._begun else ConnectionResetError())
        self._lost(self)

    # httptools

    def on_message_begin(self) -> None:
        if self._over:
            raise InvalidHTTP  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:  # later ones are trailers
            self._answer.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._answer.status = self._parser.get_status_code()
        if self._answer.status >= 200:
            self._begun = True
            if self._answer.status < 300 and self._wanted is not None:
                # From within this read on: a task that had to be woken first would see the first word later.
                self._take = self._wanted
            else:
                self._wake()

    def on_message_complete(self) -> None:
        if self._answer.status < 200:
            self._answer = Answer()  # an interim one: the answer is still to come
        else:
            assert self._parser is not None
            self._keep = self._parser.should_keep_alive()
            self._over = True

    # The rest

    def _look(self, broken: bool) -> None:
        """See how the answer stands after a read that was more than a part of its body."""
        if self._over:
            self._keep = self._keep and not broken
            self._end()
        elif broken or self._head_bytes > MAX_HEAD_BYTES:
            self._fail(InvalidHTTP())

    def _end(self) -> None:
        if self._complete or self._failed:
            return
        self._complete = True
        self._take = None
        self._spare, self._parser = self._parser, None
        self._wake()
        if self._left:
            self._retire()

    def _retire(self) -> None:
        """Rest, or close: only now, since the next `ask` takes away what the last one still had to read."""
        assert self._transport is not None
        if self._keep and not self._transport.is_closing():
            self._until = self._loop.time() + self._rest
            self._rested(self)
        else:
            self.close()

    def close(self) -> None:
        """Close a connection that rests."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        self._take = None
        self._parser = self._spare = None  # they hold this
        if not (self._failed or self._complete):
            self._failed, self._error = True, error
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_exception(error)
        self.close()

    async def _wait(self) -> None:
        self._waiter = _Waiting(self.abort)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
