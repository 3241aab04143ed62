"""Runs the service as one process, or as several that share its port.

While an embedded engine loads its model nothing else runs in its process, probes and signals included:
llama.cpp holds Python's global lock for as long as it takes.
"""

import asyncio
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from time import monotonic

import structlog
from prometheus_client.multiprocess import mark_process_dead

from llm_service import log
from llm_service.config import Settings
from llm_service.errors import FastTalkError, StartupError
from llm_service.service import Service
from llm_service.serving import bind, serve

# A worker that lived shorter than this, in seconds, or never listened did not really start.
STARTUP_SECONDS = 10.0
# A worker that did not start is started again with a pause that doubles, up to this, in seconds.
LONGEST_PAUSE = 30.0
# While no worker serves, all are stopped when each of them has failed more often than this in a row.
MAX_FAILED_STARTS = 3
# What workers get on top of DRAIN_TIMEOUT to close their engines, in seconds, before they are killed.
CLOSE_SECONDS = 15.0
# Exit status of a worker that was told why it cannot start.
CANNOT_START = 3

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


def run(settings: Settings, *, metrics_folder: str = "") -> int:
    """Run until a signal; returns the exit status.

    `metrics_folder` is PROMETHEUS_MULTIPROC_DIR where there are several workers.

    Raises:
        StartupError: the service could not be started.
    """
    configure_log(settings)
    main = bind(settings.llm_host, settings.llm_port, setting="LLM_PORT")
    with main, bind(settings.llm_monitoring_host, settings.llm_monitoring_port, setting="LLM_MONITORING_PORT") as other:
        if settings.num_workers > 1:
            return Workers(settings, main=main, monitoring=other, metrics_folder=metrics_folder).run()
        return run_process(Service(settings), main, other)


def run_process(
    service: Service,
    main: socket.socket,
    monitoring: socket.socket | None,
    listening: Callable[[], None] = lambda: None,
) -> int:
    """Serve in this process until a signal; returns the exit status. `listening` is called once clients are taken.

    Raises:
        StartupError: the service could not be started.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve(service, main=main, monitoring=monitoring, listening=listening))
    except FastTalkError:
        raise
    except Exception:  # noqa: BLE001 - the last owner: the log shows no more of it than it may
        _log.critical("service_crashed", exc_info=True)
        return 1
    return 0


def _run_worker(
    settings: Settings,
    number: int,
    main: socket.socket,
    monitoring: socket.socket | None,
    metrics_folder: str,
    served: ctypes.Array[ctypes.c_byte],
) -> None:
    def listening() -> None:
        served[number - 1] = 1

    threading.Thread(target=_leave_with_parent, daemon=True).start()
    configure_log(settings, worker=number)
    structlog.contextvars.bind_contextvars(worker=number)
    try:
        status = run_process(Service(settings, metrics_folder=metrics_folder), main, monitoring, listening)
    except StartupError as error:
        _log.error("worker_cannot_start", reason=error.message)
        status = CANNOT_START
    sys.exit(status)


def _leave_with_parent() -> None:
    """Drain when the supervisor is gone: without it nothing would stop this worker, which holds the port."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(eq=False, slots=True)
class _Worker:
    """One place among the workers. Times are of the monotonic clock; `failures` are short lives in a row."""

    number: int
    process: BaseProcess | None = None
    start_at: float = 0.0
    started_at: float = 0.0
    failures: int = 0


