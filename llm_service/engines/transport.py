"""The seam between engines and HTTP: asks for a document, or for a stream whose bytes are handed over as they come.

Nothing of httpx, httptools or the system gets past this module: what they raise becomes one of our errors by
one table.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from time import monotonic

import httpx

from llm_service.engines.http1 import Answer, BodyCutOff, HTTPConnection, InvalidHTTP, TakeBytes
from llm_service.engines.refusals import Refusal, error_fields, retry_after
from llm_service.engines.rounds import Rounds
from llm_service.errors import (
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
)

MAX_ERROR_BYTES = 65_536
MAX_DOCUMENT_BYTES = 16_777_216
QUICK_SECONDS = 5.0

# uvicorn, and so vLLM, closes a connection after 5 s without a request. Giving it up before that keeps
# a request from meeting a connection that is just being closed.
_REST_SECONDS = 4.0
# Between two looks at the connections, or less where the longest silence is shorter: they are given up late by that.
_LOOK_EVERY = 0.5
# A connection that breaks later than this after a request was not just being closed: the request may be what broke it.
_CLOSING_SECONDS = 1.0

_Outcome = tuple[type[EngineError], str]

_NO_CONNECTION: _Outcome = (
    EngineUnreachable,
    "can't be connected to; check that it runs and that the address is right",
)
_SLOW_CONNECTION: _Outcome = (EngineUnreachable, "did not accept a connection in time")
_BROKEN: _Outcome = (EngineUnreachable, "broke the connection")
_SILENT: _Outcome = (EngineTimeout, "said nothing for too long")
_CUT_OFF: _Outcome = (GenerationFailed, "broke off in the middle of its answer")
_NOT_HTTP: _Outcome = (GenerationFailed, "sent something that is not valid HTTP")
_BAD_ADDRESS: _Outcome = (EngineUnreachable, "has an address that can't be used; check the URL in the settings")
_UNTRUSTED: _Outcome = (EngineUnreachable, "has a TLS certificate that is not trusted")

# The nearest class in an error's method resolution order decides.
OUTCOMES: Mapping[type[Exception], _Outcome] = {
    BodyCutOff: _CUT_OFF,
    InvalidHTTP: _NOT_HTTP,
    httpx.HTTPError: _CUT_OFF,
    httpx.HTTPStatusError: (EngineRejected, "refused the request"),
    httpx.TimeoutException: _SILENT,
    httpx.ConnectTimeout: _SLOW_CONNECTION,
    httpx.PoolTimeout: _SLOW_CONNECTION,
    httpx.NetworkError: _BROKEN,
    httpx.ConnectError: _NO_CONNECTION,
    httpx.ProxyError: _NO_CONNECTION,
    httpx.ProtocolError: _NOT_HTTP,
    httpx.DecodingError: _NOT_HTTP,
    httpx.UnsupportedProtocol: _BAD_ADDRESS,
    httpx.InvalidURL: _BAD_ADDRESS,
    httpx.TooManyRedirects: _BAD_ADDRESS,
    httpx.CookieConflict: _NOT_HTTP,
    httpx.StreamError: _CUT_OFF,
    TimeoutError: _SILENT,
    OSError: _BROKEN,
    ConnectionRefusedError: _NO_CONNECTION,
    socket.gaierror: (EngineUnreachable, "has a host name that can't be found"),
    ssl.SSLError: (EngineUnreachable, "failed at the TLS handshake"),
    ssl.SSLCertVerificationError: _UNTRUSTED,
    UnicodeError: _BAD_ADDRESS,
}
_FOREIGN = tuple(OUTCOMES)


def translated(error: Exception, engine: str) -> EngineError:
    """Return our error for one of HTTP's or the system's; `engine` names the engine in it."""
    if isinstance(error, httpx.ConnectError):
        # httpx has one class for whatever kept it from connecting. What it was made from is exact.
        error = next((cause for cause in _causes(error) if isinstance(cause, OSError)), error)
    kind, words = next(OUTCOMES[cls] for cls in type(error).__mro__ if cls in OUTCOMES)
    return kind(f"{engine} {words}.")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


@contextmanager
def translating(engine: str) -> Iterator[None]:
    """Let nothing but our errors out, for a block that talks HTTP."""
    try:
        yield
    except _FOREIGN as error:
        raise translated(error, engine) from None


def display_name(product: str, base_url: str) -> str:
    """Name an engine for messages, by product and address, without credentials of the URL."""
    return f"{product} at {base_url.partition('://')[2].partition('/')[0].rpartition('@')[2]}"


@cache
def tls() -> ssl.SSLContext:
    """Return what every connection to an engine trusts; nothing of it comes from the environment."""
    # Reading the certificates takes 20 ms, and one reading serves every engine.
    return httpx.create_ssl_context(trust_env=False)


class EngineClient:
    """HTTP to one engine. Times are in seconds; `read_timeout` is the longest silence, not the whole answer.

    `refuse` makes the error of an error status. There is no limit on connections, which would be a hidden queue.

    Raises:
        EngineUnreachable: the URL can't be read.
    """

    def __init__(
        self,
        base_url: str,
        *,
        engine: str,
        connect_timeout: float,
        read_timeout: float,
        refuse: Callable[[Refusal], FastTalkError],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._engine = engine
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._refuse = refuse
        self._resting: list[HTTPConnection] = []
        self._connections: set[HTTPConnection] = set()
        self._rounds = Rounds(self._look, every=min(_LOOK_EVERY, read_timeout / 4))
        self._closed = False
        with translating(engine):
            self._url = httpx.URL(base_url)
        self._path = self._url.raw_path.partition(b"?")[0].decode("ascii").rstrip("/")
        self._head = _head(self._url, headers or {})

    async def stream(
        self, path: str, body: bytes, take: TakeBytes, *, headers: Mapping[str, str] | None = None
    ) -> None:
        """POST a JSON body; `take` gets the answer's bytes as they arrive, and returns whether it needs no more.

        `headers` are of this request alone.

        Cancelling the task that waits here closes the connection before `cancel` returns, before the answer has begun
        as well as within it. Returns at the end of the answer, or as soon as `take` needs no more.

        Raises:
            FastTalkError: of `refuse`, for an error status, or of `take`; otherwise an EngineError.
        """
        await self._exchange("POST", self._path + path, body, take, "" if headers is None else _lines(headers))

    async def get(self, path: str, *, below_base: bool = True) -> bytes:
        """GET a document of at most 16 MiB within 5 s in all.

        `path` begins where the base URL ends, or at the server's root.

        Raises:
            FastTalkError: of `refuse`, for an error status; otherwise an EngineError.
        """
        return await self._document("GET", path, b"", below_base)

    async def post(self, path: str, body: bytes, *, below_base: bool = True) -> bytes:
        """POST a JSON body and return the document that answers it, with the bounds, paths and errors of `get`."""
        return await self._document("POST", path, body, below_base)

    async def aclose(self) -> None:
        """Close every connection; streams that run end with an error. A second call does nothing."""
        self._closed = True
        for connection in tuple(self._connections):
            connection.abort(self._stopping())

    async def _document(self, method: str, path: str, body: bytes, below_base: bool) -> bytes:
        document = bytearray()

        def take(part: bytes) -> bool:
            document.extend(part)
            return len(document) > MAX_DOCUMENT_BYTES

        with translating(self._engine):
            async with asyncio.timeout(QUICK_SECONDS):
                await self._exchange(method, self._path + path if below_base else path, body, take)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise GenerationFailed(f"{self._engine} answered with more than {MAX_DOCUMENT_BYTES} bytes.")
        return bytes(document)

    async def _exchange(self, method: str, path: str, body: bytes, take: TakeBytes, lines: str = "") -> None:
        if self._closed:
            raise self._stopping()
        head = f"{lines}\r\n".encode("ascii")
        request = b"%s %s %s%d\r\n%s%s" % (method.encode(), path.encode(), self._head, len(body), head, body)
        connection: HTTPConnection | None = None
        try:
            if self._resting:
                connection = self._resting.pop()
                asked = monotonic()
                try:
                    answer = await connection.ask(request, take)
                except ConnectionError:
                    if connection.answered or monotonic() - asked > _CLOSING_SECONDS:
                        raise
                    # It was being closed from the other side: most likely nobody looked at the request.
                    connection.leave()
                    connection = None
            if connection is None:
                connection = await self._connect()
                answer = await connection.ask(request, take)
            if answer.status >= 300:
                raise self._refuse(await _read_refusal(connection, answer))
        except _FOREIGN as error:
            if connection is not None and error is connection.take_error:
                raise
            raise translated(error, self._engine) from None
        finally:
            if connection is not None:
                connection.leave()

    async def _connect(self) -> HTTPConnection:
        url = self._url
        if url.scheme not in ("http", "https") or not url.host:
            raise EngineUnreachable(f"{self._engine} {_BAD_ADDRESS[1]}.")
        secure = url.scheme == "https"
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    self._new_connection,
                    url.raw_host.decode("ascii"),
                    url.port or (443 if secure else 80),
                    ssl=tls() if secure else None,
                )
        except TimeoutError:
            raise EngineUnreachable(f"{self._engine} {_SLOW_CONNECTION[1]}.") from None
        except OSError as error:
            exact = isinstance(error, (socket.gaierror, ssl.SSLError))
            raise translated(error if exact else ConnectionRefusedError(), self._engine) from None
        except (OverflowError, ValueError):  # behind OSError: a certificate's error is a ValueError, too
            raise EngineUnreachable(f"{self._engine} {_BAD_ADDRESS[1]}.") from None
        if self._closed:
            connection.abort()
            raise self._stopping()
        self._connections.add(connection)
        self._rounds.begin()
        return connection

    def _look(self) -> bool:
        for connection in tuple(self._connections):
            connection.look()
        return bool(self._connections)

    def _new_connection(self) -> HTTPConnection:
        return HTTPConnection(
            silence=self._read_timeout, rest=_REST_SECONDS, rested=self._resting.append, lost=self._forget
        )

    def _forget(self, connection: HTTPConnection) -> None:
        self._connections.discard(connection)
        with suppress(ValueError):
            self._resting.remove(connection)

    def _stopping(self) -> EngineUnreachable:
        return EngineUnreachable(f"{self._engine} is no longer used: the service is stopping.")


def _head(url: httpx.URL, headers: Mapping[str, str]) -> bytes:
    """Return what stands in every request behind its path, up to the body's length."""
    lines = {
        "Host": url.netloc.decode("ascii"),
        "Accept": "*/*",
        # A compressed stream would come compressed, and late.
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        **headers,
    }
    if url.userinfo:
        credentials = base64.b64encode(f"{url.username}:{url.password}".encode()).decode("ascii")
        lines.setdefault("Authorization", f"Basic {credentials}")
    text = _lines(lines)
    return f"HTTP/1.1\r\n{text}Content-Length: ".encode("ascii")


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


async def _read_refusal(connection: HTTPConnection, answer: Answer) -> Refusal:
    body = bytearray()

    def take(part: bytes) -> bool:
        body.extend(part)
        return len(body) >= MAX_ERROR_BYTES

    # A server that refuses and then falls silent has refused all the same.
    with suppress(*_FOREIGN):
        async with asyncio.timeout(QUICK_SECONDS):
            await connection.read(take)
    text, kind = error_fields(bytes(body[:MAX_ERROR_BYTES]))
    return Refusal(answer.status, text, kind, retry_after(answer.header("retry-after")))
