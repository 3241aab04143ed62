"""The main application: routes and lifespan."""

import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from llm_service import __version__, log
from llm_service.api import health, llm_socket, tts_info
from llm_service.chunk_hook import OnChunk
from llm_service.config import Settings
from llm_service.request_limits import RequestLimits
from llm_service.service import Service


def create_app(settings: Settings, *, on_chunk: OnChunk | None = None) -> FastAPI:
    """Make the application of the main port; it opens its engine at start-up and closes it at shutdown.

    `on_chunk` gets each chunk of the sessions that are spoken (`config.speech`): a function, `async` or not.

    Any ASGI server can run it; `llm_service.serving` runs it under uvicorn with the limits that the service
    promises. The log is set up by the settings, which keep what users say out of it, unless structlog is
    configured already.
    """
    if not structlog.is_configured():
        log.configure(settings.log_level, settings.log_format, settings.log_path, log_prompts=settings.log_prompts)
    return create_app_for(Service(settings, on_chunk=on_chunk))


def create_app_for(service: Service) -> FastAPI:
    """Make the application around a service; a service that runs already is left running."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service if service.state == "starting" else contextlib.nullcontext():
            yield

    app = FastAPI(
        title="FastTalk LLM Service",
        description="The WebSocket `/ws/llm` is described by docs/asyncapi.yaml; these are the HTTP routes beside it.",
        version=__version__,
        lifespan=lifespan,
    )
    app.state.service = service
    if service.settings.allowed_origins:
        # Pages that may talk may also look at /health and /stats; no others can read them.
        app.add_middleware(CORSMiddleware, allow_origins=service.settings.allowed_origins, allow_methods=["GET"])
    app.add_middleware(
        RequestLimits,
        allows_host=service.access.allows_host,
        max_body_bytes=service.settings.max_body_bytes,
        refused=service.note_error,
    )
    app.include_router(health.router)
    app.include_router(tts_info.router)
    app.include_router(llm_socket.router)
    return app
