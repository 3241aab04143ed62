"""The monitoring application, on its own port: for probes and Prometheus, not for users."""

from typing import Any

import psutil
import structlog
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from llm_service import __version__
from llm_service.metrics import CONTENT_TYPE, render
from llm_service.request_limits import RequestLimits
from llm_service.service import Service

BUSY_PERCENT = 90.0

_log = structlog.get_logger(__name__)


def create_monitoring_app(service: Service) -> FastAPI:
    """Make the application of the monitoring port; it answers from the moment the process runs."""
    app = FastAPI(title="FastTalk LLM Service: monitoring", version=__version__)
    app.add_middleware(
        RequestLimits,
        allows_host=service.access.allows_host,
        max_body_bytes=service.settings.max_body_bytes,
        # Not among the errors of clients: nobody is served here.
        refused=lambda error: _log.info("monitoring_request_refused", code=error.code),
    )

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Tell how the process is, in FastTalk 1.x's shape."""
        return _health(service)

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """Answer while the event loop runs; a process that does not answer wants a restart."""
        return {"status": "live"}

    @app.get("/health/ready", responses={503: {"description": "starting, stopping, or the engine does not answer"}})
    async def ready() -> JSONResponse:
        """Tell whether a new session would be answered: 200 or 503."""
        if service.ready:
            return JSONResponse({"status": "ready"})
        problem = service.health.problem if service.state == "ready" else f"the service is {service.state}"
        return JSONResponse({"status": "not_ready", "reason": problem}, status_code=503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Prometheus text, of all workers together."""
        return Response(render(service.exposed), media_type=CONTENT_TYPE)

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """Tell what runs here."""
        return service.info()

    return app


def _health(service: Service) -> dict[str, Any]:
    memory = psutil.virtual_memory()
    cpu_percent = psutil.cpu_percent()
    warnings = []
    if cpu_percent > BUSY_PERCENT:
        warnings.append(f"the CPU is used to {cpu_percent:.0f} %")
    if memory.percent > BUSY_PERCENT:
        warnings.append(f"the memory is used to {memory.percent:.0f} %")
    body: dict[str, Any] = {
        "status": "healthy" if service.ready else service.state if service.state != "ready" else "degraded",
        "uptime_seconds": service.uptime_seconds,
        "system": {
            "cpu_percent": cpu_percent,
            "memory_percent": memory.percent,
            "memory_available_gb": round(memory.available / 2**30, 2),
        },
        "metrics": {},
    }
    if service.state != "starting":
        totals = service.manager.totals()
        body["metrics"] = {
            "requests": totals.messages_received,
            "generations": totals.generations_completed,
            "errors": totals.errors,
            "total_tokens_generated": totals.tokens_generated,
        }
    if warnings:
        body["warnings"] = warnings
    return body
