"""Clients that stop reading, beside others that read: the former are cut off in time, the latter notice nothing."""

import asyncio
import contextlib
import json
import select
import socket
import struct
from itertools import pairwise
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.figures import percentile
from benchmarks.reliability.client import Client, Event, Hung, Lost, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import Tested, at_once, engine, service_before, until
from benchmarks.script import Script

_HEALTHY = 100
_RATE = 10.0
_BASELINE_SECONDS = 6.0
# What a process has once had, its allocator keeps a good part of: it grows for two or three such days, and no more.
_BEFORE = 3
# SEND_TIMEOUT's default, and what takes less time with a few of them.
_DEADLINE, _SHORT_DEADLINE, _MANY = 10.0, 3.0, 50
# How much larger the healthy clients' gaps, and the process in percent, may become. Few frozen clients hold no more
# than an allocator keeps by chance.
_SLOWER, _LARGER, _SHORT_LARGER = 1.2, 5.0, 20.0
# What they rest for is over soon, and little of it is kept, so that what they held can be seen to be given back.
_SETTINGS = {
    "RESUME_WINDOW": "1",
    "RESUME_GENERATE": "1",
    "SESSION_STORE_BYTES": "1048576",
}
# What a frozen client has the service say: more than the kernel holds for it, 2.8 MB, less than MAX_PENDING_BYTES more.
_ECHO, _ECHOES = "x" * 30_000, 115


class Healthy:
    """One client that reads: when each word of its one long answer came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.failure = ""

    async def read(self, client: Client, script: Script) -> None:
        """Read until cancelled."""
        client.send("user_message", text=script.prompt)
        said = ""
        try:
            while True:
                event: Event = await client.event()
                said += event.data
                self.times.append(event.at)
                if event.type not in {"token", "session_configured"}:
                    self.failure = f"{event.type} {event.error and event.error.code}"
        except (Lost, Hung) as error:
            self.failure = repr(error)
        finally:
            if said and not script.text().startswith(said):
                self.failure = "the text was wrong"
            client.close()

    def gaps(self, begin: float, end: float) -> list[float]:
        """Return the gaps between its words in a window of time, in milliseconds."""
        within = [at for at in self.times if begin <= at < end]
        return [1000 * (late - early) for early, late in pairwise(within)]


def _masked(message: dict[str, object]) -> bytes:
    data = json.dumps(message).encode()
    length = struct.pack("!B", 0x80 | len(data)) if len(data) < 126 else struct.pack("!BH", 0xFE, len(data))
    return b"\x81" + length + b"\0\0\0\0" + data


async def _freeze(port: int, number: int) -> socket.socket:
    """Open a WebSocket by hand, have much said to it, and read nothing."""
    loop, raw = asyncio.get_running_loop(), socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await loop.sock_connect(raw, ("127.0.0.1", port))
    head = (
        "GET /ws/llm HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(raw, head.encode())
    await loop.sock_recv(raw, 1024)
    await loop.sock_sendall(raw, _masked({"type": "start_session"}))
    prompt = Script(2000, 20.0, 0.01, 10_000_000 + number).prompt
    await loop.sock_sendall(raw, _masked({"type": "user_message", "text": prompt}))
    echoed = _masked({"type": "update_config", "config": {"system_prompt": _ECHO}})
    with contextlib.suppress(ConnectionError):  # a service that is slow to say it all has cut it off by now
        for _ in range(_ECHOES):
            await loop.sock_sendall(raw, echoed)
            await asyncio.sleep(0)
    return raw


def _deadline(count: int) -> float:
    return _DEADLINE if count >= _MANY else _SHORT_DEADLINE


async def _cut_off(frozen: list[socket.socket]) -> list[float]:
    """Wait until the service has dropped each; returns when."""
    waiting = {raw.fileno() for raw in frozen}
    poll = select.poll()
    for number in waiting:
        poll.register(number, 0)  # what can be read does not matter, the end is always told
    took, give_up = [], monotonic() + 4 * _DEADLINE
    while waiting and monotonic() < give_up:
        for number, _ in poll.poll(0):
            poll.unregister(number)
            waiting.discard(number)
            took.append(monotonic())
        await asyncio.sleep(0.01)
    return took


class Held:
    """What the service's process holds: memory in MiB, sockets and files, tasks."""

    def __init__(self, service: Tested) -> None:
        process = psutil.Process(service.process.pid)
        self.rss = process.memory_info().rss / 2**20
        self.files = process.num_fds()
        self.tasks = service.metric("fasttalk_event_loop_tasks")


