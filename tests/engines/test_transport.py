"""HTTP's failures become ours, all of them; connections serve again, and a cancel closes one."""

import asyncio
import base64
import gc
import inspect
import shutil
import socket
import ssl
import subprocess
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from llm_service.engines import http1, transport
from llm_service.engines.http1 import BodyCutOff, InvalidHTTP
from llm_service.engines.refusals import Refusal, refused
from llm_service.engines.transport import OUTCOMES, EngineClient, display_name, translated, translating
from llm_service.errors import (
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
)
from llm_service.running import loop_factory
from tests.engines.fake_server import Exchange, FakeServer, fake_server
from tests.engines.requests import SECRET

Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def tree(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


def client(
    url: str, *, connect_timeout: float = 5, read_timeout: float = 5, headers: dict[str, str] | None = None
) -> EngineClient:
    def refuse(refusal: Refusal) -> FastTalkError:
        return refused(refusal, "Engine", quote=True)

    return EngineClient(
        url,
        engine="Engine",
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        refuse=refuse,
        headers=headers,
    )


@asynccontextmanager
async def opened(
    url: str, *, connect_timeout: float = 5, read_timeout: float = 5
) -> AsyncGenerator[EngineClient, None]:
    """Give a client that is closed at the end, and has forgotten all its connections then."""
    http = client(url, connect_timeout=connect_timeout, read_timeout=read_timeout)
    yield http
    await http.aclose()
    await until(lambda: not http._connections)
    assert [] == http._resting


@asynccontextmanager
async def odd_server(serve: Connected) -> AsyncGenerator[str, None]:
    """Run a server that speaks no HTTP; yield its address, without a scheme."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


class Taken:
    """Takes a body to its end; `begun` is set once its first part is there."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.begun = asyncio.Event()

    def __call__(self, part: bytes) -> bool:
        self.parts.append(part)
        self.begun.set()
        return False


async def read(http: EngineClient, body: bytes = b"{}") -> bytes:
    taken = Taken()
    await http.stream("/x", body, taken)
    return b"".join(taken.parts)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0)


async def whole(exchange: Exchange) -> None:
    """Answer as a server does that is well."""
    await exchange.answer(b"all")


FOREIGN = sorted(
    {
        *(cls for _, cls in inspect.getmembers(httpx, inspect.isclass) if issubclass(cls, Exception)),
        *(cls for cls in tree(OSError) if cls.__module__ in ("builtins", "socket", "ssl")),
        BodyCutOff,
        InvalidHTTP,
        asyncio.TimeoutError,
        UnicodeError,
    },
    key=lambda cls: (cls.__module__, cls.__qualname__),
)


