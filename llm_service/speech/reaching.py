"""Finds out whether anybody listens at an address, without asking for anything."""

import asyncio

import httpx

from llm_service.errors import SpeechUnavailable

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


async def reach(url: str, address: str, *, timeout: float) -> None:  # noqa: ASYNC109 - of the connection alone
    """Connect by TCP within `timeout` seconds, and close again; `address` names the peer in errors.

    Raises:
        SpeechUnavailable: nobody listens there.
    """
    parts = httpx.URL(url)
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(parts.host, parts.port or _PORTS.get(parts.scheme, 80))
    except (OSError, TimeoutError):
        raise SpeechUnavailable(f"{address} can't be connected to; check that it runs, and TTS_ENDPOINTS") from None
    writer.close()