async def run(count: int, folder: Path) -> Outcome:
    """Freeze so many clients beside the healthy ones."""
    outcome, healthy = Outcome(), [Healthy() for _ in range(_HEALTHY)]
    settings = {**_SETTINGS, "SEND_TIMEOUT": f"{_deadline(count):g}"}
    with engine(folder) as (_, engine_port), service_before(engine_port, folder, settings) as service:
        for _ in range(_BEFORE):
            await _thaw(service, count, outcome)
        async with asyncio.TaskGroup() as tasks:
            clients = [await started(service.port) for _ in healthy]
            reading = [
                tasks.create_task(each.read(client, Script(2000, _RATE, 0.01, 1 + number)))
                for number, (each, client) in enumerate(zip(healthy, clients, strict=True))
            ]
            await asyncio.sleep(1)
            began = monotonic()
            await asyncio.sleep(_BASELINE_SECONDS)
            before, ended = Held(service), monotonic()
            frozen_at, thawed_at = await _thaw(service, count, outcome)
            await until(lambda: _given_back(service, before), 15)
            after = Held(service)
            for task in reading:
                task.cancel()
        service.check(outcome)
    base, beside = (
        percentile([gap for each in healthy for gap in each.gaps(*window)], 0.99)
        for window in ((began, ended), (frozen_at, thawed_at))
    )
    outcome.most(beside / base, _SLOWER, f"p99 gap of the healthy {beside:.0f} ms beside them, {base:.0f} without")
    outcome.none(sum(bool(each.failure) for each in healthy), "healthy clients hurt")
    for each in healthy:
        if each.failure:
            outcome.note(f"a healthy client: {each.failure}")
    grown = 100 * (after.rss / before.rss - 1)
    outcome.most(grown, _LARGER if count >= _MANY else _SHORT_LARGER, f"memory {grown:+.1f} % afterwards")
    # The connections to the engine come and go.
    outcome.most(after.files - before.files, 2, f"{after.files - before.files:+d} sockets")
    outcome.most(after.tasks - before.tasks, 0, f"{after.tasks - before.tasks:+.0f} tasks")
    return outcome


async def _given_back(service: Tested, before: Held) -> bool:
    now = Held(service)
    return now.files <= before.files and now.tasks <= before.tasks and now.rss < 1.03 * before.rss


async def _thaw(service: Tested, count: int, outcome: Outcome) -> tuple[float, float]:
    """Freeze clients until all are cut off; returns from when to when all of them were frozen or cut off."""
    frozen: list[socket.socket] = []

    async def freeze(number: int) -> None:
        frozen.append(await _freeze(service.port, number))

    with contextlib.ExitStack() as stack:
        await at_once(freeze(number) for number in range(count))
        for raw in frozen:
            stack.callback(raw.close)
        # What they asked for is said when a client that came behind them is answered.
        (await started(service.port)).close()
        frozen_at = monotonic()
        ends = await _cut_off(frozen)
    outcome.figures.clear()
    slowest = max(ends, default=0.0) - frozen_at
    outcome.least(len(ends), count, f"{len(ends)} of {count} frozen clients cut off")
    deadline = _deadline(count)
    outcome.most(slowest, deadline + 1, f"{slowest:.1f} s after the last froze, the deadline being {deadline:g}")
    return frozen_at, max(ends, default=monotonic())