class Workers:
    """Supervises NUM_WORKERS processes on one listening socket.

    The first of them serves the monitoring port, too. One that dies is started again, for as long as another one
    serves; before any has served, one that cannot start ends them all. A signal is passed on to all, which drain,
    and a second one cuts.
    """

    def __init__(
        self, settings: Settings, *, main: socket.socket, monitoring: socket.socket, metrics_folder: str
    ) -> None:
        self._settings = settings
        self._main = main
        self._monitoring = monitoring
        self._metrics_folder = metrics_folder
        self._context = multiprocessing.get_context("spawn")
        self._workers = [_Worker(number) for number in range(1, settings.num_workers + 1)]
        # Which of the processes came as far as to take clients: each writes its own byte.
        self._served = self._context.RawArray(ctypes.c_byte, settings.num_workers)
        self._ever_served = False
        self._status = 0
        self._signals = self._heard = 0
        self._kill_at: float | None = None
        self._wake, self._woken = socket.socketpair()

    def run(self) -> int:
        """Supervise until a signal; returns the exit status."""
        if self._settings.llm_provider == "llama_cpp" or self._settings.embedded_model_named:
            _log.warning("each_worker_loads_the_model", copies=self._settings.num_workers)
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._note_signal) for number in numbers]
        try:
            while self._workers:
                self._look_after()
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            self._wake.close()
            self._woken.close()
        return self._status

    def _look_after(self) -> None:
        """Start who is due, wait until something happens, and see to it."""
        for worker in self._workers:
            if worker.process is None and worker.start_at <= monotonic():
                self._start(worker)
        self._wait()
        for worker in list(self._workers):
            if worker.process is not None and worker.process.exitcode is not None:
                self._ended(worker)
        while self._heard < self._signals:
            self._heard += 1
            self._stop()
        if self._kill_at is not None and monotonic() > self._kill_at:
            self._kill()

    def _note_signal(self, *_: object) -> None:
        # Only noted: one that comes while a worker is being started must stop that one, too.
        self._signals += 1
        self._wake.send(b"\0")

    def _wait(self) -> None:
        """Wait until a worker has ended or is to be started, a signal has come or the patience is over."""
        deadlines = [worker.start_at for worker in self._workers if worker.process is None]
        if self._kill_at is not None:
            deadlines.append(self._kill_at)
        timeout = max(0.0, min(deadlines) - monotonic()) if deadlines else None
        sentinels = [worker.process.sentinel for worker in self._workers if worker.process is not None]
        if self._woken in multiprocessing.connection.wait([self._woken, *sentinels], timeout):
            self._woken.recv(1)

    def _start(self, worker: _Worker) -> None:
        monitoring = self._monitoring if worker.number == 1 else None
        self._served[worker.number - 1] = 0
        process = worker.process = self._context.Process(
            target=_run_worker,
            args=(self._settings, worker.number, self._main, monitoring, self._metrics_folder, self._served),
            name=f"worker-{worker.number}",
        )
        # Ctrl-C reaches every process of the terminal, and the supervisor alone decides what it means. Born
        # ignoring it, a worker ignores it while it imports, too.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        worker.started_at = monotonic()
        _log.info("worker_started", worker=worker.number, process=process.pid)

    def _ended(self, worker: _Worker) -> None:
        process, worker.process = worker.process, None
        assert process is not None
        mark_process_dead(process.pid, self._metrics_folder)  # type: ignore[no-untyped-call]
        if self._kill_at is not None:
            self._workers.remove(worker)
            return
        served, now = self._has_served(worker), monotonic()
        self._ever_served |= any(self._served)
        started = served and now - worker.started_at >= STARTUP_SECONDS
        worker.failures = 0 if started else worker.failures + 1
        if self._hopeless(cannot_start=process.exitcode == CANNOT_START):
            self._status, pause = 1, None
        else:
            pause = min(LONGEST_PAUSE, 2.0 ** min(max(0, worker.failures - 1), 10) - 1)
            worker.start_at = now + pause
        _log.error(
            "worker_died", worker=worker.number, process=process.pid, exit_code=process.exitcode, again_in_seconds=pause
        )
        if pause is None:
            self._stop()

    def _has_served(self, worker: _Worker) -> bool:
        return bool(self._served[worker.number - 1])

    def _hopeless(self, *, cannot_start: bool) -> bool:
        """Whether nothing serves and nothing will: one worker that fails is no reason to end those that serve."""
        if any(worker.process is not None and self._has_served(worker) for worker in self._workers):
            return False
        if cannot_start and not self._ever_served:
            return True
        return all(worker.failures > MAX_FAILED_STARTS for worker in self._workers)

    def _stop(self) -> None:
        """Have every worker drain or, if it does already, cut."""
        self._workers = [worker for worker in self._workers if worker.process is not None]
        if self._kill_at is None:
            self._kill_at = monotonic() + self._settings.drain_timeout + CLOSE_SECONDS
        for worker in self._workers:
            assert worker.process is not None
            worker.process.terminate()

    def _kill(self) -> None:
        for worker in self._workers:
            assert worker.process is not None
            _log.error("worker_killed", worker=worker.number, process=worker.process.pid)
            worker.process.kill()
        self._kill_at = monotonic() + CLOSE_SECONDS
