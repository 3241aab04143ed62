"""The application on its own, as another ASGI server would run it."""

import subprocess
import sys

import httpx

from llm_service.config import Settings
from llm_service.server import create_app
from tests.processes import ROOT

SAYS = """
import structlog
from llm_service.config import Settings
from llm_service.server import create_app
create_app(Settings.load({"LLM_PROVIDER": "scripted"}))
structlog.get_logger("llm_service.x").info("response", prompt="canary", answer="canary")
"""


def test_its_log_says_nothing_of_what_users_say() -> None:
    """Within another program as well: the settings decide, and not structlog's own."""
    command = [sys.executable, "-c", SAYS]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    said = found.stdout + found.stderr
    assert "response" in said
    assert "canary" not in said


async def test_it_opens_and_closes_its_engine() -> None:
    """Within its lifespan the application answers; it brings the engine up and down itself."""
    app = create_app(Settings.load({"LLM_PROVIDER": "scripted"}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        health = await client.get("/health")
        assert (200, "scripted") == (health.status_code, health.json()["model"])
    assert "stopped" == app.state.service.state
