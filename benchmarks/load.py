"""The load generator: many sessions in a process of its own.

    python -m benchmarks.load PLAN OUT

PLAN is a `clients.Plan` as JSON. It prints "streaming" once every session has its first word (idle ones:
once each is started), goes on until a line or the end of its standard input, then writes a `Record` to OUT.
"""

import asyncio
import contextlib
import resource
import sys
from pathlib import Path

import msgspec
import uvloop

from benchmarks.clients import Plan, Session, Turn, client

# Handshakes at once: more would measure the backlog of the system under test.
_CONNECTING = 32


class Record(msgspec.Struct):
    """What happened: the turns of all sessions, and why sessions were lost."""

    turns: list[Turn]
    failures: list[str]

    @property
    def errors(self) -> list[str]:
        """Everything that makes the run worthless."""
        return self.failures + [f"seed {turn.seed}: {turn.error}" for turn in self.turns if turn.error]


async def run(plan: Plan, stop: asyncio.Event, streaming: asyncio.Event) -> Record:
    """Play the plan until `stop` is set, or all its turns are done."""
    waiting = plan.sessions

    def started() -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            streaming.set()

    sessions = [Session(plan, number, started) for number in range(plan.sessions)]
    connections = [client(plan, session) for session in sessions]
    gate = asyncio.Semaphore(_CONNECTING)

    async def enter(number: int) -> None:
        # Spread over the ramp, so that the streams' words do not all fall due in the same millisecond.
        await asyncio.sleep(plan.ramp * number / plan.sessions)
        async with gate:
            try:
                await connections[number].connect()
            except (OSError, TimeoutError, ConnectionError) as error:
                sessions[number].fail(f"no connection: {error!r}")
            except Exception as error:  # noqa: BLE001 - picows has no common class; each is told in the record
                sessions[number].fail(repr(error))

    async with asyncio.TaskGroup() as tasks:
        entering = [tasks.create_task(enter(number)) for number in range(plan.sessions)]
        while not stop.is_set() and not _over(plan, sessions):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stop.wait()
        for task in entering:
            task.cancel()
    for session, connection in zip(sessions, connections, strict=True):
        session.stopped = True
        session.close_turn()
        connection.close()
    turns = [turn for session in sessions for turn in session.turns]
    return Record(turns, [session.failure for session in sessions if session.failure])


def _over(plan: Plan, sessions: list[Session]) -> bool:
    if any(session.failure for session in sessions):
        return True
    if plan.stay:
        return False
    return bool(plan.turns) and all(
        len(session.turns) == plan.turns and session.turns[-1].complete for session in sessions
    )


async def _main(plan: Plan, out: Path) -> None:
    stop, streaming = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        sys.stdin.readline()
        loop.remove_reader(0)
        stop.set()

    async def tell() -> None:
        await streaming.wait()
        print("streaming", flush=True)

    loop.add_reader(0, heard)
    telling = asyncio.create_task(tell())
    record = await run(plan, stop, streaming)
    telling.cancel()
    # The file takes the loop's time when there is nothing left to measure.
    out.write_bytes(msgspec.msgpack.encode(record))  # noqa: ASYNC240
    print("done", flush=True)


def main() -> None:
    """Play the plan of the arguments."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65_536)), hard))
    uvloop.run(_main(msgspec.json.decode(sys.argv[1], type=Plan), Path(sys.argv[2])))


if __name__ == "__main__":
    main()
