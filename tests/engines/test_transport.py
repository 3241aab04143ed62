"""HTTP's failures become ours, all of them, and closing a stream closes its connection."""

import asyncio
import inspect
import ssl
from collections.abc import Iterator
from contextlib import aclosing

import aiohttp
import httpx
import pytest
from aiohttp import http_exceptions
from aiohttp.client_reqrep import ConnectionKey

from llm_service.engines.refusals import Refusal, refused
from llm_service.engines.transport import (
    OUTCOMES,
    EngineClient,
    display_name,
    translated,
    translating,
)
from llm_service.errors import (
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
)
from tests.engines.fake_server import Exchange, FakeServer
from tests.engines.requests import SECRET

KEY = ConnectionKey("h", 1, False, True, None, None, None)


def tree(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def client(url: str, *, connect_timeout: float = 5, read_timeout: float = 5) -> EngineClient:
    def refuse(refusal: Refusal) -> FastTalkError:
        return refused(refusal, "Engine", quote=True)

    return EngineClient(url, engine="Engine", connect_timeout=connect_timeout, read_timeout=read_timeout, refuse=refuse)


async def read(http: EngineClient) -> bytes:
    async with aclosing(http.stream("/x", b"{}")) as chunks:
        return b"".join([chunk async for chunk in chunks])


FOREIGN = sorted(
    {
        *(cls for _, cls in inspect.getmembers(httpx, inspect.isclass) if issubclass(cls, Exception)),
        *tree(aiohttp.ClientError),
        *tree(http_exceptions.HttpProcessingError),
        *(cls for cls in tree(OSError) if cls.__module__ in ("builtins", "socket", "ssl")),
        asyncio.TimeoutError,
        UnicodeError,
    },
    key=lambda cls: (cls.__module__, cls.__qualname__),
)


class TestTranslation:
    @pytest.mark.parametrize("cls", FOREIGN, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
    def test_the_map_is_total(self, cls: type[Exception]) -> None:
        """Every class httpx, aiohttp and the system can raise becomes one of ours, and leaves its words behind."""
        error = cls.__new__(cls)
        error.args = (SECRET,)
        with pytest.raises(EngineError) as caught, translating("Engine"):
            raise error
        assert caught.value.message.startswith("Engine ")
        assert SECRET not in caught.value.message
        assert caught.value.__cause__ is None

    def test_each_outcome_is_used(self) -> None:
        """No entry of the map names a class that nothing of those can be."""
        assert set() == set(OUTCOMES) - set(FOREIGN)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (aiohttp.ServerDisconnectedError(), EngineUnreachable),
            (aiohttp.ClientOSError(104, "reset"), EngineUnreachable),
            (aiohttp.SocketTimeoutError(), EngineTimeout),
            (aiohttp.ConnectionTimeoutError(), EngineUnreachable),
            (aiohttp.ClientPayloadError(), GenerationFailed),
            (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), EngineUnreachable),
            (http_exceptions.TransferEncodingError("bad"), GenerationFailed),
            (httpx.ReadTimeout(""), EngineTimeout),
            (httpx.ConnectTimeout(""), EngineUnreachable),
            (httpx.ConnectError(""), EngineUnreachable),
            (httpx.RemoteProtocolError(""), GenerationFailed),
            (TimeoutError(), EngineTimeout),
            (ConnectionResetError(), EngineUnreachable),
            (ssl.SSLError(), EngineUnreachable),
        ],
    )
    def test_examples(self, error: Exception, kind: type[EngineError]) -> None:
        """Silence is a timeout, a lost connection is unreachable, a broken answer is a failure."""
        assert kind is type(translated(error, "Engine"))

    def test_what_httpx_aiohttp_hides(self) -> None:
        """A connection that broke is not taken for one that took too long, as httpx-aiohttp has it."""
        error = httpx.ConnectTimeout("")
        error.__cause__ = aiohttp.ServerDisconnectedError()
        assert translated(error, "Engine").message == "Engine broke the connection."


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (301, EngineRejected),
            (400, EngineRejected),
            (401, EngineRejected),
            (403, EngineRejected),
            (404, EngineRejected),
            (413, EngineRejected),
            (422, EngineRejected),
            (429, EngineUnreachable),
            (500, GenerationFailed),
            (502, GenerationFailed),
            (503, EngineUnreachable),
        ],
    )
    async def test_statuses(self, fake: FakeServer, status: int, kind: type[EngineError]) -> None:
        """Each status is an error of the right kind, and says when to come back if the engine does."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b'{"error": "bad\\u0000\\nthing"}', status, Retry_After="7", Location="/elsewhere")

        fake.answer = answer
        http = client(fake.url)
        with pytest.raises(EngineError) as caught:
            await read(http)
        await http.aclose()
        assert kind is type(caught.value)
        if status not in (301, 401, 403):
            assert (caught.value.retry_after, "bad thing" in caught.value.message) == (7.0, True)
        assert len(fake.exchanges) == 1, "a redirect was followed"

    async def test_an_endless_error_body(self, fake: FakeServer) -> None:
        """An error's body is read up to a bound."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start(500)
            while not exchange.left.is_set():
                await exchange.send(b"x" * 65_536)

        fake.answer = answer
        http = client(fake.url)
        with pytest.raises(GenerationFailed):
            await read(http)
        await http.aclose()

    def test_display_name_has_no_credentials(self) -> None:
        """A URL's user and password are not shown."""
        assert display_name("Ollama", "http://user:password@host:1/path") == "Ollama at host:1"