class TestTranslation:
    @pytest.mark.parametrize("cls", FOREIGN, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")
    def test_the_map_is_total(self, cls: type[Exception]) -> None:
        """Every class that HTTP, httpx and the system can raise becomes one of ours, and leaves its words behind."""
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
            (BodyCutOff(), GenerationFailed),
            (InvalidHTTP(), GenerationFailed),
            (httpx.ReadTimeout(""), EngineTimeout),
            (httpx.ConnectTimeout(""), EngineUnreachable),
            (httpx.ConnectError(""), EngineUnreachable),
            (httpx.RemoteProtocolError(""), GenerationFailed),
            (TimeoutError(), EngineTimeout),
            (ConnectionResetError(), EngineUnreachable),
            (ConnectionRefusedError(), EngineUnreachable),
            (ssl.SSLError(), EngineUnreachable),
            (UnicodeError(), EngineUnreachable),
        ],
    )
    def test_examples(self, error: Exception, kind: type[EngineError]) -> None:
        """Silence is a timeout, a lost connection is unreachable, a broken answer is a failure."""
        assert kind is type(translated(error, "Engine"))

    @pytest.mark.parametrize(
        ("cause", "words"),
        [
            (socket.gaierror(-2, SECRET), "has a host name that can't be found"),
            (ssl.SSLCertVerificationError(), "has a TLS certificate that is not trusted"),
            (ConnectionResetError(), "broke the connection"),
            (None, "can't be connected to; check that it runs and that the address is right"),
        ],
    )
    def test_what_httpx_hides(self, cause: Exception | None, words: str) -> None:
        """What kept httpx from connecting is looked for among the causes of its one class."""
        error, middle = httpx.ConnectError(""), RuntimeError()
        error.__cause__, middle.__cause__ = middle, cause
        assert translated(error, "Engine").message == f"Engine {words}."


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
        async with opened(fake.url) as http:
            with pytest.raises(EngineError) as caught:
                await read(http)
        assert kind is type(caught.value)
        if status not in (301, 401, 403):
            assert (caught.value.retry_after, "bad thing" in caught.value.message) == (7.0, True)
        assert len(fake.exchanges) == 1, "a redirect was followed"

    async def test_an_endless_error_body(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error's body is read up to a bound, and its connection is closed when it goes on behind that."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start(500)
            while not exchange.left.is_set():
                await exchange.send(b"x" * 65_536)

        fake.answer = answer
        monkeypatch.setattr(http1, "DRAIN_SECONDS", 0.01)
        async with opened(fake.url) as http, asyncio.timeout(5):
            with pytest.raises(GenerationFailed):
                await read(http)
            await fake.exchanges[0].left.wait()

    async def test_a_refusal_that_never_ends(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server that refuses and then falls silent has refused."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start(503, Retry_After="3")
            await exchange.left.wait()

        fake.answer = answer
        monkeypatch.setattr(transport, "QUICK_SECONDS", 0.05)
        async with opened(fake.url) as http:
            with pytest.raises(EngineUnreachable) as caught:
                await read(http)
        assert caught.value.retry_after == 3.0

    async def test_a_refused_connection_serves_again(self, fake: FakeServer) -> None:
        """A refusal that came as a whole leaves its connection for the next request."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"{}", 500)

        fake.answer = answer
        async with opened(fake.url) as http:
            for _ in range(3):
                with pytest.raises(GenerationFailed):
                    await read(http)
        assert fake.connections == 1

    def test_display_name_has_no_credentials(self) -> None:
        """A URL's user and password are not shown."""
        assert display_name("Ollama", "http://user:password@host:1/path") == "Ollama at host:1"


class TestRequests:
    async def test_what_is_sent(self, fake: FakeServer) -> None:
        """The path behind the base URL's, the host, the length, and nothing that would compress a stream."""
        fake.answer = whole
        async with opened(f"{fake.url}/base/?query=1") as http:
            await http.stream("/x", b'{"a": 1}', lambda _: False)
            await http.get("/y")
            await http.get("/z", below_base=False)
            await http.post("/p", b"{}")
        posted, *rest = fake.exchanges
        assert ("POST", "/base/x", b'{"a": 1}') == (posted.method, posted.path, posted.body)
        asked = [(each.method, each.path, each.body) for each in rest]
        assert [("GET", "/base/y", b""), ("GET", "/z", b""), ("POST", "/base/p", b"{}")] == asked
        assert posted.headers == {
            "host": fake.url.removeprefix("http://"),
            "accept": "*/*",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "content-length": "8",
        }

    async def test_credentials(self, fake: FakeServer) -> None:
        """Those of the URL are sent, and not in the Host header; a header that was given goes before them."""
        fake.answer = whole
        url = fake.url.replace("://", "://us%20er:p%C3%A4ss@")
        async with opened(url) as http:
            await read(http)
        given = client(url, headers={"Authorization": "Bearer key-1"})
        await read(given)
        await given.aclose()
        basic, bearer = (exchange.headers["authorization"] for exchange in fake.exchanges)
        assert ("Bearer key-1", "us er:päss") == (bearer, base64.b64decode(basic.removeprefix("Basic ")).decode())
        assert fake.exchanges[0].headers["host"] == fake.url.removeprefix("http://")

    async def test_ipv6(self) -> None:
        """An address between brackets is connected to."""
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("this machine has no ::1")
        async with fake_server("::1") as fake:
            fake.answer = whole
            async with opened(fake.url) as http:
                assert await read(http) == b"all"
            assert fake.exchanges[0].headers["host"] == fake.url.removeprefix("http://")
            assert fake.url.startswith("http://[::1]:")

    async def test_the_proxy_of_the_environment_is_not_used(
        self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An engine is spoken to directly, whatever HTTP_PROXY says."""
        fake.answer = whole
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        async with opened(fake.url) as http:
            assert await read(http) == b"all"


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

        def take(part: bytes) -> bool:
            parts.append(part)
            go_on.set()
            return False

        fake.answer = answer
        parts: list[bytes] = []
        async with opened(fake.url) as http:
            await http.stream("/x", b"{}", take)
        assert parts == [b"one", b"two"]

    async def test_connections_serve_again(self, fake: FakeServer) -> None:
        """An answer that was read to its end leaves its connection for the next."""
        fake.answer = whole
        async with opened(fake.url) as http:
            assert [await read(http), await read(http), await http.get("/x")] == [b"all"] * 3
        assert fake.connections == 1

    async def test_many_at_once(self, fake: FakeServer) -> None:
        """There is no hidden limit: 150 streams run at once, each on a connection of its own, which all serve again."""
        everybody = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) == 150:
                everybody.set()
            await everybody.wait()
            await exchange.answer(exchange.body)

        fake.answer = answer
        async with opened(fake.url) as http, asyncio.timeout(5):
            for _ in range(2):
                answers = await asyncio.gather(*(read(http, b"%d" % number) for number in range(150)))
                assert answers == [b"%d" % number for number in range(150)]
            assert (fake.connections, len(http._resting)) == (150, 150)

    async def test_more_streams_than_connections(self, fake: FakeServer) -> None:
        """Streams that follow each other closely get each its own answer, whoever's connection they come by."""

        async def answer(exchange: Exchange) -> None:
            length = len(exchange.body)
            await exchange.raw(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%b" % (length, exchange.body))

        async def several(http: EngineClient, who: int) -> None:
            for number in range(20):
                body = b"%d-%d" % (who, number)
                assert await read(http, body) == body

        fake.answer = answer
        async with opened(fake.url) as http:
            await asyncio.gather(*(several(http, who) for who in range(20)))
        assert fake.connections <= 40

    async def test_what_is_said_to_be_closed_is_not_used(self, fake: FakeServer) -> None:
        """After an answer with `Connection: close` the next request has a new connection."""

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"all", Connection="close")
            await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url) as http:
            assert [await read(http), await read(http)] == [b"all", b"all"]
        assert [exchange.connection for exchange in fake.exchanges] == [1, 2]

    @pytest.mark.parametrize("how", ["closed", "spoken on"])
    async def test_a_connection_that_is_closed_while_it_rests(self, fake: FakeServer, how: str) -> None:
        """It is forgotten, as is one on which the server says what nobody asked; the next request has a new one."""
        go_on = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(b"all")
            if exchange.connection == 1:
                await go_on.wait()
                if how == "closed":
                    exchange.close()
                else:
                    await exchange.raw(b"HTTP/1.1 408 X\r\n\r\n")

        fake.answer = answer
        async with opened(fake.url) as http:
            assert await read(http) == b"all"
            assert len(http._resting) == 1
            go_on.set()
            await until(lambda: not http._connections)
            assert http._resting == []
            assert await read(http) == b"all"
        assert [exchange.connection for exchange in fake.exchanges] == [1, 2]

    async def test_a_connection_rests_for_a_time(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then it is closed, before the server would do it."""
        fake.answer = whole
        monkeypatch.setattr(transport, "_REST_SECONDS", 0.01)
        async with opened(fake.url) as http, asyncio.timeout(5):
            assert await read(http) == b"all"
            assert len(http._resting) == 1
            await fake.exchanges[0].left.wait()
            assert http._resting == []

    async def test_a_take_that_needs_no_more(self, fake: FakeServer) -> None:
        """The stream returns before the body ends; once it has ended the connection serves again."""
        go_on = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(b"DONE")
            await go_on.wait()
            await exchange.end()

        fake.answer = answer
        async with opened(fake.url) as http, asyncio.timeout(5):
            await http.stream("/x", b"{}", lambda _: True)
            assert http._resting == []
            go_on.set()
            await until(lambda: bool(http._resting))
            await http.stream("/x", b"{}", lambda _: True)
        assert fake.connections == 1

    async def test_what_take_raises(self, fake: FakeServer) -> None:
        """It comes out as it is, and the server sees its client leave."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(b"one")
            await exchange.left.wait()

        def take(part: bytes) -> bool:
            raise error

        fake.answer = answer
        error = GenerationFailed("mine")
        async with opened(fake.url) as http, asyncio.timeout(5):
            with pytest.raises(GenerationFailed) as caught:
                await http.stream("/x", b"{}", take)
            assert caught.value is error
            await fake.exchanges[0].left.wait()


class TestSendingAgain:
    @pytest.mark.parametrize("how", ["close", "reset"])
    async def test_a_connection_that_was_just_being_closed(self, fake: FakeServer, how: str) -> None:
        """A request that meets the end of a connection that rested is sent again, on a new one."""

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) == 2:
                exchange.close() if how == "close" else exchange.reset()
            else:
                await exchange.answer(b"all")

        fake.answer = answer
        async with opened(fake.url) as http:
            assert [await read(http), await read(http)] == [b"all", b"all"]
        assert [exchange.connection for exchange in fake.exchanges] == [1, 1, 2]
        assert fake.exchanges[1].body == fake.exchanges[2].body == b"{}"

    async def test_only_once(self, fake: FakeServer) -> None:
        """It is not sent a third time, and not on another connection that rests."""
        everybody = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) > 3:
                exchange.close()
                return
            if len(fake.exchanges) == 3:
                everybody.set()
            await everybody.wait()
            await exchange.answer(b"all")

        fake.answer = answer
        async with opened(fake.url) as http:
            await asyncio.gather(read(http), read(http), read(http))
            with pytest.raises(EngineUnreachable, match="broke the connection"):
                await read(http)
        again, anew = (exchange.connection for exchange in fake.exchanges[3:])
        assert (again <= 3, anew) == (True, 4)

    async def test_not_on_a_fresh_connection(self, fake: FakeServer) -> None:
        """A new connection that breaks before it answers is an error at once."""

        async def answer(exchange: Exchange) -> None:
            exchange.close()

        fake.answer = answer
        async with opened(fake.url) as http:
            with pytest.raises(EngineUnreachable, match="broke the connection"):
                await read(http)
        assert len(fake.exchanges) == 1

    @pytest.mark.parametrize(
        "said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 X\r\nContent-Length: 5\r\n\r\n"]
    )
    async def test_not_after_the_first_byte_of_an_answer(self, fake: FakeServer, said: bytes) -> None:
        """What the server has begun to answer is not asked again."""

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) == 1:
                await exchange.answer(b"all")
            else:
                await exchange.raw(said)
                exchange.close()

        fake.answer = answer
        async with opened(fake.url) as http:
            await read(http)
            with pytest.raises((EngineUnreachable, GenerationFailed), match="broke"):
                await read(http)
        assert [exchange.connection for exchange in fake.exchanges] == [1, 1]

    async def test_not_after_silence(self, fake: FakeServer) -> None:
        """A server that says nothing on a connection that rested is a timeout, not one asked twice."""

        async def answer(exchange: Exchange) -> None:
            if len(fake.exchanges) == 1:
                await exchange.answer(b"all")
            else:
                await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url, read_timeout=0.05) as http:
            await read(http)
            with pytest.raises(EngineTimeout):
                await read(http)
        assert len(fake.exchanges) == 2


