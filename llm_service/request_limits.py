"""What every request must keep to, on either port and whatever server runs the application: headers, host and body."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_service.errors import BodyTooLarge, FastTalkError, HeadersTooLarge, HostNotAllowed
from llm_service.events import ErrorBody, error_event

# The server reads no more than that of headers that are not whole; ones that come whole at once it does not count.
MAX_HEADER_BYTES = 32_768
MAX_HEADERS = 128
# Seconds that a refused client gets to read why, while the rest of its body comes in: a connection that is closed over
# what was not read is broken, with the answer on it.
LINGER = 1.0


class RequestLimits:
    """Wraps an ASGI application: what passes is its business, all else is answered here with 403, 413 or 431.

    `refused` hears of every request that is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        allows_host: Callable[[Sequence[str]], bool],
        max_body_bytes: int,
        refused: Callable[[ErrorBody], None],
    ) -> None:
        self._app = app
        self._allows_host = allows_host
        self._max_body_bytes = max_body_bytes
        self._refused = refused

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own where it only looks: open WebSockets would each keep one.
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is not None:
            return self._refuse(refusal, scope, receive, send)
        if scope["type"] == "http":
            return self._bounded(scope, receive, send)
        return self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, FastTalkError] | None:
        """Return why the request is refused before anything of it is read, with the HTTP status, or None."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        target = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        if len(headers) > MAX_HEADERS or target + sum(len(n) + len(v) for n, v in headers) > MAX_HEADER_BYTES:
            return 431, HeadersTooLarge(f"send at most {MAX_HEADERS} headers, and {MAX_HEADER_BYTES} bytes of them")
        if not self._allows_host([value.decode("latin-1") for name, value in headers if name == b"host"]):
            return 403, HostNotAllowed("this host name is not known here; add it to ALLOWED_HOSTS")
        lengths = [value for name, value in headers if name == b"content-length"]
        # A number of more digits than the limit has is above it; servers let only digits pass.
        if any(len(value) > 18 or (value.isdigit() and int(value) > self._max_body_bytes) for value in lengths):
            return self._too_large()
        return None

    def _too_large(self) -> tuple[int, FastTalkError]:
        return 413, BodyTooLarge(f"a body may have at most {self._max_body_bytes} bytes (MAX_BODY_BYTES)")

    async def _refuse(self, refusal: tuple[int, FastTalkError], scope: Scope, receive: Receive, send: Send) -> None:
        status, error = refusal
        body = error_event(error).error
        self._refused(body)
        answer = JSONResponse({"error": msgspec.to_builtins(body)}, status, headers={"Connection": "close"})

        async def then_wait(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                if _has_body(scope):
                    await self._drain(receive)
                message["body"] = b""
            await send(message)

        await answer(scope, receive, then_wait)

    async def _drain(self, receive: Receive) -> None:
        left = self._max_body_bytes
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application; whatever it makes of a body that is too long, the client is told that it is."""
        left = self._max_body_bytes
        started = False
        unread = _has_body(scope)

        async def count() -> Message:
            nonlocal left, unread
            message = await receive()
            unread = message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0:
                raise _BodyOverflow
            return message

        async def pass_on(message: Message) -> None:
            nonlocal started
            if left < 0 and not started:
                return
            if unread and message["type"] == "http.response.start":
                # What nobody has read by now nobody will: the server would take it in, however long it is.
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            started = True
            await send(message)

        try:
            await self._app(scope, count, pass_on)
        except Exception:
            if left >= 0 or started:
                raise
        if left < 0 and not started:
            await self._refuse(self._too_large(), scope, receive, send)


def _has_body(scope: Scope) -> bool:
    return scope["type"] == "http" and any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class _BodyOverflow(Exception):
    """Stops whoever reads the body."""
