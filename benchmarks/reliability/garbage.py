"""Garbage on the WebSocket, frame by frame, and garbage for the parser: nothing crashes, nobody else notices."""

import asyncio
import gc
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.figures import percentile
from benchmarks.reliability.client import started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import at_once, engine, service_before
from llm_service.errors import ClientError
from llm_service.parsing import parse

_CLIENTS = 10
_GROWTH_MIB, _PROBE_MS = 10.0, 100.0
_HANDSHAKE = (
    b"GET /ws/llm HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_MESSAGES = (
    '{"type":"start_session","config":{"temperature":0.5,"stop":["a"],"system_prompt":"You."}}',
    '{"type":"start_session","session_id":"abc","last_seq":3}',
    '{"type":"user_message","text":"hello","id":"1"}',
    '{"type":"cancel"}',
    '{"type":"update_config","config":{"max_tokens":5,"on_busy":"queue","events":["chunk"]}}',
    '{"type":"played","chunk":1,"chars":10}',
    '{"type":"partial_message","text":"hel"}',
    '{"type":"tool_result","id":"call_0","content":"{}"}',
    '{"type":"end_session"}',
)
_PIECES = (
    "null", "true", "-1", "1e999", "NaN", "9" * 5000, '"', "\\ud800", "[" * 50, "{", "}", "\x00", "\u2028", "🙂", ",",
    ":", '"type":', '"a":' * 3, "1.5", "[]", "{}", '"' + "x" * 300 + '"',
)  # fmt: skip


def mutated(chance: random.Random) -> Iterator[str]:
    """Give messages that are wrong in some way, and now and then one that is right, for ever."""
    while True:
        text = chance.choice(_MESSAGES)
        for _ in range(chance.randrange(4)):
            begin = chance.randrange(len(text) + 1)
            end = min(len(text), begin + chance.randrange(12))
            text = text[:begin] + chance.choice(_PIECES) + text[end:]
        yield text


def frame(chance: random.Random, text: str) -> bytes:
    """Return a frame that may break RFC 6455 in any way, around bytes that may be a message."""
    data = text.encode("utf-8", "surrogatepass") if chance.random() < 0.7 else chance.randbytes(chance.randrange(200))
    first = 0x81 if chance.random() < 0.6 else chance.randrange(256)
    masked = 0x80 if chance.random() < 0.95 else 0
    length = len(data) if chance.random() < 0.95 else chance.choice((0, 125, 2**16 - 1, 2**31, 2**63 - 1, 2**64 - 1))
    if length < 126:
        head = struct.pack("!BB", first, masked | length)
    elif length < 65_536:
        head = struct.pack("!BBH", first, masked | 126, length)
    else:
        head = struct.pack("!BBQ", first, masked | 127, length)
    return head + (b"\0\0\0\0" if masked else b"") + data


async def frames(count: int, folder: Path) -> Outcome:
    """Send so many frames, over connections that are opened anew when they are closed."""
    outcome, left, delays = Outcome(), [count], list[float]()
    with engine(folder) as (_, engine_port), service_before(engine_port, folder) as service:
        process, connections = psutil.Process(service.process.pid), [0]

        async def throw(number: int) -> None:
            chance = random.Random(number)
            texts = mutated(chance)
            while left[0] > 0:
                connections[0] += 1
                thrown = await _one_connection(service.port, chance, texts)
                left[0] -= thrown

        await at_once(throw(number) for number in range(_CLIENTS))  # what is made once is no growth
        before, left[0], connections[0] = process.memory_info().rss, count, 0
        probing = asyncio.create_task(_probe(service.port, delays))
        await at_once(throw(number) for number in range(_CLIENTS, 2 * _CLIENTS))
        probing.cancel()
        broken = not isinstance((await asyncio.gather(probing, return_exceptions=True))[0], asyncio.CancelledError)
        grown = (process.memory_info().rss - before) / 2**20
        service.check(outcome)
    outcome.figures.insert(0, f"{count - left[0]:,} frames on {connections[0]:,} connections")
    outcome.most(grown, _GROWTH_MIB, f"memory {grown:+.1f} MiB")
    p99 = 1000 * percentile(delays, 0.99)
    outcome.most(p99, _PROBE_MS, f"another client was answered within {p99:.1f} ms (p99)")
    if broken:
        outcome.note("the client beside them was cut off")
    return outcome


async def _one_connection(port: int, chance: random.Random, texts: Iterator[str]) -> int:
    """Throw frames until the service has closed the connection; returns how many."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    thrown = 0
    try:
        writer.write(_HANDSHAKE)
        await reader.readuntil(b"\r\n\r\n")
        # Some at once, and then what comes is read, so that neither side waits for the other.
        while not reader.at_eof() and thrown < 200:
            for _ in range(chance.randrange(1, 8)):
                writer.write(frame(chance, next(texts)))
                thrown += 1
            async with asyncio.timeout(0.02):
                await reader.read(65_536)
    except TimeoutError:
        pass
    except (OSError, asyncio.IncompleteReadError):
        return thrown
    finally:
        writer.transport.abort()
    return thrown


async def _probe(port: int, delays: list[float]) -> None:
    """Ask for a small answer again and again; keeps how long each took, in seconds."""
    client = await started(port)
    while True:
        began = monotonic()
        client.send("update_config", config={"max_tokens": 5})
        event = await client.event()
        delays.append(event.at - began)
        await asyncio.sleep(0.02)


async def messages(count: int, _folder: Path) -> Outcome:
    """Give the parser so many messages."""
    outcome, texts = Outcome(), mutated(random.Random(1))
    process, refused, crashes = psutil.Process(), 0, 0
    before = 0
    for number in range(count + count // 10):
        if number == count // 10:  # what is made once is no growth
            gc.collect()
            before, refused = process.memory_info().rss, 0
        text = next(texts)
        try:
            parse(text)
        except ClientError:
            refused += 1
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            crashes += 1
            outcome.note(f"{error!r} for {text[:200]!r}")
    gc.collect()
    grown = (process.memory_info().rss - before) / 2**20
    outcome.figure(f"{count:,} messages, {refused:,} of them refused with a typed error")
    outcome.none(crashes, "crashes")
    outcome.most(grown, _GROWTH_MIB, f"memory {grown:+.1f} MiB")
    return outcome
