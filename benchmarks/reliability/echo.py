"""Says back what it is told, behind the very server that the service runs under: what RFC 6455 asks of it can be tried.

    python -m benchmarks.reliability.echo

It prints its port.
"""

import uvloop
from starlette.types import Receive, Scope, Send

from llm_service.config import Settings
from llm_service.serving import QuietServer, bind, main_config


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message back."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def _serve() -> None:
    # The largest message that is tried, where the cases about limits and performance are left out.
    settings = Settings.load({"MAX_MESSAGE_BYTES": "1048576"})
    with bind("127.0.0.1", 0, setting="LLM_PORT") as listener:
        print(listener.getsockname()[1], flush=True)
        await QuietServer(main_config(echo, settings)).serve(sockets=[listener])


if __name__ == "__main__":
    uvloop.run(_serve())
