"""The seam between engines and HTTP: opens a stream, hands out its bytes, aborts it.

Nothing of httpx or aiohttp gets past this module: what they raise becomes one of our errors by one table.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from functools import cache

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError
from httpx_aiohttp import AiohttpTransport

from llm_service.engines.refusals import Refusal, error_fields, retry_after
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
_KEEPALIVE_SECONDS = 4.0
# Admission is the business of the wrappers. aiohttp's own limit of 100 would be a hidden queue.
_MAX_CONNECTIONS = 1_000_000

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
    aiohttp.ClientError: _CUT_OFF,
    aiohttp.ClientPayloadError: _CUT_OFF,
    aiohttp.ClientResponseError: _NOT_HTTP,
    aiohttp.ClientHttpProxyError: _NO_CONNECTION,
    aiohttp.ClientConnectionError: _BROKEN,
    aiohttp.ClientConnectorError: _NO_CONNECTION,
    aiohttp.ClientConnectorDNSError: (EngineUnreachable, "has a host name that can't be found"),
    aiohttp.ClientSSLError: (EngineUnreachable, "failed at the TLS handshake"),
    aiohttp.ClientConnectorCertificateError: _UNTRUSTED,
    aiohttp.ServerFingerprintMismatch: _UNTRUSTED,
    aiohttp.ServerTimeoutError: _SILENT,
    aiohttp.ConnectionTimeoutError: _SLOW_CONNECTION,
    aiohttp.InvalidURL: _BAD_ADDRESS,
    aiohttp.NonHttpUrlClientError: _BAD_ADDRESS,
    aiohttp.RedirectClientError: _BAD_ADDRESS,
    # What aiohttp's parser raises reaches the reader of a chunked body as it is.
    HttpProcessingError: _NOT_HTTP,
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
    UnicodeError: _BAD_ADDRESS,
}
_FOREIGN = tuple(OUTCOMES)


def translated(error: Exception, engine: str) -> EngineError:
    """Return our error for one of httpx's, aiohttp's or the system's; `engine` names the engine in it."""
    cause = error.__cause__
    if isinstance(error, httpx.TransportError) and isinstance(cause, _FOREIGN):
        # httpx-aiohttp turns every broken connection into ConnectTimeout. What it was made from is exact.
        error = cause
    kind, words = next(OUTCOMES[cls] for cls in type(error).__mro__ if cls in OUTCOMES)
    return kind(f"{engine} {words}.")


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


def open_transport(*, reuse: bool = True) -> httpx.AsyncBaseTransport:
    """Return the transport every engine client uses; it reads nothing from the environment."""
    limits = httpx.Limits(max_connections=_MAX_CONNECTIONS, keepalive_expiry=_KEEPALIVE_SECONDS if reuse else 0.0)
    return AiohttpTransport(verify=_tls(), trust_env=False, limits=limits)


@cache
def _tls() -> ssl.SSLContext:
    # Reading the certificates takes 20 ms, and one reading serves every engine.
    return httpx.create_ssl_context(trust_env=False)


async def read_to_end(chunks: AsyncGenerator[bytes, None]) -> None:
    """Read what follows an answer's last word, for a moment, so that the connection can serve again."""
    with suppress(TimeoutError, FastTalkError):
        async with asyncio.timeout(0.5):
            async for _ in chunks:
                pass


class EngineClient:
    """HTTP to one engine. Times are in seconds; `read_timeout` is the longest silence, not the whole answer.

    `refuse` makes the error of an error status. Without `reuse` every request has a connection of its own.
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
        reuse: bool = True,
    ) -> None:
        self._engine = engine
        self._refuse = refuse
        self._responses: set[httpx.Response] = set()
        with translating(engine):
            self._client = httpx.AsyncClient(
                base_url=base_url,
                transport=open_transport(reuse=reuse),
                trust_env=False,
                follow_redirects=False,
                # aiohttp counts the search for the host's name under the pool's timeout.
                timeout=httpx.Timeout(read_timeout, connect=connect_timeout, pool=connect_timeout),
                headers={
                    # A compressed stream would come out of the raw reads compressed, and late.
                    "Accept-Encoding": "identity",
                    "Connection": "keep-alive" if reuse else "close",
                    "Content-Type": "application/json",
                    **(headers or {}),
                },
            )

    async def stream(self, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """POST a JSON body and yield the answer's bytes as they arrive.

        Closing the generator, or cancelling the task that waits on it, closes the connection at once, before
        the answer has begun as well as within it.

        Raises:
            FastTalkError: of `refuse`, for an error status; otherwise an EngineError.
        """
        self._check_open()
        try:
            async with self._client.stream("POST", path, content=body) as response:
                if response.status_code >= 300:
                    raise self._refuse(await _read_refusal(response))
                self._responses.add(response)
                try:
                    # The stream itself, not aiter_raw: that one counts and regroups every chunk.
                    source = response.stream.__aiter__()  # type: ignore[union-attr]
                    async with aclosing(source):  # type: ignore[type-var]
                        async for chunk in source:
                            yield chunk
                finally:
                    self._responses.discard(response)
        except _FOREIGN as error:
            raise translated(error, self._engine) from None

    async def get(self, path: str) -> bytes:
        """GET a document of at most 16 MiB within 5 s in all.

        Raises:
            FastTalkError: of `refuse`, for an error status; otherwise an EngineError.
        """
        self._check_open()
        with translating(self._engine):
            async with asyncio.timeout(QUICK_SECONDS), self._client.stream("GET", path) as response:
                if response.status_code >= 300:
                    raise self._refuse(await _read_refusal(response))
                document = await _read_at_most(response, MAX_DOCUMENT_BYTES + 1)
        if len(document) > MAX_DOCUMENT_BYTES:
            raise GenerationFailed(f"{self._engine} answered with more than {MAX_DOCUMENT_BYTES} bytes.")
        return document

    async def aclose(self) -> None:
        """Close every connection, running streams included. A second call does nothing."""
        # One by one: aiohttp's session closes their connections without waking who reads from them.
        for response in tuple(self._responses):
            with suppress(*_FOREIGN):
                await response.aclose()
        await self._client.aclose()

    def _check_open(self) -> None:
        if self._client.is_closed:
            raise EngineUnreachable(f"{self._engine} is no longer used: the service is stopping.")


async def _read_at_most(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async with aclosing(response.aiter_raw()) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            body += chunk
            if len(body) >= limit:
                break
    return bytes(body[:limit])


async def _read_refusal(response: httpx.Response) -> Refusal:
    body = b""
    # A server that refuses and then falls silent has refused all the same.
    with suppress(*_FOREIGN):
        async with asyncio.timeout(QUICK_SECONDS):
            body = await _read_at_most(response, MAX_ERROR_BYTES)
    text, kind = error_fields(body)
    return Refusal(response.status_code, text, kind, retry_after(response.headers.get("retry-after", "")))
