"""What a log line may hold and what it must not, in both formats."""

import asyncio
import io
import json
import logging
import math
import os
import re
import sys
import threading
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_service import log, log_lines
from llm_service.errors import ConfigurationError, EngineRejected, EngineTimeout
from llm_service.generation import Delta, GenerationRequest, Message, SamplingParams

PROMPT = "canary-prompt-7f3a"
KEY = "canary-key-91bc"

Record = dict[str, Any]
Lines = Callable[[], list[Record]]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
hostile = st.text(alphabet=st.sampled_from("a \"'\\{}=\x00\t\n\r\x0b\x0c\x1b\x1c\x7f\x85\u2028\u2029\u202e\ud800é"))


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Put logging's and structlog's global state back as it was."""
    names = ("", "llm_service", "httpx", "httpcore", *log._SELF_HANDLING)
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    logger_class, configured, config = logging.getLoggerClass(), structlog.is_configured(), structlog.get_config()
    yield
    for handler in logging.getLogger().handlers:
        if isinstance(handler, log._Output):
            handler.close()
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers
    logging.setLoggerClass(logger_class)
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    if configured:
        structlog.configure(**config)


@pytest.fixture
def json_lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Log JSON at DEBUG; a call returns the lines since the last."""
    log.configure("DEBUG", "json")
    return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    log.configure("DEBUG", "console")
    return lambda: capsys.readouterr().err


def without_pytests_handlers() -> None:
    """Remove pytest's handlers for this test: they raise where a line can't be formatted their way."""
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, log._Output)]


def ours() -> structlog.typing.FilteringBoundLogger:
    return log.get_logger("llm_service.test")


def test_a_line_of_ours(json_lines: Lines) -> None:
    """A line has its event, level, logger, time in UTC and the values given and bound."""
    with structlog.contextvars.bound_contextvars(session_id="s-1"):
        ours().warning("client is slow", pending_bytes=7)
    (line,) = json_lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "client is slow", "level": "warning", "logger": "llm_service.test", "session_id": "s-1",
        "pending_bytes": 7,
    }  # fmt: skip


def test_a_line_of_a_library(json_lines: Lines) -> None:
    """A library's record has the same shape, its session included."""
    with structlog.contextvars.bound_contextvars(session_id="s-1"):
        logging.getLogger("aiohttp.server").error("Error %s of %d", "one", 2)
    (line,) = json_lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "Error one of 2", "level": "error", "logger": "aiohttp.server", "session_id": "s-1"}


