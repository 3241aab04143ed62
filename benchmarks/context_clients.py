"""Of `python -m benchmarks context`: the proxy that records prompts, and the clients of the service and of engines.

All of them block: one conversation is held at a time, and a thread that waits in `recv` has its clock stopped by
nothing but the answer.
"""

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import httptools
import msgspec
from websockets.sync.client import connect

from benchmarks.context_script import MAX_TOKENS, SYSTEM_PROMPT, Message
from benchmarks.processes import BenchmarkFailed
from benchmarks.real_engines import Target, session_config

ANSWER_SECONDS = 120.0
_PROMPT_N = re.compile(rb'"prompt_n":\s*(\d+)')
_CHAT = ("/api/chat", "/v1/chat/completions")

_encode = msgspec.json.encode


class Said(msgspec.Struct):
    """One answer as its client saw it. `cached` is None where nobody tells; `refused` is the refusal, if it was one."""

    text: str = ""
    ttft_ms: float = 0.0
    prompt_tokens: int = 0
    cached: int | None = None
    refused: str = ""


class _Requests:
    """Takes the requests out of what one connection sends."""

    def __init__(self, done: Callable[[str, bytes], None]) -> None:
        self._done = done
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", b""

    def feed(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._done(self._url.decode(), self._body)


class Proxy:
    """Forwards to an engine on loopback, byte by byte, and keeps what it was asked and how much it evaluated."""

    def __init__(self, engine_port: int) -> None:
        self._engine_port = engine_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._chats: list[dict[str, Any]] = []
        self._answers = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def taken(self) -> tuple[list[dict[str, Any]], int | None]:
        """Return the chat requests since the last call, and the tokens that llama.cpp says it evaluated for them."""
        with self._lock:
            chats, self._chats = self._chats, []
            found = [int(number) for number in _PROMPT_N.findall(self._answers)]
            self._answers.clear()
        return chats, sum(found) if found else None

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for peer in self._open:
            peer.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                engine = socket.create_connection(("127.0.0.1", self._engine_port))
                for peer in (client, engine):
                    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open += [client, engine]
                for ends in ((client, engine, _Requests(self._asked).feed), (engine, client, self._answered)):
                    threading.Thread(target=_forward, args=ends, daemon=True).start()

    def _asked(self, url: str, body: bytes) -> None:
        if url in _CHAT:
            chat = msgspec.json.decode(body, type=dict[str, Any])
            # A chat without messages loads a model.
            if chat.get("messages"):
                with self._lock:
                    self._chats.append(chat)

    def _answered(self, data: bytes) -> None:
        with self._lock:
            self._answers += data


def _forward(source: socket.socket, to: socket.socket, seen: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            # Looked at first, which takes microseconds: whoever has got it may ask at once what was in it.
            seen(data)
            to.sendall(data)
    with contextlib.suppress(OSError):
        to.shutdown(socket.SHUT_WR)


class _Stats(msgspec.Struct):
    prompt_tokens: int = 0
    cached_tokens: int | None = None


class _Event(msgspec.Struct):
    type: str
    data: str = ""
    stats: _Stats = msgspec.field(default_factory=_Stats)
    error: msgspec.Raw = msgspec.Raw()


_decode_event = msgspec.json.Decoder(_Event).decode


class Service:
    """Holds the conversation with the service, in one session, which keeps the history itself."""

    def __init__(self, port: int) -> None:
        self._socket = connect(f"ws://127.0.0.1:{port}/ws/llm", open_timeout=ANSWER_SECONDS, compression=None)
        config = {**session_config(MAX_TOKENS), "system_prompt": SYSTEM_PROMPT}
        self._send({"type": "start_session", "config": config})
        while self._receive().type not in {"session_started", "session_configured"}:
            pass

    def ask(self, text: str) -> Said:
        """Say it, and return the answer."""
        said, pieces, asked = Said(), list[str](), perf_counter()
        self._send({"type": "user_message", "text": text})
        while True:
            event = self._receive()
            if event.type == "token" and event.data:
                said.ttft_ms = said.ttft_ms or (perf_counter() - asked) * 1000
                pieces.append(event.data)
            elif event.type == "response_complete":
                said.prompt_tokens, said.cached = event.stats.prompt_tokens, event.stats.cached_tokens
                said.text = "".join(pieces)
                return said

    def close(self) -> None:
        """Leave."""
        self._socket.close()

    def _send(self, event: Mapping[str, object]) -> None:
        self._socket.send(_encode(event).decode())

    def _receive(self) -> _Event:
        event = _decode_event(self._socket.recv(timeout=ANSWER_SECONDS))
        if bytes(event.error) not in {b"", b"null"}:
            raise BenchmarkFailed(f"the service said {event.type}: {bytes(event.error).decode()[:300]}")
        return event


class _Content(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Content = msgspec.field(default_factory=_Content)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    prompt_tokens_details: _Details = msgspec.field(default_factory=_Details)


class _Part(msgspec.Struct):
    """A line of either protocol."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    message: _Content | None = None
    prompt_eval_count: int = 0
    error: msgspec.Raw = msgspec.Raw()


_decode_part = msgspec.json.Decoder(_Part).decode


class Direct:
    """Asks the engine itself; whoever uses it keeps the history. One request, one connection."""

    def __init__(self, target: Target, port: int) -> None:
        self._target = target
        self._port = port
        key = {"Authorization": f"Bearer {target.key}"} if target.key else {}
        self._headers = {"Content-Type": "application/json", **key}

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Return the request that the service would send, but for what it says against silent truncation."""
        body = self._target.body("", MAX_TOKENS)
        for name in ("truncate", "shift"):
            body.pop(name, None)
        return {**body, "messages": list(messages)}

    def ask(self, messages: Sequence[Message]) -> Said:
        """Return the answer, or the refusal of a prompt that the engine can't take."""
        said, pieces, asked = Said(), list[str](), perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", self._target.path, _encode(self.body(messages)), self._headers)
            response = connection.getresponse()
            if response.status == 400:
                return Said(refused=response.read().decode(errors="replace")[:300])
            if response.status != 200:
                raise BenchmarkFailed(f"the engine answered with HTTP {response.status}: {response.read()[:300]!r}")
            for line in response:
                document = line.removeprefix(b"data: ")
                if document.startswith(b"{"):
                    text = _text(_decode_part(document), said)
                    if text:
                        said.ttft_ms = said.ttft_ms or (perf_counter() - asked) * 1000
                        pieces.append(text)
        said.text = "".join(pieces)
        return said

    def rendered(self, messages: Sequence[Message], engine_port: int) -> str:
        """Return the prompt that Ollama makes of this, truncated if need be, without running it."""
        body = {**self.body(messages), "stream": False, "_debug_render_only": True}
        found = posted(engine_port, self._target.path, body, self._headers)
        return str(found["_debug_info"]["rendered_template"])


def _text(part: _Part, said: Said) -> str:
    if bytes(part.error) not in {b"", b"null"}:
        raise BenchmarkFailed(f"the engine failed: {bytes(part.error).decode()[:300]}")
    if part.usage is not None:
        said.prompt_tokens, said.cached = part.usage.prompt_tokens, part.usage.prompt_tokens_details.cached_tokens
    said.prompt_tokens = part.prompt_eval_count or said.prompt_tokens
    pieces = [part.message, *(choice.delta for choice in part.choices)]
    return "".join(piece.content or "" for piece in pieces if piece is not None)


def posted(port: int, path: str, body: object, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what a POST on loopback is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection):
        connection.request("POST", path, _encode(body), dict(headers))
        response = connection.getresponse()
        data = response.read()
    if response.status != 200:
        raise BenchmarkFailed(f"{path} answered with HTTP {response.status}: {data[:300]!r}")
    return msgspec.json.decode(data, type=dict[str, Any])