class TestCancel:
    @pytest.mark.parametrize("rested", [False, True], ids=["fresh", "rested"])
    @pytest.mark.parametrize("when", ["before the head", "in the head", "before the body", "in the body"])
    async def test_a_cancel_closes_the_connection(self, fake: FakeServer, when: str, rested: bool) -> None:
        """The engine sees its client leave at once, whatever the stream was doing."""
        said = asyncio.Event()
        taken = Taken()

        async def answer(exchange: Exchange) -> None:
            if rested and len(fake.exchanges) == 1:
                await exchange.answer(b"all")
                return
            if when == "in the head":
                await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-")
            elif when != "before the head":
                await exchange.start()
            if when == "in the body":
                await exchange.send(b"one")
                await taken.begun.wait()
            said.set()
            await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url, read_timeout=60) as http, asyncio.timeout(5):
            if rested:
                await read(http)
            reading = asyncio.ensure_future(http.stream("/x", b"{}", taken))
            await said.wait()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert http._resting == []
            await fake.exchanges[-1].left.wait()
        assert fake.connections == 1

    @pytest.mark.parametrize("loop", [asyncio.new_event_loop, loop_factory()], ids=["asyncio", "ours"])
    @pytest.mark.parametrize("when", ["before the head", "in the body"])
    def test_a_cancel_is_on_the_wire_before_it_returns(
        self, loop: Callable[[], asyncio.AbstractEventLoop] | None, when: str
    ) -> None:
        """The engine learns of it without a turn of the event loop, which others' work would hold up."""

        async def cancel() -> None:
            said, taken = asyncio.Event(), Taken()

            async def answer(exchange: Exchange) -> None:
                if when == "in the body":
                    await exchange.start()
                    await exchange.send(b"one")
                    await taken.begun.wait()
                said.set()
                await exchange.left.wait()

            async with fake_server() as fake, opened(fake.url, read_timeout=60) as http, asyncio.timeout(5):
                fake.answer = answer
                reading = asyncio.ensure_future(http.stream("/x", b"{}", taken))
                await said.wait()
                assert not fake.exchanges[0].is_left()
                reading.cancel()
                assert fake.exchanges[0].is_left()
                with pytest.raises(asyncio.CancelledError):
                    await reading

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(cancel())

    async def test_a_cancel_at_any_step(self, fake: FakeServer) -> None:
        """However many steps the loop has made, a cancel ends the stream, and no connection is left open."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(b"one")
            await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url, read_timeout=60) as http, asyncio.timeout(5):
            for steps in range(30):
                reading = asyncio.ensure_future(read(http))
                for _ in range(steps):
                    await asyncio.sleep(0)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                await until(lambda: not http._connections)
            for exchange in fake.exchanges:
                await exchange.left.wait()
        assert fake.exchanges, "none of them came so far as to ask"

    async def test_while_it_connects(self) -> None:
        """A handshake that is cancelled is over for the server, too."""
        connected, left = asyncio.Event(), asyncio.Event()

        async with odd_server(silent(connected, left)) as address, opened(f"https://{address}") as http:
            reading = asyncio.ensure_future(read(http))
            async with asyncio.timeout(5):
                await connected.wait()
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading
                await left.wait()


def silent(connected: asyncio.Event, left: asyncio.Event) -> Connected:
    """Return a server that never says anything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        try:
            await reader.read()
        except ConnectionError:
            pass
        finally:
            left.set()
            writer.close()

    return serve


