"""The application on its own, as another ASGI server would run it."""

import httpx

from llm_service.config import Settings
from llm_service.server import create_app


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
