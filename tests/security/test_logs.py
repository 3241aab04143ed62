"""What people say, keys, forged lines, in logs and metrics and traces (uvicorn CVE-2020-7694, NATS CVE-2026-33247)."""

import asyncio
import contextlib
import io
import json
import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidHandshake

from llm_service import log, log_lines
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineUnreachable
from llm_service.generation import Finish, GenerationRequest, Sink
from tests.live import Live, live_service, send
from tests.security.raw import exchange, frame, head, open_raw, to_the_end, upgrade

# What ends a line, moves a cursor, or turns text round, in terminals, viewers and parsers.
EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\n\x00\x08\x7f\x85\u2028\u2029\u202e\u200f\u061c\u200b\u2066\ufeff\U000e0041"
CONTROLS = frozenset(char for char in EVIL if not char.isprintable()) - {"\n"}
FORGED = '\r\n{"event": "forged", "level": "critical"}\r\n2026-01-01 [critical ] forged\u2028forged'
PROMPT, KEY, WRONG, ANSWER = "canary-prompt-8d1f", "canary-key-8d1f", "canary-wrong-8d1f", "canary-answer-8d1f"


@contextlib.contextmanager
def logged(
    level: log.Level, form: log_lines.Format, path: str = "", *, prompts: bool = False
) -> Generator[io.StringIO, None, None]:
    """Keep what is logged meanwhile."""
    output, before = io.StringIO(), sys.stderr
    sys.stderr = output
    log.configure(level, form, path, log_prompts=prompts)
    try:
        yield output
    finally:
        sys.stderr = before
        log.configure("WARNING", "console")


def messages(text: str) -> list[dict[str, Any]]:
    """Return messages with the text in every field that takes one, and in those that are none."""
    return [
        {
            "type": "start_session",
            "session_id": text[:60],
            "last_seq": 0,
            "config": {"system_prompt": text, "stop": [text[:90]]},
        },
        {"type": text},
        {"type": "cancel", text: text},
        {"type": "update_config", "config": {text: 1, "model": text}},
        {"type": "update_config", "config": {"model": text, "on_busy": text, "events": [text]}},
        {"type": "update_config", "config": {"tools": [{"function": {"name": text, "parameters": {text: text}}}]}},
        {"type": "update_config", "config": {"speech": {"voice": text, "language": text}}},
        {"type": "tool_result", "id": text, "content": text},
        {"type": "partial_message", "text": text},
        {"type": "played", "chars": text},
        {"type": "user_message", "text": text, "id": text[:60]},
    ]


async def talk(live: Live, text: str, **options: Any) -> list[str]:
    """Say the text in every way there is, and return what was answered."""
    heard = []
    async with live.connect(**options) as socket:
        for message in messages(text):
            await socket.send(json.dumps(message))
        await socket.send(text)
        await socket.send(text.encode("utf-8", "replace"))
        await send(socket, "end_session")
        async with asyncio.timeout(20):
            while '"session_ended"' not in (frame := str(await socket.recv())):
                heard.append(frame)
    return heard


class Quoting(ScriptedEngine):
    """Fails every second time, as libraries do: with an exception that quotes what it choked on."""

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        if len(self.requests) % 2:
            self.requests.append(request)
            try:
                raise ValueError(f"cannot parse {request.messages[-1].content!r}")  # noqa: TRY301 - with a cause
            except ValueError as error:
                raise RuntimeError(f"failed at {request.messages}") from error
        return await super().generate(request, sink)


