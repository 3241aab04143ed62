"""Of `python -m benchmarks real`: the two clients, which do alike.

Both note when the request was written, and when each piece of text arrived.
"""

import asyncio
from time import perf_counter

import httptools
import msgspec
import picows

from benchmarks.clients import HTTPClient
from benchmarks.processes import BenchmarkFailed
from benchmarks.real_engines import Target, session_config
from benchmarks.real_figures import Answer


class _Reading:
    """Notes an answer as it comes. `end` gives it to whoever waits for `done`."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pieces: list[str] = []
        self._first = self._last = 0.0
        self._asked = perf_counter()

    def text(self, text: str) -> None:
        if text:
            self._last = perf_counter()
            self._first = self._first or self._last
            self._pieces.append(text)

    def end(self, tokens: int, prompt_tokens: int, cached: int | None, finish: str, engine_ms: float | None) -> None:
        text = "".join(self._pieces)
        if tokens < 2 or not text.strip() or self._last <= self._first:
            self.fail(f"the answer is too short to be measured: {tokens} tokens, {text[:100]!r}")
        elif not self.done.done():
            ttft, seconds = self._first - self._asked, self._last - self._first
            rate, ttft_ms = (tokens - 1) / seconds, ttft * 1000
            self.done.set_result(Answer(ttft_ms, rate, tokens, prompt_tokens, cached, finish, len(text), engine_ms))

    def fail(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchmarkFailed(reason))


class _Stats(msgspec.Struct):
    tokens_generated: int = 0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    finish_reason: str = ""
    load_ms: float = 0.0
    prompt_ms: float | None = None

    @property
    def engine_ms(self) -> float | None:
        """What the engine says that it took before it could write a word."""
        return None if self.prompt_ms is None else self.load_ms + self.prompt_ms


class _Event(msgspec.Struct):
    type: str
    data: str = ""
    stats: _Stats = msgspec.field(default_factory=_Stats)
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode
_encode = msgspec.json.Encoder().encode


class ThroughService(picows.WSListener):
    """Asks the service, in a new session each time, on one connection."""

    def __init__(self, target: Target, max_tokens: int) -> None:
        self._url = f"ws://127.0.0.1:{target.service_port}/ws/llm"
        self._start = _encode({"type": "start_session", "config": session_config(max_tokens)})
        self._transport: picows.WSTransport | None = None
        self._session: asyncio.Future[None] | None = None
        self._reading: _Reading | None = None

    async def prepare(self) -> None:
        """Have a new session, connecting if need be."""
        if self._transport is None:
            self._transport, _ = await picows.ws_connect(lambda: self, self._url)
        self._session = asyncio.get_running_loop().create_future()
        self._transport.send(picows.WSMsgType.TEXT, self._start)
        await self._session

    async def ask(self, prompt: str) -> Answer:
        """Return the answer."""
        assert self._transport is not None
        message = _encode({"type": "user_message", "text": prompt})
        self._reading = _Reading()
        self._transport.send(picows.WSMsgType.TEXT, message)
        return await self._reading.done

    def close(self) -> None:
        """Leave."""
        if self._transport is not None:
            self._transport.disconnect()

    def on_ws_frame(self, _transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type != picows.WSMsgType.TEXT:
            return
        event = _decode_event(frame.get_payload_as_bytes())
        reading = self._reading
        match event.type:
            case "token" if reading is not None:
                reading.text(event.data)
            case "response_complete" if reading is not None:
                stats = event.stats
                reading.end(
                    stats.tokens_generated,
                    stats.prompt_tokens,
                    stats.cached_tokens,
                    stats.finish_reason,
                    stats.engine_ms,
                )
            case "session_started" | "session_configured":
                if self._session is not None and not self._session.done():
                    self._session.set_result(None)
            case _:
                self._fail(f"the service said {event.type}: {bytes(event.error).decode()[:300]}")

    def on_ws_disconnected(self, _transport: picows.WSTransport) -> None:
        self._fail("the service closed the connection")

    def _fail(self, reason: str) -> None:
        if self._session is not None and not self._session.done():
            self._session.set_exception(BenchmarkFailed(reason))
        if self._reading is not None:
            self._reading.fail(reason)


class _Content(msgspec.Struct, frozen=True, gc=False):
    content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Content = _Content()
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details = msgspec.field(default_factory=_Details)


class _Timings(msgspec.Struct):
    prompt_ms: float | None = None


class _Part(msgspec.Struct):
    """A line of either protocol; Ollama's durations are in nanoseconds."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    message: _Content | None = None
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    load_duration: int = 0
    prompt_eval_duration: int | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode_part = msgspec.json.Decoder(_Part).decode


class Direct(HTTPClient):
    """Asks the engine over one HTTP connection that is kept; opened anew, before the clock runs, if it was closed."""

    def __init__(self, target: Target, max_tokens: int) -> None:
        super().__init__()
        self._target = target
        self._max_tokens = max_tokens
        self._reading: _Reading | None = None
        self._counts: tuple[int, int, int | None] = (0, 0, None)
        self._finish = ""
        self._engine_ms: float | None = None
        authorization = f"Authorization: Bearer {target.key}\r\n" if target.key else ""
        self._head = (
            f"POST {target.path} HTTP/1.1\r\nHost: 127.0.0.1:{target.engine_port}\r\nAccept: */*\r\n"
            f"Accept-Encoding: identity\r\nContent-Type: application/json\r\n{authorization}Content-Length: "
        )

    async def prepare(self) -> None:
        """Be connected."""
        if self._transport is None or self._transport.is_closing():
            port = self._target.engine_port
            await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", port)

    async def ask(self, prompt: str) -> Answer:
        """Return the answer."""
        if self._transport is None:
            raise BenchmarkFailed("the engine closed a connection that nothing was asked on yet")
        body = _encode(self._target.body(prompt, self._max_tokens))
        request = f"{self._head}{len(body)}\r\n\r\n".encode() + body
        self._parser = httptools.HttpResponseParser(self)
        self._rest, self._counts, self._finish, self._engine_ms = b"", (0, 0, None), "", None
        self._reading = _Reading()
        self._transport.write(request)
        return await self._reading.done

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        if self._reading is not None:
            self._reading.fail("the engine closed the connection")

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            document = line.removeprefix(b"data: ")
            if document.startswith(b"{"):
                self._take(_decode_part(document))

    def on_message_complete(self) -> None:
        assert self._reading is not None
        if self._parser.get_status_code() == 200:
            self._reading.end(*self._counts, self._finish, self._engine_ms)
        else:
            self._reading.fail(f"the engine answered with HTTP {self._parser.get_status_code()}: {self._rest[:300]!r}")

    def _take(self, part: _Part) -> None:
        assert self._reading is not None
        if bytes(part.error) not in {b"", b"null"}:
            self._reading.fail(f"the engine failed: {bytes(part.error).decode()[:300]}")
        if part.message is not None:
            self._reading.text(part.message.content or "")
        for choice in part.choices:
            self._reading.text(choice.delta.content or "")
            self._finish = choice.finish_reason or self._finish
        if part.usage is not None:
            usage = part.usage
            self._counts = usage.completion_tokens, usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens
        if part.timings is not None:
            self._engine_ms = part.timings.prompt_ms
        if part.done_reason:
            self._finish, self._counts = part.done_reason, (part.eval_count, part.prompt_eval_count, None)
            if part.prompt_eval_duration is not None:
                self._engine_ms = (part.load_duration + part.prompt_eval_duration) / 1e6
