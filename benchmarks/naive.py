"""A peer: the relay most people would write first, with FastAPI, uvicorn's defaults and httpx.

python -m benchmarks.naive --port PORT --engine-port PORT
"""

import argparse
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect


def create_app(engine_url: str) -> FastAPI:
    """Relay `/ws/llm` to an Ollama."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Without these limits httpx lets a hundred streams run and the others wait.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=engine_url, timeout=600, limits=limits, trust_env=False) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/ws/llm")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                message = await socket.receive_json()
                if message["type"] == "start_session":
                    await socket.send_json({"type": "session_started"})
                else:
                    await _answer(socket, message["text"])

    return app


async def _answer(socket: WebSocket, text: str) -> None:
    body = {"model": "bench", "messages": [{"role": "user", "content": text}], "stream": True}
    async with socket.app.state.client.stream("POST", "/api/chat", json=body) as response:
        async for line in response.aiter_lines():
            part = json.loads(line)
            if part["done"]:
                await socket.send_json({"type": "response_complete"})
            else:
                await socket.send_json({"type": "token", "data": part["message"]["content"]})


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description="A naive relay.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine-port", type=int, required=True)
    options = parser.parse_args()
    app = create_app(f"http://127.0.0.1:{options.engine_port}")
    uvicorn.run(app, host="127.0.0.1", port=options.port, ws="websockets", log_level="warning", backlog=4096)


if __name__ == "__main__":
    main()
