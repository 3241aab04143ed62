"""What the fake engine says, byte by byte: Ollama's NDJSON and OpenAI's server-sent events.

The bytes of every word are made once, so that the engine's own work is a write.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.script import VOCABULARY

_STAMP = "2026-01-01T00:00:00.123456789Z"


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of the two protocols: a chunk of the transfer encoding for each word of the vocabulary, and the rest.

    `faults` are ends that are none, by their names in scripts.
    """

    content_type: str
    first: bytes
    words: tuple[bytes, ...]
    space: bytes
    faults: Mapping[str, bytes]


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_END = b"0\r\n\r\n"


def _ollama_line(**fields: Any) -> bytes:
    return _dump({"model": "bench", "created_at": _STAMP, **fields}) + b"\n"


def _sse(value: object) -> bytes:
    return b"data: " + _dump(value) + b"\n\n"


def _openai_chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _sse({**_OPENAI_HEAD, "choices": [choice], "usage": None})


_OPENAI_HEAD = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1767225600, "model": "bench"}

OLLAMA = Dialect(
    content_type="application/x-ndjson",
    first=b"",
    words=tuple(
        _chunk(_ollama_line(message={"role": "assistant", "content": word}, done=False)) for word in VOCABULARY
    ),
    space=_chunk(_ollama_line(message={"role": "assistant", "content": " "}, done=False)),
    faults={
        "error": _chunk(_dump({"error": "the runner was told to fail"}) + b"\n") + _END,
        "garbage": _chunk(b'{"model": "bench", "message": {\n') + _END,
        "end": _END,
    },
)
OPENAI = Dialect(
    content_type="text/event-stream",
    first=_chunk(_openai_chunk({"role": "assistant", "content": ""})),
    words=tuple(_chunk(_openai_chunk({"content": word})) for word in VOCABULARY),
    space=_chunk(_openai_chunk({"content": " "})),
    faults={
        "error": _chunk(
            _sse({"error": {"message": "the engine was told to fail", "type": "server_error", "code": 500}})
        )
        + _END,
        "garbage": _chunk(b'data: {"choices": [\n\n') + _END,
        "end": _END,
    },
)


def rest(dialect: Dialect, chunks: list[bytes], said: str) -> list[bytes]:
    """Return what is left of an answer whose beginning, without the space behind it, was said already."""
    return [dialect.space, *chunks[said.count(" ") + 1 :]] if said else chunks


def pieces(chunk: bytes) -> list[bytes]:
    """Return the chunk of a word as several, cut within each character of several bytes, and once in the middle."""
    data = chunk.partition(b"\r\n")[2].removesuffix(b"\r\n")
    within = [place for place in range(1, len(data)) if data[place] & 0xC0 == 0x80]
    places = sorted({0, len(data) // 2, *within, len(data)})
    return [_chunk(data[begin:end]) for begin, end in pairwise(places)]


def stream_head(dialect: Dialect) -> bytes:
    """Return the status line and headers of a stream, and what comes before its first word."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {dialect.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + dialect.first


def stream_tail(dialect: Dialect, words: int, prompt_tokens: int) -> bytes:
    """Return the end of a stream of so many words."""
    if dialect is OLLAMA:
        counts = {"prompt_eval_count": prompt_tokens, "eval_count": words, "eval_duration": 1_000_000}
        done = _ollama_line(message={"role": "assistant", "content": ""}, done=True, done_reason="stop", **counts)
        return _chunk(done) + _END
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": words, "total_tokens": prompt_tokens + words}
    last = _chunk(_openai_chunk({}, "stop")) + _chunk(_sse({**_OPENAI_HEAD, "choices": [], "usage": usage}))
    return last + _chunk(b"data: [DONE]\n\n") + _END


def whole_answer(dialect: Dialect, text: str) -> bytes:
    """Return an answer that was not to be streamed."""
    message = {"role": "assistant", "content": text}
    if dialect is OLLAMA:
        return _ollama_line(message=message, done=True, done_reason="stop", prompt_eval_count=20, eval_count=1)
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return _dump({**_OPENAI_HEAD, "object": "chat.completion", "choices": [choice], "usage": usage})


def document(body: bytes, content_type: str = "application/json", *, status: str = "200 OK") -> bytes:
    """Return a whole response."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def rendered(last: str) -> bytes:
    """Return what llama-server says of a prompt that ends with this message, which it leaves open."""
    return document(_dump({"prompt": last}))


LOADED = _ollama_line(message={"role": "assistant", "content": ""}, done=True, done_reason="load")
REFUSED = _dump({"error": "the engine was told to refuse"})

_DETAILS = {"format": "gguf", "family": "bench", "parameter_size": "1B", "quantization_level": "Q4_K_M"}
_LISTED = {"name": "bench", "model": "bench", "modified_at": _STAMP, "size": 1, "digest": "0", "details": _DETAILS}

# GET and POST alike: nobody asks by the wrong method.
DOCUMENTS = {
    "/": b"Ollama is running",
    "/api/version": _dump({"version": "0.24.0"}),
    "/api/tags": _dump({"models": [_LISTED]}),
    "/api/ps": _dump({"models": [{**_LISTED, "expires_at": _STAMP, "size_vram": 0, "context_length": 8192}]}),
    "/api/show": _dump(
        {
            "details": _DETAILS,
            "model_info": {"general.architecture": "bench", "bench.context_length": 131072},
            "capabilities": ["completion"],
        }
    ),
    "/v1/models": _dump({"object": "list", "data": [{"id": "bench", "object": "model", "max_model_len": 131072}]}),
}
