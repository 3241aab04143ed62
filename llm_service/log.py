"""Where log lines go, ours and the libraries': standard error, and a file.

Our own events are written without logging's records, because most come from the event loop; those of libraries take
the way of the records. One `LineForm` for each output says what both look like. Of one thread none overtakes another.
"""

import asyncio
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from logging.handlers import RotatingFileHandler
from pathlib import Path
from time import time
from typing import Any, ClassVar, Final, Literal, NamedTuple, NoReturn, cast

import structlog
from structlog.typing import EventDict, FilteringBoundLogger

from llm_service.errors import ConfigurationError
from llm_service.log_lines import AT, PREPARATION, Format, LineForm

Level = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

_LEAST: Final = {  # by logger
    "llm_service": logging.DEBUG,
    "": logging.INFO,
    "httpx": logging.WARNING,  # a line for each request
    "uvicorn.error": logging.WARNING,  # a line for each connection, with its query string
    "httpcore": logging.WARNING,
    "huggingface_hub": logging.ERROR,  # each of its retries; what came of them is told by us
}
# Seconds that lines below WARNING wait for each other, and how many of them do at most: it takes 20 µs to make each.
_WAIT_SECONDS, _MOST_WAITING = 0.25, 64
# What is written to a pipe at once is not torn apart: POSIX, PIPE_BUF; in bytes, and few characters have more than one.
_PIPE_CHARS: Final = 4096
_PATIENT: Final = frozenset({"debug", "info"})
# Fields that are read where the call is made.
_HURRIED: Final = frozenset({"exc_info", "stack_info"})
# The field of a line that is made later: the list that it goes to.
_TO: Final = "_to"
_SELF_HANDLING: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "huggingface_hub")