@pytest.mark.parametrize("form", ["console", "json"])
def test_ours_and_libraries_look_the_same(
    form: log_lines.Format, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An event of ours and the record of a library that say the same are the same line, at each output once."""
    log.configure("INFO", form, str(tmp_path))
    with structlog.contextvars.bound_contextvars(session_id="s-1", answer="hello there", api_key=KEY):
        for logger in (ours(), logging.getLogger("llm_service.test")):
            try:
                fail(PROMPT)
            except EngineRejected:
                logger.exception("turn failed")
            logger.warning("client is slow")
    for written in (capsys.readouterr().err, (tmp_path / "llm-service.log").read_text()):
        lines = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "then", written).splitlines()
        assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
        assert (written.count("turn failed"), written.count("client is slow")) == (2, 2)


def test_handlers_of_others_get_nothing_of_ours(json_lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we log, which only our own outputs redact, is not handed to handlers beside them."""
    heard: list[str] = []
    stranger = logging.NullHandler()
    monkeypatch.setattr(stranger, "handle", lambda record: heard.append(str(record.msg)))
    logging.getLogger().addHandler(stranger)
    ours().info("ours", text=PROMPT)
    logging.getLogger("some.library").info("a library's")
    assert heard == ["a library's"]
    assert [line["event"] for line in json_lines()] == ["ours", "a library's"]


async def test_lines_wait_for_each_other(json_lines: Lines) -> None:
    """Gathered, lines below WARNING are written soon, in their order, with the time and context they were said in."""
    before = datetime.now(UTC)
    with log.gathering():
        with structlog.contextvars.bound_contextvars(session_id="s-1"):
            ours().info("first", n=1)
        said = datetime.now(UTC)
        ours().debug("second", text="secret")
        assert [] == json_lines()
        async with asyncio.timeout(5):
            while not (lines := json_lines()):
                await asyncio.sleep(0.02)
    assert ["first", "second"] == [line["event"] for line in lines]
    assert ["s-1", None] == [line.get("session_id") for line in lines]
    assert [1, "<6 characters>"] == [lines[0]["n"], lines[1]["text"]]
    assert before <= datetime.fromisoformat(lines[0]["timestamp"]) <= said
    assert [] == json_lines()


async def test_what_hurries_is_behind_those_that_wait(json_lines: Lines) -> None:
    """A warning, an exception, a library's line and one of another thread are written at once, and overtake nothing."""
    with log.gathering():
        ours().info("1")
        ours().warning("2")
        assert ["1", "2"] == [line["event"] for line in json_lines()]
        ours().info("3")
        try:
            fail("secret")
        except EngineRejected:
            ours().info("4", exc_info=True)
        lines = json_lines()
        assert ["3", "4"] == [line["event"] for line in lines]
        assert lines[1]["exception"]
        ours().info("5")
        logging.getLogger("aiohttp.server").info("6")
        assert ["5", "6"] == [line["event"] for line in json_lines()]
        ours().info("7")
        await asyncio.to_thread(ours().info, "8")
        assert ["7", "8"] == [line["event"] for line in json_lines()]


async def test_many_lines_wait_for_no_more(json_lines: Lines) -> None:
    """So many that they hold the event loop up are written without waiting; what is left is at the end."""
    with log.gathering():
        for number in range(log._MOST_WAITING + 1):
            ours().info("line", n=number)
        assert log._MOST_WAITING == len(json_lines())
    assert [log._MOST_WAITING] == [line["n"] for line in json_lines()]
    ours().info("later")
    assert ["later"] == [line["event"] for line in json_lines()]


async def test_a_line_below_the_level_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    """It is dropped where it is said."""
    log.configure("WARNING", "json")
    with log.gathering():
        ours().info("nothing")
        assert log._Backlog.current is not None
        assert 0 == len(log._Backlog.current._calls)
    assert "" == capsys.readouterr().err


async def test_a_gathered_line_that_cannot_be_made_loses_no_other(
    console: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before and behind it are written, and that one was lost is said."""
    made = log._Call.make

    def make(call: log._Call, lines: list[structlog.typing.EventDict]) -> None:
        if call.event == "2":
            raise MemoryError
        made(call, lines)

    monkeypatch.setattr(log._Call, "make", make)
    with log.gathering():
        for event in "123":
            ours().info(event)
    lines = console().splitlines()
    assert ["1", "3"] == [line.split("]")[1].split()[0] for line in lines if "]" in line]
    assert ["a log line was lost: MemoryError"] == [line for line in lines if "]" not in line]


async def test_gathered_lines_go_to_both_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As console text and as JSON in the file."""
    log.configure("INFO", "console", str(tmp_path))
    with log.gathering():
        for number in range(5):
            ours().info("line", n=number)
    assert [f"n={number}" for number in range(5)] == re.findall(r"n=\d", capsys.readouterr().err)
    written = (tmp_path / "llm-service.log").read_text().splitlines()
    assert list(range(5)) == [json.loads(line)["n"] for line in written]


async def test_what_is_written_at_once_fits_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole lines, and no more than a pipe takes without letting another worker's in; a longer one goes alone."""
    writes: list[str] = []

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    log.configure("INFO", "json")
    monkeypatch.setattr(sys, "stderr", Pipe())
    with log.gathering():
        for number in range(40):
            ours().info("line", n=number, note="x" * (9000 if number == 20 else 200))
    assert list(range(40)) == [json.loads(line)["n"] for text in writes for line in text.splitlines()]
    assert all(text.endswith("\n") and (len(text) <= 4096 or text.count("\n") == 1) for text in writes)
    assert len(writes) < 20


class Slow(io.StringIO):
    """Takes a character at a time, so that others come in between if they can."""

    def write(self, text: str) -> int:
        return sum(super(Slow, self).write(char) for char in text)


def test_threads_do_not_tear_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of ours and of libraries that several threads write at once stand one after the other."""
    output = Slow()
    monkeypatch.setattr(sys, "stderr", output)
    log.configure("INFO", "json")
    without_pytests_handlers()
    start = threading.Barrier(4)

    def write(logger: Any) -> None:
        start.wait()
        for _ in range(50):
            logger.info("line")

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=write, args=[each]) for each in (ours(), logging.getLogger("library")) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [json.loads(line)["event"] for line in output.getvalue().splitlines()] == ["line"] * 200


def test_levels(json_lines: Lines, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours are heard from the level on; libraries never below INFO, whatever level they set themselves."""
    for name in ("websockets", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).debug("< TEXT %r", PROMPT)
        logging.getLogger(name).setLevel(logging.NOTSET)
    ours().debug("heard")
    assert [line["event"] for line in json_lines()] == ["heard"]
    log.configure("ERROR", "json")
    ours().warning("not heard")
    logging.getLogger("uvicorn.error").warning("not heard")
    ours().error("heard")
    assert [line["event"] for line in json_lines()] == ["heard"]


def test_levels_by_name(json_lines: Lines) -> None:
    """A logger of ours under the name of a library, or of nobody, is heard from that name's level on."""
    for name in ("llm_service.test", "elsewhere", "httpx"):
        logger = log.get_logger(name)
        logger.debug("debug")
        logger.info("info")
        logger.warning("warning")
    found = [(line["logger"], line["event"]) for line in json_lines()]
    assert found == [
        *(("llm_service.test", level) for level in ("debug", "info", "warning")),
        ("elsewhere", "info"), ("elsewhere", "warning"), ("httpx", "warning"),
    ]  # fmt: skip


def test_a_line_of_ours_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging makes no record of it, which would be copied and cost as much again on the event loop."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    log.configure("INFO", "json")
    factory, made = logging.getLogRecordFactory(), []

    def counting(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made.append(args[0])
        return factory(*args, **kwargs)

    monkeypatch.setattr(logging, "_logRecordFactory", counting)
    ours().info("response")
    logging.getLogger("library").info("response")
    assert {"library", None} == set(made)  # `None`: the copy of it that structlog makes


def test_a_filtered_call_is_cheap(json_lines: Lines) -> None:
    """A debug call at INFO of a bound logger costs a fraction of a line that is written."""
    log.configure("INFO", "json")
    bound = ours().bind(session_id="s-1")

    def seconds(call: Callable[..., object]) -> float:
        return min(timeit.repeat(lambda: call("never", text="x"), number=100, repeat=10))

    assert seconds(bound.debug) < seconds(bound.info) / 5


@given(key=st.text(), value=anything | hostile, event=st.text() | hostile)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_nothing_breaks_a_json_line(capsys: pytest.CaptureFixture[str], key: str, value: object, event: str) -> None:
    """Any text in any field: one line, ASCII, that parses and gives back the value or its redaction."""
    log.configure("DEBUG", "json")
    reserved = {"event", "level", "logger", "timestamp", "exception", "stack", "exc_info", "self", "text", "nested"}
    key = f"{key}_" if key in reserved | {"_record", "_from_structlog"} else key
    ours().info(event, **{key: value}, nested={"inner": [value]}, text=value)
    written = capsys.readouterr().err
    assert written.isascii()
    assert not {c for c in written if not c.isprintable()} - {"\n"}
    (line,) = written.splitlines()
    found = json.loads(line)
    assert found["event"] == event
    assert found["text"] == sized(value)
    assert found["nested"] == {"inner": [redacted(value)]}
    assert found[key] == field(key, value)


def sized(value: object) -> object:
    """Return what a line shows of a text, whatever stands in its place; written apart from the code under test."""
    if isinstance(value, (str, list, dict)):
        return f"<{len(value)} {'characters' if isinstance(value, str) else 'items'}>"
    return None if value is None else f"<{type(value).__name__}>"


def field(key: str, value: object) -> object:
    name = key.lower().replace("-", "_")
    if name in log_lines.SECRETS or name.endswith(log_lines._SECRET_ENDINGS):
        return None if value is None else log_lines.STARS
    return sized(value) if name in log_lines.TEXTS else redacted(value)


def redacted(value: object) -> object:
    """Return what a line shows of plain data."""
    if isinstance(value, dict):
        return {key: field(key, inner) for key, inner in value.items()}
    return [redacted(inner) for inner in value] if isinstance(value, list) else value


@given(key=hostile, value=hostile, event=hostile)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_nothing_breaks_a_console_line(capsys: pytest.CaptureFixture[str], key: str, value: str, event: str) -> None:
    """Any text in any field: one line, and no character in it steers a terminal."""
    log.configure("DEBUG", "console")
    ours().info(event, **{f"k{key}": value, "exception": value, "stack": value}, nested={key: [value]})
    logging.getLogger("uvicorn.error").warning("%s", value)
    written = capsys.readouterr().err
    assert [line[:2] for line in written.splitlines()] == ["20", "20"]
    assert not {c for c in written if not c.isprintable()} - {"\n"}


def test_the_console_shows_what_it_escapes(console: Callable[[], str]) -> None:
    """Control characters are visible as escapes; ordinary values are plain; no colours without a terminal."""
    ours().info("half\r\nline", plain="abc", spaced="a b", escape="\x1b[31m", other="日本", number=3)
    line = console()
    for part in ("half\\r\\nline", "plain=abc", 'spaced="a b"', "escape=\\x1b[31m", "other=日本", "number=3", "[info"):
        assert part in line


def test_colours_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal gets colours, and still no escape of a client's."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log.configure("INFO", "console")
    ours().info("hello", value="\x1b[2J")
    written = capsys.readouterr().err
    assert "\x1b[0m" in written
    assert "\x1b[2J" not in written


@pytest.mark.parametrize("colors", [False, True])
def test_the_console_is_structlogs(colors: bool) -> None:
    """Columns, widths and colours are those of structlog's renderer."""
    line = {
        "timestamp": "2026-01-01T00:00:00Z", "level": "info", "event": "response", "logger": "llm_service.x",
        "logger_name": "x", "response": 3, "outcome": "stop",
    }  # fmt: skip
    stock = structlog.dev.ConsoleRenderer(colors=colors)
    *_, renderer = log_lines._console(colors)
    for event in ("response", "", "an event that is longer than its column"):
        assert renderer(None, "", line | {"event": event}) == stock(None, "", line | {"event": event})


def test_nothing_unsafe_is_printable() -> None:
    """What Python calls printable needs no search for what would steer a terminal."""
    unsafe = log_lines._UNSAFE.findall("".join(map(chr, range(sys.maxunicode + 1))))
    assert len(unsafe) > 2000
    assert not [char for char in unsafe if char.isprintable()]


def test_texts_and_secrets_are_not_written(json_lines: Lines) -> None:
    """Texts show as lengths and secrets as stars, at every depth, in any writing of the key; None stays None."""
    ours().info(
        "message",
        text="hello",
        messages=[1, 2],
        data=b"abc",
        prompt=None,
        Authorization="Bearer x",
        headers={"X-Api-Key": KEY, "cookie": KEY, "Accept": "*/*"},
        config=[{"system_prompt": "be kind", "OPENAI_API_KEY": KEY, "top_k": 3}],
        answer=12,
    )
    (line,) = json_lines()
    shown = {key: line[key] for key in line if key not in {"event", "level", "logger", "timestamp"}}
    assert shown == {
        "text": "<5 characters>",
        "messages": "<2 items>",
        "data": "<3 bytes>",
        "prompt": None,
        "Authorization": "********",
        "headers": {"X-Api-Key": "********", "cookie": "********", "Accept": "*/*"},
        "config": [{"system_prompt": "<7 characters>", "OPENAI_API_KEY": "********", "top_k": 3}],
        "answer": "<int>",
    }


def test_log_prompts_shows_texts_but_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """LOG_PROMPTS lifts the redaction of texts and of library exceptions, never that of keys."""
    log.configure("DEBUG", "json", log_prompts=True)
    try:
        int(PROMPT)
    except ValueError as error:
        ours().exception("failed", text=PROMPT, api_key=KEY, error=error, delta=Delta(PROMPT))
    written = capsys.readouterr().err
    line = json.loads(written)
    assert line["text"] == PROMPT
    assert (
        line["error"]
        == line["exception"][0]["error"]
        == f"ValueError: invalid literal for int() with base 10: {PROMPT!r}"
    )
    assert KEY not in written


@dataclass
class Bag:
    content: str
    size: int


class Rude:
    def __repr__(self) -> str:
        return PROMPT

    def __len__(self) -> int:
        raise RuntimeError(PROMPT)

    def __iter__(self) -> Iterator[int]:
        raise RuntimeError(PROMPT)

    def __contains__(self, item: object) -> bool:
        return False


def test_objects_are_shown_without_their_texts(json_lines: Lines) -> None:
    """Structs and dataclasses are read field by field; anything else shows as its class, even if it misbehaves."""
    without_pytests_handlers()
    circle: list[object] = []
    circle.append(circle)
    ours().info(
        "objects",
        delta=Delta(PROMPT),
        events=[Delta(PROMPT), Bag(PROMPT, 3)],
        folder=Path("/tmp/x"),
        thing=object(),
        rude=Rude(),
        raw=PROMPT.encode(),
        circle=circle,
        big=10**5000,
        inf=math.inf,
        keys={1: 1, None: 2, (PROMPT,): 3},
        errors=[ValueError(PROMPT), EngineTimeout("No token for 5 s.")],
    )
    (line,) = json_lines()
    assert line["events"] == [{"text": "<18 characters>", "thinking": False}, {"content": "<18 characters>", "size": 3}]
    assert (line["delta"], line["thing"], line["rude"], line["raw"]) == ("<Delta>", "<object>", "<Rude>", "<18 bytes>")
    assert (line["folder"], line["inf"], line["keys"]) == ("/tmp/x", "inf", {"1": 1, "None": 2, "…": 3})
    assert line["big"].endswith(" bits>")
    assert line["errors"] == ["ValueError", "EngineTimeout: No token for 5 s."]
    assert PROMPT not in json.dumps(line)


def fail(text: str) -> None:
    try:
        json.loads("{" + text)
    except json.JSONDecodeError as error:
        try:
            raise EngineRejected("Ollama answered with something else than JSON.") from error
        finally:
            del text


def test_exceptions_keep_their_stack_and_lose_their_text(json_lines: Lines) -> None:
    """Type, file, line and function of each exception of the chain; only our own say what happened."""
    try:
        fail(PROMPT)
    except EngineRejected:
        ours().exception("turn failed")
    (line,) = json_lines()
    outer, inner = line["exception"]
    assert (outer["how"], outer["error"]) == (
        "raised",
        "EngineRejected: Ollama answered with something else than JSON.",
    )
    assert (inner["how"], inner["error"]) == ("caused by", "JSONDecodeError")
    assert outer["frames"][-1].startswith(__file__)
    assert outer["frames"][-1].endswith(" in fail")
    assert PROMPT not in json.dumps(line)


def test_groups_and_deep_stacks(json_lines: Lines) -> None:
    """A group's members are in its trace; a recursion of a thousand frames shows its innermost ones."""

    def down(depth: int) -> None:
        if depth == 0:
            raise ExceptionGroup(PROMPT, [KeyError(PROMPT), EngineTimeout("late")])
        down(depth - 1)

    try:
        down(200)
    except ExceptionGroup:
        ours().error("many", exc_info=True)
    (line,) = json_lines()
    assert [entry["error"] for entry in line["exception"]] == ["ExceptionGroup", "KeyError", "EngineTimeout: late"]
    assert len(line["exception"][0]["frames"]) == 50
    assert PROMPT not in json.dumps(line)


def test_a_trace_on_the_console(console: Callable[[], str]) -> None:
    """The console shows the stack below the line, indented, with the same redaction."""
    try:
        fail(PROMPT)
    except EngineRejected:
        ours().exception("turn failed")
    first, *rest = console().splitlines()
    assert "turn failed" in first
    assert rest[0] == "  raised EngineRejected: Ollama answered with something else than JSON."
    assert "  caused by JSONDecodeError" in rest
    assert PROMPT not in "".join(rest)


@pytest.mark.parametrize("name", ["uvicorn.access", "uvicorn.error"])
def test_queries_are_stripped(json_lines: Lines, name: str) -> None:
    """No query string of a request or a WebSocket reaches the log, whatever is in it, nor one of another URL."""
    for query in (f"token={KEY}", f'a="b {KEY}', f"a=?{KEY}"):
        arguments = ("1.2.3.4:5", "GET", f"/ws/llm?{query}", "1.1", 101)
        logging.getLogger(name).warning('%s - "%s %s HTTP/%s" %d', *arguments)
    logging.getLogger(name).warning("asked %s", httpx.URL(f"http://x/y?key={KEY}"))
    logging.getLogger(name).warning(f"asked http://x/y?key={KEY} twice")  # noqa: G004
    lines = json_lines()
    assert {line["event"] for line in lines[:3]} == {'1.2.3.4:5 - "GET /ws/llm HTTP/1.1" 101'}
    assert [line["event"] for line in lines[3:]] == ["asked http://x/y", "asked http://x/y twice"]


def test_invalid_utf8_is_one_line(json_lines: Lines) -> None:
    """uvicorn's traceback for a client's bad bytes becomes a warning without one."""
    try:
        b"\xff".decode()
    except UnicodeDecodeError:
        logging.getLogger("uvicorn.error").exception("Invalid UTF-8 sequence received from client.")
    (line,) = json_lines()
    assert line["level"] == "warning"
    assert "exception" not in line


def test_exceptions_inside_a_library_message(json_lines: Lines) -> None:
    """An exception that is a message or an argument shows as its type; arguments that don't fit lose nothing else."""
    without_pytests_handlers()
    logger = logging.getLogger("some.library")
    logger.error(ValueError(PROMPT))
    logger.error("failed: %s", ValueError(PROMPT))
    logger.error("failed: %(why)s", {"why": ValueError(PROMPT)})
    logger.error("failed: %d", ValueError(PROMPT))
    logger.error("first\nsecond " + PROMPT)  # noqa: G003
    assert [line["event"] for line in json_lines()] == [
        "ValueError", "failed: ValueError", "failed: ValueError", "failed: %d (its arguments do not fit)", "first",
    ]  # fmt: skip


async def test_asyncio_does_not_quote(json_lines: Lines) -> None:
    """asyncio's reports of lost exceptions and failed callbacks carry the stack, not what was in hand."""

    async def lost() -> None:
        raise KeyError(PROMPT)

    def callback(_text: str) -> None:
        raise ValueError(PROMPT)

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(lost())
    await asyncio.sleep(0)
    loop.call_exception_handler(
        {"message": "Task exception was never retrieved", "exception": task.exception(), "task": task}
    )
    loop.call_soon(callback, PROMPT)
    await asyncio.sleep(0.01)
    first, second = json_lines()
    assert (first["event"], first["exception"][0]["error"]) == ("Task exception was never retrieved", "KeyError")
    assert second["event"].startswith("Exception in callback")
    assert PROMPT not in json.dumps([first, second])


def test_canaries(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """At DEBUG, in both formats and the file: a prompt and a key that pass through everything are nowhere."""
    request = GenerationRequest("m", (Message("user", PROMPT),), SamplingParams(0, 1, 1, 9, stop=("x",)), 256)
    for log_format in ("console", "json"):
        log.configure("DEBUG", log_format, str(tmp_path))
        logger = ours().bind(api_key=KEY)
        try:
            int(f"{PROMPT} {KEY}")
        except ValueError as error:
            logger.debug("generating", request=request, prompt=PROMPT, headers={"authorization": f"Bearer {KEY}"})
            logger.exception("failed", error=error, token=KEY, line=PROMPT.encode())
            logging.getLogger("aiohttp.server").exception("Unhandled %s", error)  # noqa: TRY401
            logging.getLogger("websockets").debug("> TEXT %s", PROMPT)
            logging.getLogger("httpx").info('HTTP Request: POST http://x/?key=%s "200"', KEY)
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    written = capsys.readouterr().err + (tmp_path / "llm-service.log").read_text()
    assert "generating" in written
    assert (PROMPT in written, KEY in written) == (False, False)


def test_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a path every line is also JSON in a file, in a folder that is made; each worker has its own."""
    folder = tmp_path / "a" / "b"
    log.configure("INFO", "console", str(folder))
    ours().info("one", text="hello")
    log.configure("INFO", "json", str(folder), worker=2)
    ours().info("two")
    assert json.loads((folder / "llm-service.log").read_text())["text"] == "<5 characters>"
    assert json.loads((folder / "llm-service-2.log").read_text())["event"] == "two"
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_the_file_rotates(tmp_path: Path) -> None:
    """A full file is put aside, five are kept, and no line is torn."""
    log.configure("INFO", "json", str(tmp_path))
    handler = next(handler for handler in logging.getLogger().handlers if isinstance(handler, log._File))
    assert (handler.maxBytes, handler.backupCount) == (10 * 1024 * 1024, 5)
    handler.maxBytes = 1000
    for number in range(200):
        ours().info("line", number=number)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 6
    for file in files:
        assert all(json.loads(line)["event"] == "line" for line in file.read_text().splitlines())


@pytest.mark.parametrize("path", ["file/sub", "nul\0"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, path: str) -> None:
    """It is a ConfigurationError that names LOG_PATH and the reason; the logging there was stays."""
    (tmp_path / "file").write_text("")
    before = logging.getLogger().handlers[:]
    with pytest.raises(ConfigurationError, match=r"LOG_PATH=.*cannot be written"):
        log.configure("INFO", "json", str(tmp_path / path))
    assert logging.getLogger().handlers == before


def test_a_lost_line_does_not_spill(json_lines: Lines, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """When the file can't be written (a full disk), that is said without the line."""
    log.configure("INFO", "json", str(tmp_path))
    handler = next(handler for handler in logging.getLogger().handlers if isinstance(handler, log._File))
    handler.maxBytes = 0
    handler.close()
    handler.stream = open(os.devnull, encoding="utf-8")  # noqa: SIM115 - to read, hence not to be written
    ours().info("hello", text=PROMPT)
    assert capsys.readouterr().err.splitlines()[-1] == "a log line was lost: UnsupportedOperation"


class Cracked(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError(PROMPT)


def test_a_line_that_cannot_be_made(console: Callable[[], str]) -> None:
    """Nothing of it reaches the caller, who is told that it is lost; the next line is written."""
    ours().info("hello", value=Cracked("a"))
    ours().info("next")
    first, second = console().splitlines()
    assert first == "a log line was lost: RuntimeError"
    assert "next" in second


def test_a_broken_standard_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who logs goes on, and the file gets the line; standard error is used again once there is another."""
    broken, mended = io.StringIO(), io.StringIO()
    broken.close()
    log.configure("INFO", "json", str(tmp_path))
    monkeypatch.setattr(sys, "stderr", broken)
    ours().info("one")
    monkeypatch.setattr(sys, "stderr", mended)
    ours().info("two")
    assert [json.loads(line)["event"] for line in mended.getvalue().splitlines()] == ["two"]
    events = [json.loads(line)["event"] for line in (tmp_path / "llm-service.log").read_text().splitlines()]
    assert events == ["one", "two"]


def test_a_logger_that_is_kept_follows(json_lines: Lines, tmp_path: Path) -> None:
    """A logger bound before writes to the outputs of the last configuration, and only there."""
    kept = ours().bind(session_id="s-1")
    log.configure("INFO", "json", str(tmp_path))
    kept.info("once")
    (line,) = json_lines()
    assert line == json.loads((tmp_path / "llm-service.log").read_text())


def test_configuring_again_replaces(json_lines: Lines) -> None:
    """A second configuration does not double the lines, and leaves handlers of others alone."""
    stranger = logging.NullHandler()
    logging.getLogger().addHandler(stranger)
    log.configure("INFO", "json")
    log.configure("INFO", "json")
    ours().info("once")
    assert len(json_lines()) == 1
    assert stranger in logging.getLogger().handlers


def test_libraries_with_handlers_are_taken_over(json_lines: Lines) -> None:
    """huggingface_hub's own handler and level are removed: its errors come through ours, what it tries is not heard."""
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.WARNING)
    log.take_over("huggingface_hub")
    logging.getLogger("huggingface_hub.utils").warning("retrying")
    logging.getLogger("huggingface_hub.file_download").error("slow")
    assert [line["event"] for line in json_lines()] == ["slow"]
