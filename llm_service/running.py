"""Runs the service as one process, or as several that share its port."""

import asyncio
import multiprocessing
import multiprocessing.connection
import signal
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

import structlog

from llm_service import log
from llm_service.config import Settings
from llm_service.service import Service
from llm_service.serving import bind, serve

# A worker that lived shorter than this, in seconds, did not start: starting it again for ever would hide why.
STARTUP_SECONDS = 10.0
MAX_FAILED_STARTS = 3

_log = structlog.get_logger(__name__)


def configure_log(settings: Settings, *, worker: int = 0) -> None:
    """Set up the log of this process as the settings say; `worker` counts from 1 where there are several."""
    log.configure(
        settings.log_level, settings.log_format, settings.log_path, log_prompts=settings.log_prompts, worker=worker
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's, which halves the cost of a token, or None where there is no uvloop."""
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def run(settings: Settings) -> int:
    """Run until a signal; returns the exit status.

    Raises:
        StartupError: the service could not be started.
    """
    configure_log(settings)
    main = bind(settings.llm_host, settings.llm_port, setting="LLM_PORT")
    monitoring = bind(settings.llm_monitoring_host, settings.llm_monitoring_port, setting="LLM_MONITORING_PORT")
    with main, monitoring:
        if settings.num_workers > 1:
            return Workers(settings, main=main, monitoring=monitoring).run()
        run_process(settings, main, monitoring)
    return 0


def run_process(settings: Settings, main: socket.socket, monitoring: socket.socket | None) -> None:
    """Serve in this process until a signal."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(Service(settings), main=main, monitoring=monitoring))


def _run_worker(settings: Settings, number: int, main: socket.socket, monitoring: socket.socket | None) -> None:
    # Ctrl-C reaches every process of the terminal; the supervisor alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_log(settings, worker=number)
    run_process(settings, main, monitoring)


class Workers:
    """Supervises NUM_WORKERS processes on one listening socket.

    The first of them serves the monitoring port, too. One that dies is started again; a signal is passed on
    to all, which drain.
    """

    def __init__(self, settings: Settings, *, main: socket.socket, monitoring: socket.socket) -> None:
        self._settings = settings
        self._main = main
        self._monitoring = monitoring
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, BaseProcess] = {}
        self._started_at: dict[int, float] = {}
        self._failed_starts = 0
        self._stopping = False

    def run(self) -> int:
        """Supervise until a signal; returns the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stop())
        for index in range(self._settings.num_workers):
            self._start(index)
        while self._processes:
            multiprocessing.connection.wait([process.sentinel for process in self._processes.values()], timeout=0.5)
            for index, process in list(self._processes.items()):
                if process.exitcode is not None:
                    self._ended(index, process)
        return 0 if self._failed_starts < MAX_FAILED_STARTS else 1

    def _start(self, index: int) -> None:
        monitoring = self._monitoring if index == 0 else None
        process = self._context.Process(
            target=_run_worker, args=(self._settings, index + 1, self._main, monitoring), name=f"worker-{index}"
        )
        process.start()
        self._processes[index] = process
        self._started_at[index] = time.monotonic()
        _log.info("worker_started", worker=index, process=process.pid)

    def _ended(self, index: int, process: BaseProcess) -> None:
        del self._processes[index]
        if self._stopping:
            return
        _log.error("worker_died", worker=index, exit_code=process.exitcode)
        if time.monotonic() - self._started_at[index] < STARTUP_SECONDS:
            self._failed_starts += 1
        if self._failed_starts < MAX_FAILED_STARTS:
            self._start(index)
        else:
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for process in self._processes.values():
            process.terminate()
