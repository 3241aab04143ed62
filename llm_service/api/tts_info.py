"""`/debug/tts-info`: what is known of the TTS servers, in the shape of the mega-service whose pages ask for it.

Nothing is synthesised for it, and nobody is asked: it tells the last probes and the last chunks.
"""

from time import monotonic
from typing import Any

from fastapi import APIRouter, Request

from llm_service.service import Service
from llm_service.speech.endpoints import Endpoint

router = APIRouter(tags=["speech"])


@router.get("/debug/tts-info")
async def tts_info(request: Request) -> dict[str, Any]:
    """Tell which TTS servers there are, whether they answer, and how their last chunk went."""
    service: Service = request.app.state.service
    endpoints = service.speech.all
    if not endpoints:
        return {"status": "error", "error": "no TTS is configured: set TTS_ENDPOINTS", "endpoints": {}}
    best = next((endpoint for endpoint in endpoints if endpoint.healthy), endpoints[0])
    return {
        "base_url": best.synthesizer.url,
        "status": "online" if best.healthy else "error",
        "health_check": {"healthy": best.healthy, "problem": best.problem},
        "test_request": {"result": best.last_result},
        "endpoints": {endpoint.name: _told(endpoint) for endpoint in endpoints},
    }


def _told(endpoint: Endpoint) -> dict[str, Any]:
    # The page takes a TTS for working by this word, which may be said of one that answers and was not asked yet.
    working = endpoint.healthy and endpoint.breaker.state != "open"
    return {
        "kind": endpoint.synthesizer.kind,
        "url": endpoint.synthesizer.url,
        "formats": sorted(endpoint.synthesizer.formats),
        "healthy": endpoint.healthy,
        "problem": endpoint.problem,
        "circuit_breaker": endpoint.breaker.statistics(monotonic()),
        "last_chunk": endpoint.last_result,
        "post_status": {"result": "WORKING" if working else endpoint.problem or "resting after failures"},
    }
