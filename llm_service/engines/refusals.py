"""What an engine says when it refuses: error statuses and error bodies become our errors by one table."""

import re
import unicodedata

import msgspec

from llm_service.errors import EngineError, EngineRejected, EngineUnreachable, GenerationFailed

# What msgspec raises for bytes that are not the JSON asked for.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_MAX_QUOTED = 300
_KIND = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Refusal(msgspec.Struct, frozen=True):
    """An answer with an error status.

    `text` is the engine's own message, cut and without control characters; it may hold parts of the prompt
    unless the engine is known never to put them there. `kind` is its machine-readable type, if any.
    """

    status: int
    text: str = ""
    kind: str = ""
    retry_after: float | None = None


def refused(refusal: Refusal, engine: str, *, quote: bool) -> EngineError:
    """Return our error for an error status; with `quote` the engine's own message is part of it."""
    status, said = refusal.status, ""
    if refusal.text and quote:
        said = f": {refusal.text}"
    elif refusal.kind:
        said = f" ({refusal.kind})"
    if status in (401, 403):
        return EngineRejected(f"{engine} denied access (HTTP {status}): check the API key in the settings.")
    if status in (429, 503):
        return EngineUnreachable(f"{engine} is busy (HTTP {status}){said}", retry_after=refusal.retry_after)
    if status < 400:
        return EngineRejected(f"{engine} redirects elsewhere (HTTP {status}): put the final URL into the settings.")
    kind = EngineRejected if status < 500 else GenerationFailed
    return kind(f"{engine} answered HTTP {status}{said}", retry_after=refusal.retry_after)


def cleaned(text: str) -> str:
    """Cut a foreign message to a line of at most 300 characters without control characters."""
    line = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in text[: 4 * _MAX_QUOTED])
    return " ".join(line.split())[:_MAX_QUOTED]


def error_fields(body: bytes) -> tuple[str, str]:
    """Find message and machine-readable type in an error's JSON, in each of the shapes engines use.

    Ollama: {"error": "..."}; OpenAI, llama-server: {"error": {"message", "type", "code"}}; vLLM: both that and
    the inner object alone. What is none of these gives two empty strings.
    """
    try:
        document = msgspec.json.decode(body)
    except UNREADABLE:
        return "", ""
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, str):
        return cleaned(error), ""
    if not isinstance(error, dict):
        return "", ""
    message = error.get("message")
    kinds = (error.get("type"), error.get("code"))
    kind = next((kind for kind in kinds if isinstance(kind, str) and _KIND.fullmatch(kind)), "")
    return cleaned(message) if isinstance(message, str) else "", kind


def retry_after(value: str) -> float | None:
    """Read a Retry-After header of seconds; None for one that is a date, absurd or empty."""
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else None
