"""Model names that are paths (Ollama CVE-2024-37032, CVE-2026-7020), and the engine's management."""

from itertools import islice, product

import pytest

from tests.live import Live, ask, receive, send, start
from tests.security.raw import exchange, head
from tests.security.test_parameters import asked, engine_and_service

BASES = [
    "../../../../etc/passwd",
    "..\\..\\..\\windows\\win.ini",
    "/etc/shadow",
    "file:///etc/passwd",
    "C:\\boot.ini",
    "~/.ssh/id_rsa",
    "....//....//etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%252f..%252fetc",
    "..%c0%af..%c0%afetc",
    "models/../../secret.gguf",
    "/proc/self/environ",
    "\\\\evil.org\\share\\x.gguf",
    "http://evil.org/x.gguf",
    "evil/repo:x.gguf",
    "hf.co/evil/repo",
    "registry.evil.org/library/x",
    "sha256:../../../../root",
    "sha256-0",
    "test/../test",
    "./test",
    "test/.",
    "$(touch x)",
    "`id`",
    "; rm -rf /",
    "| cat /etc/passwd",
    "{{7*7}}",
    "${jndi:ldap://evil.org/a}",
    "' OR '1'='1",
]
WRAPS = [
    "{}",
    "test{}",
    "test:{}",
    "test/{}",
    "{}:latest",
    "{}\x00",
    "{}\n",
    "{}%00.gguf",
    " {}",
    "{} ",
    "{}\u202e",
    "library/{}",
    "{}.gguf",
    "TEST{}",
    "\ufeff{}",
    "{}#",
    "{}?",
]
PAYLOADS = sorted({wrap.format(base) for wrap, base in islice(product(WRAPS, BASES), 505)})
ROUTES = [
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/delete",
    "/api/copy",
    "/api/show",
    "/api/tags",
    "/api/ps",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/blobs/sha256:x",
    "/api/version",
    "/slots",
    "/slots/0?action=save",
    "/props",
    "/lora-adapters",
    "/metrics",
    "/completion",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/reset_prefix_cache",
    "/v1/unload_lora_adapter",
    "/sleep",
    "/wake_up",
    "/collective_rpc",
    "/server_info",
    "/admin",
    "/shutdown",
    "/debug",
    "/config",
    "/.env",
    "/../.env",
    "/%2e%2e/.env",
    "/static/../../main.py",
    "/etc/passwd",
]


async def test_500_payloads() -> None:
    """Only a model that is offered may be named: of the others none reaches the engine, in a start or an update."""
    assert 500 <= len(PAYLOADS)
    async with engine_and_service("ollama", MAX_INVALID_MESSAGES="100000") as (fake, live), live.connect() as socket:
        await start(socket)
        for number, payload in enumerate(PAYLOADS):
            kind = "update_config" if number % 2 else "start_session"
            await send(socket, kind, config={"model": payload})
            error = (await receive(socket))["error"]
            assert "invalid_config" == error["code"], payload
            assert error["message"].isprintable()
        assert "yes" == (await ask(socket, "hi")).text
        assert {"test"} == {body["model"] for body in asked(fake)}
        assert not any("model" in exchange.path for exchange in fake.exchanges)
        print(f"\n{len(PAYLOADS)} names of other models: 0 reached the engine")


@pytest.mark.parametrize("provider", ["ollama", "openai"])
async def test_management_is_not_for_clients(provider: str) -> None:
    """No route of the engine is to be had through either port, with any method (Ollama CVE-2025-63389)."""
    async with engine_and_service(provider) as (fake, live):
        before = [exchange.path for exchange in fake.exchanges]
        answers = [
            (route, method, await _status(live, port, method, route))
            for route in ROUTES
            for method in ("GET", "POST", "PUT", "DELETE")
            for port in (live.port, live.monitoring_port)
            if (route, port) != ("/metrics", live.monitoring_port)
        ]
        assert {404} == {status for _, _, status in answers}, [each for each in answers if each[2] != 404]
        later = {exchange.path for exchange in fake.exchanges[len(before) :]}
        assert later <= {"/v1/models", "/api/version", "/api/tags", "/"}  # our own look at its health
        print(f"\n{len(answers)} requests for the engine's own routes: 0 passed on")


async def _status(live: Live, port: int, method: str, route: str) -> int:
    answer = await exchange(port, head(route, [("Content-Length", "0"), ("Connection", "close")], method=method))
    return int(answer.split(b" ", 2)[1])


async def test_the_files_are_not_served() -> None:
    """What the tests above ask for is on this machine, and no answer holds any of it."""
    async with engine_and_service("openai") as (_, live):
        for route in (
            "/etc/passwd",
            "//etc/passwd",
            "/../../../../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/..%2f..%2fetc/passwd",
        ):
            assert b"root:" not in await exchange(live.port, head(route, [("Connection", "close")]))
