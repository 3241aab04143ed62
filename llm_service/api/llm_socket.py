"""The route `/ws/llm`: who may come in, and a connection for each."""

import contextlib
from time import monotonic

import msgspec
import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from llm_service import events
from llm_service.access import SUBPROTOCOL, key_from_handshake
from llm_service.admission import Admission
from llm_service.close_codes import CloseCode
from llm_service.connection import Connection
from llm_service.errors import FastTalkError, OriginNotAllowed, ShuttingDown, TooManyConnections, Unauthorized
from llm_service.service import Service
from llm_service.wire import wire_of

_log = structlog.get_logger(__name__)


async def llm_socket(socket: WebSocket) -> None:
    """Talk: docs/asyncapi.yaml has the protocol."""
    service: Service = socket.app.state.service
    key = key_from_handshake(socket.scope["headers"], socket.scope["subprotocols"])
    refusal = _refusal(service, socket, key)
    if refusal is not None:
        await _refuse(service, socket, *refusal)
        return
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    admission = Admission(service.access, service.rates, key)
    try:
        session = service.manager.admit(monotonic(), known=not admission.waits_for_key)
    except TooManyConnections as error:
        await _turn_away(service, socket, error)
        return
    live = service.employ(session, admission.key)
    connection = Connection(
        socket, wire_of(socket), live, service.resumption, service.limits, admission, service.let_in, service.metrics
    )
    service.enter(connection)
    _log.info("connection_opened", session_id=session.id, connections=len(service.connections))
    try:
        await connection.run()
    finally:
        service.leave(connection)
        _log.info("connection_closed", session_id=session.id, sent=session.counters.messages_sent)


# Starlette's route: FastAPI's own holds 4 KiB more for every open connection, for dependencies that are not used.
router = APIRouter(routes=[WebSocketRoute("/ws/llm", llm_socket)])


def _refusal(service: Service, socket: WebSocket, key: str | None) -> tuple[int, FastTalkError] | None:
    """Return why the handshake is refused, with its HTTP status, or None."""
    if service.state != "ready":
        return 503, ShuttingDown("the service is stopping; connect again", retry_after=5.0)
    if not service.access.allows_origin(socket.headers.getlist("origin")):
        return 403, OriginNotAllowed("pages of this origin may not connect; add it to ALLOWED_ORIGINS")
    if key is not None and not service.access.accepts_key(key):
        return 401, Unauthorized("this key is not known; see API_KEYS and API_KEYS_FILE")
    return None


async def _refuse(service: Service, socket: WebSocket, status: int, error: FastTalkError) -> None:
    body = events.error_event(error).error
    service.note_error(body)
    headers = {} if error.retry_after is None else {"Retry-After": f"{error.retry_after:.0f}"}
    await socket.send_denial_response(
        JSONResponse({"error": msgspec.to_builtins(body)}, status_code=status, headers=headers)
    )


async def _turn_away(service: Service, socket: WebSocket, error: FastTalkError) -> None:
    """Tell a client beyond the limit so, in a frame: FastTalk 1.x's clients read their answer there."""
    event = events.error_event(error)
    event.seq = 1
    service.note_error(event.error)
    with contextlib.suppress(WebSocketDisconnect):
        await socket.send({"type": "websocket.send", "text": events.encode(event).decode()})
        await socket.close(CloseCode.CONNECTION_LIMIT, "connection limit")