class TestFailures:
    async def test_nobody_there(self, unused_tcp_port: int) -> None:
        """No server is EngineUnreachable."""
        async with opened(f"http://127.0.0.1:{unused_tcp_port}") as http:
            with pytest.raises(EngineUnreachable, match="can't be connected to"):
                await read(http)
            with pytest.raises(EngineUnreachable):
                await http.get("/x")

    @pytest.mark.parametrize(
        "url",
        [
            "http://a..b",
            "http://" + "x" * 70,
            "http://127.0.0.1:99999",
            "http://x y",
            "ftp://127.0.0.1",
            "http://",
            "x",
        ],
    )
    async def test_an_unusable_address(self, url: str) -> None:
        """A URL that is none is an error of ours, too, when it is used."""
        async with opened(url) as http:
            with pytest.raises(EngineUnreachable):
                await read(http)

    def test_no_address(self) -> None:
        """A URL that can't even be read is an error of ours at once."""
        with pytest.raises(EngineUnreachable):
            client("http://[::1")

    async def test_an_unknown_host(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that can't be found is said to be that."""

        async def getaddrinfo(*args: object, **kwargs: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        async with opened("http://nobody.invalid") as http:
            with pytest.raises(EngineUnreachable, match="host name that can't be found"):
                await read(http)

    async def test_a_connection_that_is_not_accepted(self) -> None:
        """A handshake that does not come to its end in time is EngineUnreachable, and is given up."""
        connected, left = asyncio.Event(), asyncio.Event()
        async with (
            odd_server(silent(connected, left)) as address,
            opened(f"https://{address}", connect_timeout=0.05) as http,
        ):
            with pytest.raises(EngineUnreachable, match="did not accept a connection in time"):
                await read(http)
            async with asyncio.timeout(5):
                await left.wait()

    @pytest.mark.parametrize("begun", [False, True])
    async def test_silence(self, fake: FakeServer, begun: bool) -> None:
        """No answer, and headers without a byte behind them, are EngineTimeout, and the connection is closed."""

        async def answer(exchange: Exchange) -> None:
            if begun:
                await exchange.start()
            await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url, read_timeout=0.05) as http, asyncio.timeout(5):
            with pytest.raises(EngineTimeout):
                await read(http)
            await fake.exchanges[0].left.wait()

    @pytest.mark.parametrize(
        ("how", "kind"),
        [
            ("reset at once", EngineUnreachable),
            ("close at once", EngineUnreachable),
            ("reset in the body", GenerationFailed),
            ("close in the body", GenerationFailed),
            ("bad chunk", GenerationFailed),
            ("not http", GenerationFailed),
            ("endless head", GenerationFailed),
        ],
    )
    async def test_a_broken_server(self, fake: FakeServer, how: str, kind: type[EngineError]) -> None:
        """Whatever a server breaks becomes one of our errors."""

        async def answer(exchange: Exchange) -> None:
            if how == "not http":
                await exchange.raw(b"SSH-2.0-x\r\n\r\n")
            elif how == "endless head":
                await exchange.raw(b"HTTP/1.1 200 X\r\nX: ")
                while not exchange.left.is_set():
                    await exchange.raw(b"x" * 65_536)
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
        async with opened(fake.url) as http:
            with pytest.raises(kind) as caught:
                await read(http)
        assert SECRET not in str(caught.value)

    async def test_documents(self, fake: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A document is whole, has a bound in size and in time, and its refusal is an error."""

        async def answer(exchange: Exchange) -> None:
            if exchange.path == "/silent":
                await exchange.left.wait()
            elif exchange.path == "/refused":
                await exchange.answer(b"", 500)
            else:
                await exchange.answer(exchange.body or b"x" * 100, size=7)

        fake.answer = answer
        async with opened(fake.url) as http:
            assert await http.get("/x") == b"x" * 100
            assert await http.post("/x", b'{"a": 1}') == b'{"a": 1}'
            for ask in (http.get("/refused"), http.post("/refused", b"{}")):
                with pytest.raises(GenerationFailed):
                    await ask
            with monkeypatch.context() as patch:
                patch.setattr(transport, "QUICK_SECONDS", 0.05)
                with pytest.raises(EngineTimeout):
                    await http.get("/silent")
            monkeypatch.setattr(transport, "MAX_DOCUMENT_BYTES", 50)
            with pytest.raises(GenerationFailed, match="more than 50 bytes"):
                await http.get("/x")


class TestClosing:
    async def test_after_closing(self, fake: FakeServer) -> None:
        """A closed client says so in our words; closing twice is fine, and a connection that rested is closed."""
        fake.answer = whole
        http = client(fake.url)
        await read(http)
        await http.aclose()
        await http.aclose()
        for use in (read(http), http.get("/x")):
            with pytest.raises(EngineUnreachable, match="is no longer used"):
                await use
        async with asyncio.timeout(5):
            await fake.exchanges[0].left.wait()
        assert (len(fake.exchanges), http._connections, http._resting) == (1, set(), [])

    @pytest.mark.parametrize("begun", [True, False])
    async def test_closing_the_client_ends_its_streams(self, fake: FakeServer, begun: bool) -> None:
        """A stream that runs when its client is closed ends with an error, not never."""
        taken = Taken()

        async def answer(exchange: Exchange) -> None:
            if begun:
                await exchange.start()
                await exchange.send(b"one")
            await exchange.left.wait()

        fake.answer = answer
        async with opened(fake.url, read_timeout=60) as http, asyncio.timeout(5):
            reading = asyncio.ensure_future(http.stream("/x", b"{}", taken))
            await (taken.begun if begun else fake.asked).wait()
            await http.aclose()
            with pytest.raises(EngineUnreachable, match="is no longer used"):
                await reading
            await fake.exchanges[0].left.wait()

    async def test_closing_the_client_at_any_step(self, fake: FakeServer) -> None:
        """However far a stream is, connecting as well, it ends with an error, and no connection is left open."""

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.left.wait()

        fake.answer = answer
        for steps in range(30):
            async with opened(fake.url, read_timeout=60) as http, asyncio.timeout(5):
                reading = asyncio.ensure_future(read(http))
                for _ in range(steps):
                    await asyncio.sleep(0)
                await http.aclose()
                with pytest.raises(EngineUnreachable, match="is no longer used"):
                    await reading


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1, signed by itself, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, path = folder / "key.pem", folder / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=an engine", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, *name, "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    with path.open("ab") as file:
        file.write(key.read_bytes())
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncGenerator[FakeServer, None]:
    """A server behind TLS that does what the test says."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with fake_server(tls=context) as server:
        yield server


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make clients trust that certificate."""
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(transport, "tls", lambda: context)


class TestTLS:
    async def test_an_untrusted_certificate(self, secure: FakeServer) -> None:
        """A certificate that nobody known has signed is not spoken to, and the error says why."""
        async with opened(secure.url) as http:
            with pytest.raises(EngineUnreachable, match="has a TLS certificate that is not trusted"):
                await read(http)
        assert secure.exchanges == []

    @pytest.mark.usefixtures("trusted")
    async def test_a_certificate_for_another_name(self, secure: FakeServer) -> None:
        """A certificate that is trusted counts for its own names alone."""
        async with opened(secure.url.replace("127.0.0.1", "localhost")) as http:
            with pytest.raises(EngineUnreachable, match="has a TLS certificate that is not trusted"):
                await read(http)

    @pytest.mark.usefixtures("trusted")
    async def test_streams(self, secure: FakeServer) -> None:
        """With a certificate that is trusted, answers come, large ones as well, and connections serve again."""
        large = bytes(range(256)) * 4096

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(large, size=50_000)

        secure.answer = answer
        async with opened(secure.url) as http, asyncio.timeout(5):
            assert [await read(http), await read(http)] == [large, large]
        assert secure.connections == 1

    @pytest.mark.usefixtures("trusted")
    async def test_a_cancel(self, secure: FakeServer) -> None:
        """It closes a connection with TLS at once, too."""
        taken = Taken()

        async def answer(exchange: Exchange) -> None:
            await exchange.start()
            await exchange.send(b"one")
            await exchange.left.wait()

        secure.answer = answer
        async with opened(secure.url, read_timeout=60) as http, asyncio.timeout(5):
            reading = asyncio.ensure_future(http.stream("/x", b"{}", taken))
            await taken.begun.wait()
            reading.cancel()
            assert secure.exchanges[0].is_left()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await secure.exchanges[0].left.wait()

    async def test_a_server_without_tls(self) -> None:
        """A server that speaks plain HTTP is said to have failed at the handshake."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with odd_server(serve) as address, opened(f"https://{address}") as http:
            with pytest.raises(EngineUnreachable, match="failed at the TLS handshake"):
                await read(http)


@pytest.mark.parametrize("error", [OSError("mine"), UnicodeError("mine"), TimeoutError("mine"), KeyError("mine")])
async def test_what_a_taker_raises_is_not_blamed_on_the_engine(fake: FakeServer, error: Exception) -> None:
    """It comes out as it is, whatever its class."""

    def take(_: bytes) -> bool:
        raise error

    fake.answer = whole
    async with opened(fake.url) as http:
        with pytest.raises(type(error)) as caught:
            await http.stream("/x", b"{}", take)
    assert error is caught.value


class Raising(Taken):
    """Takes a body, and finds it unreadable if it is to."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises

    def __call__(self, part: bytes) -> bool:
        super().__call__(part)
        if self.raises:
            raise GenerationFailed("unreadable")
        return False


def _ends(fake: FakeServer, how: str) -> Callable[[Exchange], Awaitable[None]]:
    """Return what answers so that an exchange ends in this way."""

    async def answer(exchange: Exchange) -> None:
        if how == "whole" or (how == "again" and len(fake.exchanges) != 2):
            await exchange.answer(b"all")
        elif how == "again":
            exchange.reset()
        elif how == "refused":
            await exchange.answer(b"no", status=500)
        else:
            await exchange.start()
            await exchange.send(b"half")
            if how == "broken":
                exchange.reset()
            else:
                await exchange.left.wait()

    return answer


def _connections() -> int:
    return sum(type(each) is http1.HTTPConnection for each in gc.get_objects())


@pytest.mark.parametrize("how", ["whole", "again", "refused", "broken", "raised", "cancelled", "silent"])
async def test_nothing_of_an_exchange_is_held(fake: FakeServer, how: str) -> None:
    """However it ends, an exchange holds nothing of who asked, nor a connection that serves no more: neither waits for
    the collector."""
    fake.answer = _ends(fake, how)
    gc.collect()
    gc.disable()
    others = _connections()
    try:
        async with opened(fake.url, read_timeout=0.1 if how == "silent" else 5) as http:
            if how == "again":
                # The next request meets a connection that is just being closed, and is sent on another.
                await read(http)
            taken = Raising(raises=how == "raised")
            asker = weakref.ref(taken)
            asked = asyncio.create_task(http.stream("/x", b"{}", taken))
            if how == "cancelled":
                await taken.begun.wait()
                asked.cancel()
            await asyncio.wait({asked})
            assert how in ("whole", "again") or asked.cancelled() or asked.exception() is not None
            del taken, asked
            await until(lambda: asker() is None)
            await until(lambda: _connections() - others == (how in ("whole", "again", "refused")))
    finally:
        gc.enable()
