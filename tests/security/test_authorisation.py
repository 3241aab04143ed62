"""Authorisation is asked for each message (open-webui CVE-2026-44564), of whoever comes back as well."""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncGenerator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from llm_service import access
from llm_service.config import Settings
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import ConfigurationError
from tests.live import Live, ask, live_service, receive, send, start
from tests.security.raw import status, upgrade
from tests.talk import history, scripted, text

KEYS = {"API_KEYS": "anna,bert", "GREETING_DELAY_MS": "60000", "LLM_MAX_CONNECTIONS": "100"}
RESUMES = 1000


def bearer(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


@pytest.fixture
def engine() -> ScriptedEngine:
    return scripted(10_000)


@pytest.fixture
async def live(engine: ScriptedEngine) -> AsyncGenerator[Live, None]:
    async with live_service(engine, KEYS) as running:
        yield running


async def code_of(socket: ClientConnection, message: dict[str, Any]) -> str:
    """Say something first; returns the code of the error that answers it and closes the connection."""
    await socket.send(json.dumps(message))
    code: str = (await receive(socket))["error"]["code"]
    with pytest.raises(ConnectionClosed) as closed:
        await receive(socket)
    assert closed.value.rcvd is not None
    assert 3500 == closed.value.rcvd.code
    return code


@pytest.mark.parametrize(
    "message",
    [
        {"type": "user_message", "text": "a 1"},
        {"type": "cancel"},
        {"type": "end_session"},
        {"type": "update_config", "config": {"system_prompt": "mine"}},
        {"type": "played", "chars": 1},
        {"type": "partial_message", "text": "a"},
        {"type": "tool_result", "id": "x", "content": "y"},
        {"type": "start_session"},
        {"type": "start_session", "api_key": ""},
        {"type": "start_session", "api_key": "ANNA"},
        {"type": "start_session", "api_key": "anna "},
        {"type": "start_session", "api_key": "anna,bert"},
    ],
    ids=lambda message: f"{message['type']} {message.get('api_key', '')}",
)
async def test_nothing_without_a_key(live: Live, engine: ScriptedEngine, message: dict[str, Any]) -> None:
    """Whatever a client says first, without a key it is answered by the error alone, and closed."""
    async with live.connect() as socket:
        assert "unauthorized" == await code_of(socket, message)
    assert [] == engine.requests


@pytest.mark.parametrize("session", ["resting", "in use"])
async def test_one_key_on_anothers_session(live: Live, engine: ScriptedEngine, session: str) -> None:
    """With another key nothing can be done to a session: not read, not told, not cancelled, changed, ended or taken."""
    mine = await live.connect(**bearer("anna"))
    session_id = (await start(mine, system_prompt="anna's"))["session_id"]
    assert text("a", 2) == (await ask(mine, "a 2")).text
    if session == "resting":
        mine.transport.abort()
        await mine.wait_closed()
    for last_seq in (0, 1, 3, None):
        async with live.connect(**bearer("bert")) as thief:
            fields = {} if last_seq is None else {"last_seq": last_seq}
            await send(thief, "start_session", session_id=session_id, **fields)
            answer = await receive(thief)
            assert not answer["resumed"]
            assert session_id != answer["session_id"]
            await send(thief, "update_config", config={"system_prompt": "bert's"})
            assert "session_configured" == (await receive(thief))["type"]
            await send(thief, "cancel")
            assert "cancelled" == (await receive(thief))["type"]
            assert text("b", 1) == (await ask(thief, "b 1")).text
            assert [("user", "b 1")] == history(engine)
            await send(thief, "end_session")
            assert "session_ended" == (await receive(thief))["type"]
    if session == "resting":
        mine = await live.connect(**bearer("anna"))
        await send(mine, "start_session", session_id=session_id, last_seq=4)
        assert (await receive(mine))["resumed"]
    assert text("a", 1) == (await ask(mine, "a 1")).text
    assert ["a 2", "a 1"] == [said for role, said in history(engine) if role == "user"]
    assert "anna's" == engine.requests[-1].messages[0].content
    await mine.close()


async def test_a_thousand_stolen_sessions(live: Live) -> None:
    """A thousand attempts to resume with another key, a wrong one, one that was revoked, or none: none succeeds."""
    live.service.access.change_keys(["gone"])
    live.service._use_keys([])
    async with live.connect(**bearer("anna")) as mine:
        session_id = (await start(mine))["session_id"]
        await ask(mine, "a 1")
    attempts = cycle([bearer("bert"), {}, bearer("wrong"), bearer("gone")])
    taken, refused = 0, Counter[int]()
    for number in range(RESUMES):
        try:
            async with live.connect(**next(attempts)) as thief:
                await send(thief, "start_session", session_id=session_id, last_seq=number % 5)
                answer = await receive(thief)
                taken += answer.get("resumed", False) or answer.get("session_id") == session_id
        except InvalidStatus as error:
            refused[error.response.status_code] += 1
    assert {401: RESUMES // 2} == refused
    assert 0 == taken
    print(f"\n{RESUMES} attempts to resume a stolen session: {taken} succeeded")


async def test_a_key_does_not_change(live: Live, engine: ScriptedEngine) -> None:
    """A connection keeps the key it came with: another in a later message is no way to another's sessions."""
    async with live.connect(**bearer("anna")) as mine:
        session_id = (await start(mine))["session_id"]
        await ask(mine, "a 1")
        async with live.connect(**bearer("bert")) as thief:
            await start(thief)
            await send(thief, "start_session", session_id=session_id, last_seq=1, api_key="anna")
            assert session_id != (await receive(thief))["session_id"]


async def test_a_wrong_key_in_the_header_is_not_mended(live: Live) -> None:
    """A handshake with a wrong key is refused with 401, whatever a message could bring later."""
    for headers in (
        {"Authorization": "Bearer wrong"},
        {"X-API-Key": "wrong"},
        {"Sec-WebSocket-Protocol": "fasttalk, fasttalk.api-key.wrong"},
    ):
        assert 401 == await status(live.port, upgrade(headers))


@pytest.mark.parametrize("name", ["api_key", "token", "key", "access_token", "authorization"])
async def test_no_key_in_the_query(live: Live, engine: ScriptedEngine, name: str) -> None:
    """A key in the URL, where every proxy's log has it, opens nothing."""
    async with connect(f"{live.ws_url}?{name}=anna", compression=None, proxy=None) as socket:
        assert "unauthorized" == await code_of(socket, {"type": "start_session"})
    assert [] == engine.requests


async def test_what_is_kept_of_a_key(live: Live) -> None:
    """With a session only a digest of its key is kept, and nothing else in its objects holds the key."""
    async with live.connect(**bearer("anna")) as socket:
        await start(socket)
        async with asyncio.timeout(5):
            while not live.service.connections:
                await asyncio.sleep(0.005)
        (connection,) = live.service.connections
        assert hashlib.sha256(b"anna").hexdigest() == connection.live.key
        kept = [repr(vars(connection)), repr(live.service.access), repr(vars(live.service.access))]
        assert not any("anna" in each for each in kept)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key is compared with every one of ours by hmac.compare_digest, whichever matches."""
    compared: list[int] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return one == other

    monkeypatch.setattr("llm_service.access.hmac.compare_digest", compare_digest)
    policy = access.AccessPolicy(api_keys=["anna", "bert", "cleo"], port=8000)
    found = [policy.accepts_key(key) for key in ("anna", "bert", "cleo", "dora", "x" * 10_000)]
    assert [True, True, True, False, False] == found
    assert [32] * 15 == compared


@pytest.mark.parametrize(
    "environment",
    [
        {"API_KEYS": ","},
        {"API_KEYS": "one,,two"},
        {"API_KEYS": "two words"},
        {"API_KEYS": "schlüssel"},
        {"ALLOWED_ORIGINS": "app.example.com"},
        {"ALLOWED_ORIGINS": "https://app.example.com/path"},
        {"ALLOWED_HOSTS": "https://app.example.com"},
        {"OLLAMA_BASE_URL": "file:///etc/passwd"},
        {"OPENAI_BASE_URL": "http://engine/v1?key=x"},
        {"MESSAGE_RATE": "nan"},
        {"MAX_BODY_BYTES": "0"},
    ],
    ids=str,
)
def test_insecure_settings_fail_loudly(environment: dict[str, str]) -> None:
    """A setting that does not protect as its author believes stops the start, and names the variable."""
    with pytest.raises(ConfigurationError, match=next(iter(environment))):
        Settings.load(environment)


def test_nobody_else_reads_keys() -> None:
    """Of all modules only those that let clients in, or bring our own key to our own address, look at API_KEYS."""
    package = Path(access.__file__).parent
    holding = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "api_keys" in path.read_text(encoding="utf-8") and "params.api_keys" not in path.read_text(encoding="utf-8")
    }
    assert {"access.py", "cli.py", "config.py", "key_file.py", "log_lines.py", "service.py"} == holding
