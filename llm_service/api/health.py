"""`/`, `/health` and `/stats` on the main port, in FastTalk 1.x's and 2.x's shape."""

from time import monotonic
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from llm_service import __version__
from llm_service.service import Service

router = APIRouter(tags=["health"])


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/")
async def root(request: Request) -> dict[str, Any]:
    """Say what this is."""
    service = _service(request)
    return {
        "service": "FastTalk LLM Service",
        "status": service.state,
        "version": __version__,
        "provider": service.opened.provider,
        "model": service.opened.model,
        "websocket": "/ws/llm",
    }


@router.get("/health", responses={503: {"description": "the engine does not answer, or the service is stopping"}})
async def health(request: Request) -> JSONResponse:
    """Tell whether a new session would be answered: 200 or 503."""
    service = _service(request)
    opened, reachable = service.opened, service.health.reachable
    body = {
        "status": "healthy" if service.ready else "degraded",
        "provider": opened.provider,
        "provider_reason": opened.reason,
        "model": opened.model,
        "ollama_connection": reachable and opened.provider == "ollama",
        "backend_connection": reachable,
        "problem": service.health.problem,
        "active_connections": service.manager.active_connections,
        "active_sessions": service.manager.active_sessions,
    }
    return JSONResponse(body, status_code=200 if service.ready else 503)


@router.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    """Tell what this process did since it started."""
    service = _service(request)
    now = monotonic()
    engines = service.engines
    body = service.manager.statistics(now, circuit_breakers=engines.breakers(now))
    return {"provider": service.opened.provider} | body | engines.statistics(now)
