"""Runs the two applications under uvicorn, with the limits and the drain that it lacks by itself."""

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from types import FrameType
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp

from llm_service import log
from llm_service.config import Settings
from llm_service.errors import ConfigurationError
from llm_service.monitoring import create_monitoring_app
from llm_service.protocols import DeadlineH11Protocol, WireWebSocketProtocol
from llm_service.request_limits import MAX_HEADER_BYTES
from llm_service.server import create_app_for
from llm_service.service import Service

BACKLOG = 2048
# Seconds that closing connections get after the drain.
SHUTDOWN_GRACE = 2
# Seconds for the last word to those whose response is cut.
GOODBYE_SECONDS = 1.0
# How old the date in answers' headers may be.
DATE_SECONDS = 1.0

_log = structlog.get_logger(__name__)


def bind(host: str, port: int, *, setting: str) -> socket.socket:
    """Return a listening address, so that one that is taken is known before anything else is started.

    Raises:
        ConfigurationError: the address cannot be had; names the `setting` that chose the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with contextlib.ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.setblocking(False)
            on_failure.pop_all()
    except OSError as error:
        unknown = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
        wrong = f"{setting.replace('PORT', 'HOST')}={host}" if unknown else f"{setting}={port}"
        advice = "name an address of this machine" if unknown else "stop what uses the port or choose another"
        raise ConfigurationError(f"{wrong}: cannot listen on {host}:{port} ({error.strerror}); {advice}") from None
    return listener


class QuietServer(uvicorn.Server):
    """uvicorn's server without its signal handlers, which end the process before the engine is closed, and its haste.

    uvicorn looks ten times a second whether it is to exit: here it is told, and wakes once a second for the date.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        self._loop = asyncio.get_running_loop()
        self._exit = asyncio.Event()
        self._exiting = False
        super().__init__(config)

    @property
    def should_exit(self) -> bool:
        """Whether it is to exit, or does; set it from anywhere."""
        return self._exiting

    @should_exit.setter
    def should_exit(self, exiting: bool) -> None:
        self._exiting = exiting
        if exiting:
            self._loop.call_soon_threadsafe(self._exit.set)

    async def main_loop(self) -> None:
        # To uvicorn 0 is a tick at which the date is renewed.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_SECONDS):
                    await self._exit.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class DrainingServer(QuietServer):
    """A server that lets running responses finish before it exits; a second signal cuts them."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._cut = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._cut.set)
        else:
            self._loop.call_soon_threadsafe(self._service.drain)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The listener stays open meanwhile: those who knock are told 503 and when to come again.
        self._service.drain()
        await self._all_gone(self._service.settings.drain_timeout)
        cut = len(self._service.connections)
        self._service.cut()
        await self._all_gone(GOODBYE_SECONDS)
        _log.info("drained", connections_cut=cut)
        await super().shutdown(sockets)

    async def _all_gone(self, seconds: float) -> None:
        """Wait until no connection is left, the time is over, or a second signal says not to wait."""
        ends = {asyncio.create_task(self._service.empty.wait()), asyncio.create_task(self._cut.wait())}
        _, waiting = await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


def main_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration for the main port."""

    return uvicorn.Config(
        app,
        http=_http(settings),
        ws=WireWebSocketProtocol,
        ws_max_size=settings.max_message_bytes,
        ws_ping_interval=settings.ping_interval,
        ws_ping_timeout=settings.ping_timeout,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=SHUTDOWN_GRACE,
        **_common(),
    )


def monitoring_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration for the monitoring port."""

    return uvicorn.Config(app, http=_http(settings), ws="none", timeout_graceful_shutdown=1, **_common())


def _http(settings: Settings) -> type[DeadlineH11Protocol]:
    class Http(DeadlineH11Protocol):
        header_timeout = settings.header_timeout
        send_timeout = settings.send_timeout

    return Http


def _common() -> dict[str, Any]:
    return {
        # The service is entered around the server, so that a failing start is one clear line and not a
        # traceback out of the lifespan.
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "backlog": BACKLOG,
        "proxy_headers": False,
    }


@contextlib.contextmanager
def _signals(server: uvicorn.Server) -> Generator[None, None, None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.asynccontextmanager
async def _monitored(service: Service, listener: socket.socket | None) -> AsyncGenerator[None, None]:
    """Serve the monitoring port meanwhile, from before the engine is open until after it is closed."""
    if listener is None:
        yield
        return
    server = QuietServer(monitoring_config(create_monitoring_app(service), service.settings))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def serve(
    service: Service, *, main: socket.socket, monitoring: socket.socket | None, listening: Callable[[], None]
) -> None:
    """Serve both ports until a signal; returns after the drain.

    `monitoring` is None where another process serves that port. `listening` is called when the start is over.

    Raises:
        StartupError: the service could not be started.
    """
    async with _monitored(service, monitoring), service:
        server = DrainingServer(main_config(create_app_for(service), service.settings), service)
        with _signals(server), service.collector.in_charge(), log.gathering():
            _log.info(
                "listening",
                address="{}:{}".format(*main.getsockname()[:2]),
                monitoring=None if monitoring is None else "{}:{}".format(*monitoring.getsockname()[:2]),
            )
            listening()
            await server.serve(sockets=[main])