def configure(level: Level, log_format: Format, path: str = "", *, log_prompts: bool = False, worker: int = 0) -> None:
    """Send all logs to standard error and, if `path` names a folder, as JSON to a rotating file in it as well.

    Called once per process, before the first line; a second call replaces the first. `worker` above 0 gives
    each process of several its own file, because two that rotate one file lose lines. Libraries are heard
    from INFO on, whatever the level: below it they write frames and headers, thus texts and keys. Handlers of
    others get what libraries log, and nothing of ours.

    Raises:
        ConfigurationError: nothing can be written to `path`; nothing has been changed then.
    """
    outputs: list[_Output] = [_StandardError()]
    outputs[0].form = LineForm.json(log_prompts)
    if log_format == "console":
        outputs[0].form = LineForm.console(log_prompts, colors=sys.stderr is not None and sys.stderr.isatty())
    if path:
        outputs.append(_open_file(Path(path), worker))
        outputs[1].form = LineForm.json(log_prompts)
    root = logging.getLogger()
    for old in _outputs():
        root.removeHandler(old)
        old.close()
    for output in outputs:
        # Levels alone don't do: uvicorn sets those of its loggers itself when it is told a log level.
        output.addFilter(lambda record: record.levelno >= logging.INFO)
        root.addHandler(output)
    number = logging.getLevelNamesMapping()[level]
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(max(number, least))
    take_over(*_SELF_HANDLING)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *PREPARATION, _to_outputs],
        wrapper_class=_logger_class(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of a module: `get_logger(__name__)`; outside this package debug lines are not heard.

    Where a call costs, keep what `bind()` returns: a line below the level then takes 0.1 µs, not 2 µs.
    """
    return cast("FilteringBoundLogger", structlog.get_logger(name))


def take_over(*names: str) -> None:
    """Let loggers of libraries that bring handlers and levels of their own use ours alone.

    Some bring them only when they are imported: huggingface_hub does.
    """
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        if name in _LEAST:
            logger.setLevel(max(logging.getLogger().level, _LEAST[name]))


class _Call(NamedTuple):
    """A call of a logger, as it was made: `at` in seconds since the epoch, in the context in which its names lie."""

    at: float
    context: Context
    log: Callable[..., Any]
    level: str
    event: str | None
    fields: dict[str, Any]

    def make(self, lines: list[EventDict]) -> None:
        """Add the line to these."""
        self.context.run(self.log, self.level, self.event, **self.fields, **{AT: self.at, _TO: lines})


class _Backlog:
    """Calls of loggers whose lines are made later, all at once, by the event loop that runs.

    The log is the process's, and so is what waits for it: `current`; None: nothing waits.
    """

    current: "ClassVar[_Backlog | None]" = None

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        # No lock: whoever holds one may be made to log, by a destructor, and would wait for itself.
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def take(self, log: Callable[..., Any], level: str, event: str | None, fields: dict[str, Any]) -> bool:
        """Keep a call until its line is made with others; False if it must not wait. Then those that do are written."""
        if level not in _PATIENT or not _HURRIED.isdisjoint(fields) or threading.get_ident() != self._thread:
            self.write()
            return False
        self._calls.append(_Call(time(), copy_context(), log, level, event, fields))
        if self._timer is None:
            self._timer = self._loop.call_later(_WAIT_SECONDS, self._due)
        elif len(self._calls) >= _MOST_WAITING:
            self.write()
        return True

    def write(self) -> None:
        """Make and write the lines that wait."""
        lines: list[EventDict] = []
        while (call := self._next()) is not None:
            try:
                call.make(lines)
            except Exception:  # noqa: BLE001 - as in `_Output.emit`; those behind it are still to come
                _say_lost()
        if lines:
            _write(lines)

    def _next(self) -> _Call | None:
        with suppress(IndexError):  # another thread may be faster
            return self._calls.popleft()
        return None

    def _due(self) -> None:
        self._timer = None
        self.write()


@contextmanager
def gathering() -> Iterator[None]:
    """Let lines below WARNING wait for each other for a moment, and be made together by the running event loop.

    The code and data that make a line have left the processor's cache by the time of the next one, and cost more to
    fetch than the line does. One of WARNING or above, of a library or of another thread is written at once, and with it
    those that wait. A process that is killed loses what waits.
    """
    before, own = _Backlog.current, _Backlog()
    _Backlog.current = own
    try:
        yield
    finally:
        own.write()
        _Backlog.current = before


def _logger_class(level: Level) -> type[Any]:
    """Return structlog's class of loggers that hear from this level on, whose calls may wait for each other."""
    cls = structlog.make_filtering_bound_logger(level.lower())

    class Logger(cls):  # type: ignore[misc, valid-type]
        def _proxy_to_logger(self, method_name: str, event: str | None = None, **fields: Any) -> Any:
            log = super()._proxy_to_logger  # with it a line is made later: this is not asked again
            backlog = _Backlog.current
            if backlog is None or not backlog.take(log, method_name, event, fields):
                return log(method_name, event, **fields)
            return None

    return Logger


class _Output(logging.Handler):
    """Ours, told apart from those of others; what can't be written is said without what it was."""

    form: LineForm

    def handle(self, record: logging.LogRecord) -> bool:
        if _Backlog.current is not None:
            _Backlog.current.write()  # before the lock is held: what waits takes those of all outputs
        return super().handle(record)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write([self.form.of_record(record)])
        except Exception:  # noqa: BLE001 - as logging's own handlers: no line may fail what it tells of
            self.handleError(record)

    def take(self, events: Sequence[EventDict]) -> None:
        """Write events of ours, as `handle` does a record."""
        lines = []
        for event in events:
            try:
                lines.append(self.form.of_event(event))
            except Exception:  # noqa: BLE001 - as in `emit`
                _say_lost()
        try:
            self.acquire()
            try:
                self._write(lines)
            finally:
                self.release()
        except Exception:  # noqa: BLE001 - as in `emit`
            _say_lost()

    def _write(self, lines: Sequence[str]) -> None:
        """Is called with the lock held."""
        raise NotImplementedError

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802
        _say_lost()


class _StandardError(_Output):
    def _write(self, lines: Sequence[str]) -> None:
        # Workers share it: what is longer than a pipe takes at once, one's could be written into another's.
        at_once = ""
        for line in lines:
            if at_once and len(at_once) + len(line) >= _PIPE_CHARS:
                self._write_text(at_once)
                at_once = ""
            at_once += f"{line}\n"
        if at_once:
            self._write_text(at_once)

    def _write_text(self, text: str) -> None:
        sys.stderr.write(text)  # whatever standard error is by now
        sys.stderr.flush()


class _File(_Output, RotatingFileHandler):
    def _write(self, lines: Sequence[str]) -> None:
        for line in lines:
            RotatingFileHandler.emit(self, logging.makeLogRecord({"msg": line}))  # it rotates by records alone


def _outputs() -> list[_Output]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Output)]


def _to_outputs(_: object, __: str, event_dict: EventDict) -> NoReturn:
    """Write an event of ours, and spare it logging's way, which makes records of it and copies them."""
    lines: list[EventDict] | None = event_dict.pop(_TO, None)
    if lines is None:
        _write([event_dict])
    else:
        lines.append(event_dict)
    raise structlog.DropEvent


def _write(events: Sequence[EventDict]) -> None:
    for output in _outputs():
        output.take(events)


def _say_lost() -> None:
    with suppress(Exception):  # there may be no standard error at all
        sys.stderr.write(f"a log line was lost: {type(sys.exc_info()[1]).__name__}\n")


def _open_file(folder: Path, worker: int) -> _File:
    name = f"llm-service-{worker}.log" if worker else "llm-service.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _File(folder / name, maxBytes=10 * 1024 * 1024, backupCount=5, encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ConfigurationError(
            f"LOG_PATH={folder}: {name} cannot be written ({reason}); name another folder"
        ) from None