class TestStreams:
    async def test_bytes_arrive_as_they_are_sent(self, fake: FakeServer) -> None:
        """A part is out before the next is sent, and nothing is lost between them."""
        go_on = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(b"one")
            await go_on.wait()
            await exchange.send(b"two")
            await exchange.end()

        fake.answer = answer
        http = client(fake.url)
        async with aclosing(http.stream("/x", b"{}")) as chunks:
            assert await anext(chunks) == b"one"
            go_on.set()
            assert await anext(chunks) == b"two"
            with pytest.raises(StopAsyncIteration):
                await anext(chunks)
        await http.aclose()
        assert (fake.exchanges[0].headers["accept-encoding"], fake.exchanges[0].method) == ("identity", "POST")

    async def test_connections_serve_again(self, fake: FakeServer) -> None:
        """An answer that was read to its end leaves its connection for the next."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"all")

        fake.answer = answer
        http = client(fake.url)
        assert [await read(http), await read(http)] == [b"all", b"all"]
        await http.aclose()
        assert fake.connections == 1

    async def test_no_hidden_limit(self, fake: FakeServer) -> None:
        """More streams than aiohttp's default of 100 run at once."""
        everybody = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) == 150:
                everybody.set()
            await everybody.wait()
            await exchange.answer(b"all")

        fake.answer = answer
        http = client(fake.url)
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(read(http) for _ in range(150))) == [b"all"] * 150
        await http.aclose()

    @pytest.mark.parametrize("when", ["before the headers", "before the first byte", "between two reads", "in a read"])
    async def test_closing_closes_the_connection(self, fake: FakeServer, when: str) -> None:
        """The engine sees its client leave at once, whatever the stream was doing."""

        async def answer(exchange: Exchange) -> None:
            if when != "before the headers":
                await exchange.start()
            if when in ("between two reads", "in a read"):
                await exchange.send(b"one")
            fake.asked.set()
            await exchange.left.wait()

        fake.answer = answer
        http = client(fake.url, read_timeout=60)
        chunks = http.stream("/x", b"{}")
        if when in ("between two reads", "in a read"):
            assert await anext(chunks) == b"one"
        if when != "between two reads":
            reading = asyncio.ensure_future(anext(chunks))
            await fake.asked.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await chunks.aclose()
        async with asyncio.timeout(1):
            await fake.exchanges[0].left.wait()
        await http.aclose()

    async def test_the_proxy_of_the_environment_is_not_used(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An engine is spoken to directly, whatever HTTP_PROXY says."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"all")

        fake.answer = answer
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        http = client(fake.url)
        assert await read(http) == b"all"
        await http.aclose()


class TestFailures:
    async def test_nobody_there(self, unused_tcp_port: int) -> None:
        """No server is EngineUnreachable."""
        http = client(f"http://127.0.0.1:{unused_tcp_port}")
        with pytest.raises(EngineUnreachable, match="can't be connected to"):
            await read(http)
        with pytest.raises(EngineUnreachable):
            await http.get("/x")
        await http.aclose()

    @pytest.mark.parametrize("url", ["http://a..b", "http://" + "x" * 70, "http://127.0.0.1:99999", "http://x y"])
    async def test_an_unusable_address(self, url: str) -> None:
        """A URL that is none is an error of ours, too, when it is used."""
        http = client(url)
        with pytest.raises(EngineUnreachable):
            await read(http)
        await http.aclose()

    def test_no_address(self) -> None:
        """A URL that can't even be read is an error of ours at once."""
        with pytest.raises(EngineUnreachable):
            client("http://[::1")

    async def test_silence(self, fake: FakeServer) -> None:
        """Headers without a byte behind them are EngineTimeout."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.left.wait()

        fake.answer = answer
        http = client(fake.url, read_timeout=0.05)
        with pytest.raises(EngineTimeout):
            await read(http)
        await http.aclose()

    @pytest.mark.parametrize(
        ("how", "kinds"),
        [
            ("reset at once", EngineUnreachable),
            ("close at once", EngineUnreachable),
            ("reset in the body", (EngineUnreachable, GenerationFailed)),
            ("close in the body", GenerationFailed),
            ("bad chunk", GenerationFailed),
            ("not http", GenerationFailed),
        ],
    )
    async def test_a_broken_server(self, fake: FakeServer, how: str, kinds: type[EngineError]) -> None:
        """Whatever a server breaks becomes one of our errors."""

        async def answer(exchange: Exchange) -> None:
            if how == "not http":
                await exchange.raw(b"SSH-2.0-x\r\n\r\n")
            elif "at once" not in how:
                await exchange.start()
                await exchange.send(b"some")
            if how == "bad chunk":
                await exchange.raw(b"zz\r\n" + SECRET.encode())
            if how.startswith("reset"):
                exchange.reset()
            else:
                exchange.close()

        fake.answer = answer
        http = client(fake.url)
        with pytest.raises(kinds) as caught:
            await read(http)
        await http.aclose()
        assert SECRET not in str(caught.value)

    async def test_after_closing(self, fake: FakeServer) -> None:
        """A closed client says so in our words; closing twice is fine."""
        http = client(fake.url)
        await http.aclose()
        await http.aclose()
        with pytest.raises(EngineUnreachable):
            await read(http)
        with pytest.raises(EngineUnreachable):
            await http.get("/x")

    @pytest.mark.parametrize("begun", [True, False])
    async def test_closing_the_client_ends_its_streams(self, fake: FakeServer, begun: bool) -> None:
        """A stream that runs when its client is closed ends with an error, not never."""

        async def answer(exchange: Exchange) -> None:
            if begun:
                await exchange.start()
                await exchange.send(b"one")
            await exchange.left.wait()

        fake.answer = answer
        http = client(fake.url, read_timeout=60)
        async with aclosing(http.stream("/x", b"{}")) as chunks:
            if begun:
                assert await anext(chunks) == b"one"
            reading = asyncio.ensure_future(anext(chunks))
            await fake.asked.wait()
            await http.aclose()
            async with asyncio.timeout(1):
                with pytest.raises(EngineError):
                    await reading

    async def test_documents(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A document is whole, has a bound in size and in time, and its refusal is an error."""
        import llm_service.engines.transport as module

        async def answer(exchange: Exchange) -> None:
            if exchange.path == "/silent":
                await exchange.left.wait()
            elif exchange.path == "/refused":
                await exchange.answer(b"", 500)
            else:
                await exchange.answer(b"x" * 100, size=7)

        fake.answer = answer
        http = client(fake.url)
        assert await http.get("/x") == b"x" * 100
        with pytest.raises(GenerationFailed):
            await http.get("/refused")
        monkeypatch.setattr(module, "QUICK_SECONDS", 0.05)
        with pytest.raises(EngineTimeout):
            await http.get("/silent")
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 50)
        with pytest.raises(GenerationFailed, match="more than 50 bytes"):
            await http.get("/x")
        await http.aclose()