@pytest.mark.parametrize("evil", [EVIL, FORGED], ids=["controls", "forged"])
@pytest.mark.parametrize("form", ["json", "console"])
async def test_injection(form: log_lines.Format, evil: str, tmp_path: Path) -> None:
    """With controls in every field, header and query, each line of the log is one line still, and of JSON parses."""
    with logged("DEBUG", form, str(tmp_path), prompts=True) as output:
        async with live_service(Quoting(lambda _: [evil] * 3, models=())) as live:
            for _ in range(2):
                await talk(live, evil)
            one_line = evil.replace("\r", "").replace("\n", "").replace("\x00", "")
            for name in (
                "User-Agent",
                "Origin",
                "X-API-Key",
                "Authorization",
                "Sec-WebSocket-Protocol",
                "X-Forwarded-For",
            ):
                await exchange(live.port, upgrade({name: one_line}))
                await exchange(live.port, upgrade({name: evil}))
            for target in (f"/{one_line}", f"/health?{one_line}", "/%0d%0a%1b[2J", "/health?x=%0d%0aforged"):
                await exchange(live.port, head(target.replace(" ", ""), [("Connection", "close")]))
                await exchange(live.monitoring_port, head(target.replace(" ", ""), [("Connection", "close")]))
            await exchange(live.port, evil.encode() * 3 + b"\r\n\r\n")
    lines = output.getvalue().splitlines()
    file = (tmp_path / "llm-service.log").read_text(encoding="utf-8")
    assert ("forged" if evil is FORGED else "owned") in output.getvalue()  # said, and logged as the settings want
    assert set() == CONTROLS & set(output.getvalue() + file)
    for line in [*file.splitlines(), *(lines if form == "json" else [])]:
        assert "forged" != json.loads(line)["event"]
    assert not any(line.startswith(("2026-01-01", "forged", "{")) for line in (lines if form == "console" else []))


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
async def test_canaries(level: log.Level, tmp_path: Path) -> None:
    """A key and a prompt that are said in every way, through failures of all kinds, are in no log, metric or trace."""
    faults = [Fault(1, EngineUnreachable("the engine broke the connection"))]
    engine = Quoting(lambda _: [ANSWER] * 5, models=(), faults=faults)
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}-file\n")
    environment = {"API_KEYS": KEY, "API_KEYS_FILE": str(keys), "OPENAI_API_KEY": KEY, "TTS_API_KEY": KEY}
    with logged(level, "json", str(tmp_path)) as output:
        async with live_service(engine, environment) as live:
            answers = []
            for name in (KEY, f"{KEY}-file"):
                for _ in range(3):
                    answers += await talk(live, PROMPT, additional_headers={"Authorization": f"Bearer {name}"})
            for headers in ({"X-API-Key": WRONG}, {"Authorization": f"Bearer {WRONG}"}):
                with pytest.raises(InvalidHandshake):
                    await live.connect(additional_headers=headers)
            async with live.connect() as socket:
                await send(socket, "start_session", api_key=WRONG)
                answers.append(str(await socket.recv()))
            await exchange(live.port, upgrade(target=f"/ws/llm?api_key={KEY}&prompt={PROMPT}"))
            reader, writer = await open_raw(live.port, {"X-API-Key": KEY, "Cookie": f"session={KEY}"})
            writer.write(frame(PROMPT.encode() + b"\xff"))
            await to_the_end(reader)
            writer.close()
            keys.write_text(f"{KEY} {KEY}\n")
            reports = await _reports(live)
    text = output.getvalue() + (tmp_path / "llm-service.log").read_text(encoding="utf-8")
    assert text.count("\n") > 40
    assert "response_crashed" in text  # so that there were traces
    found = {canary: text.count(canary) + reports.count(canary) for canary in (KEY, PROMPT, WRONG, ANSWER)}
    assert dict.fromkeys(found, 0) == found
    errors = [answer for answer in answers if '"type":"error"' in answer]
    assert errors
    assert not any(KEY in answer or WRONG in answer for answer in answers)
    # An error may name a key or model that its own client sent, and never quotes a message or a prompt.
    internal = [answer for answer in errors if '"internal_error"' in answer]
    assert internal
    assert not any(PROMPT in json.loads(answer)["error"]["message"] for answer in internal)
    print(f"\n{text.count(chr(10))} log lines at {level}, {len(errors)} errors: 0 canaries")


async def _reports(live: Live) -> str:
    """Return what the ports tell, and what the objects say of themselves in a debugger or a trace."""
    async with httpx.AsyncClient(trust_env=False) as http:
        urls = [live.url + path for path in ("/", "/health", "/stats", "/openapi.json")]
        urls += [live.monitoring_url + path for path in ("/health", "/health/ready", "/metrics", "/info")]
        bodies = [(await http.get(url)).text for url in urls]
    service = live.service
    objects = [
        service.settings,
        service.access,
        service.manager,
        service.resumption,
        *service.connections,
        service.rates,
    ]
    return "\n".join([*bodies, *map(repr, objects)])


def test_libraries_are_not_heard_below_info() -> None:
    """At DEBUG the service's own lines come, and none of the libraries', which write frames and headers."""
    with logged("DEBUG", "json") as output:
        for name in ("websockets.server", "uvicorn.error", "httpx", "httpcore.http11", "asyncio", "redis", "hpack"):
            logging.getLogger(name).debug("%s", PROMPT)
            logging.getLogger(name).setLevel(logging.DEBUG)
            logging.getLogger(name).debug("%s", PROMPT)
    assert "" == output.getvalue()
