"""All parts of the suite, and the command that runs them."""

import argparse
import asyncio
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.processes import BenchmarkFailed, raise_file_limit
from benchmarks.reliability import (
    barge_ins,
    cancels,
    cuts,
    drain,
    failover,
    faults,
    frozen,
    garbage,
    kills,
    soak,
    standards,
    workers,
)
from benchmarks.reliability.promise import Outcome, Part, line, write

PARTS = (
    *(
        Part(
            f"cuts-{store}",
            f"A client that is cut off at random points and comes back gets every event once and in order: {store}",
            "cuts",
            10_000,
            300,
            partial(cuts.run, store=store),
        )
        for store in ("memory", "sqlite", "redis")
    ),
    Part("drain", "At SIGTERM nothing is cut: answers finish, newcomers get 503, it ends", "drains", 20, 2, drain.run),
    *(
        Part(
            f"faults-{wire}",
            f"An engine that fails at any word gives the exact text or one typed error, and no word twice: {wire}",
            "words",
            60,
            4,
            partial(faults.run, provider=wire),
        )
        for wire in ("ollama", "openai")
    ),
    Part("cancels", "A cancel frees the engine", "cancels", 10_000, 500, cancels.run),
    Part("barge-ins", "A barge-in stops the TTS, and is silence", "barge-ins", 2_000, 100, barge_ins.run),
    Part(
        "kills-http",
        "An engine that is killed in mid-answer: clients are told, no history is lost, nobody hangs",
        "kills",
        1000,
        5,
        partial(kills.run, target=kills.FakeEngine),
    ),
    Part(
        "kills-llama",
        "The same with a real llama-server and a real model",
        "kills",
        250,
        1,
        partial(kills.run, target=kills.LlamaServer),
    ),
    Part("failover", "Of two engines one is killed in mid-answer: the other goes on", "kills", 50, 1, failover.run),
    Part("frozen", "Clients that stop reading are cut off and hurt no others", "frozen clients", 100, 20, frozen.run),
    Part(
        "frames",
        "Garbage on the WebSocket crashes nothing, hurts no others",
        "frames",
        100_000,
        3000,
        garbage.frames,
    ),
    Part(
        "messages",
        "Garbage for the parser gets a typed error",
        "messages",
        1_000_000,
        20_000,
        garbage.messages,
    ),
    Part(
        "workers", "Two workers do what two services with nothing in common do, nearly", "seconds", 20, 2, workers.run
    ),
    Part("autobahn", "RFC 6455, by Autobahn's cases", "cases", 247, 247, standards.autobahn),
    Part("schemas", "HTTP answers are as documented, and none is 5xx", "requests", 1000, 30, standards.schemas),
    Part("soak", "Hours of everyday use: memory, sockets and tasks do not grow", "seconds", 1200, 10, soak.run),
)


def add_to(commands: Any) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "reliability", help="break things on purpose and count what was lost; a line for each promise"
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--all", action="store_true", help="every part")
    parser.add_argument("--short", action="store_true", help="few of each, as CI does")
    parser.add_argument("--count", type=int, help="so many of each part's unit")
    parser.add_argument("--minutes", type=int, help="for which the soak lasts (default: 20)")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    parser.set_defaults(run=_run)


def chosen(names: list[str], *, everything: bool) -> list[Part]:
    """Return the parts of these names.

    Raises:
        ValueError: there is no such part, or none was named.
    """
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no such part: {', '.join(unknown)}; there are {', '.join(known)}")
    if not names and not everything:
        raise ValueError(f"name a part, or give --all; there are {', '.join(known)}")
    return [known[name] for name in names] or list(PARTS)


def _run(options: argparse.Namespace) -> int:
    raise_file_limit()
    broken = 0
    for part in chosen(options.parts, everything=options.all or options.short):
        count = options.count or (part.short if options.short else part.count)
        if options.minutes and part.name == "soak":
            count = 60 * options.minutes
        began = time.monotonic()
        outcome = run(part, count)
        _tell(part, outcome, began)
        if options.short and outcome.broken and not outcome.wrong:
            # A time or a size: what else runs on the machine may have been in it, and seldom is so twice.
            began = time.monotonic()
            outcome = run(part, count)
            _tell(part, outcome, began)
        broken += bool(outcome.broken)
        if options.write:
            write(part, outcome, "" if count == part.count else f" --count {count}")
    return 1 if broken else 0


def _tell(part: Part, outcome: Outcome, began: float) -> None:
    print(line(part, outcome, time.monotonic() - began), flush=True)
    for problem in outcome.broken:
        print(f"    {problem}", flush=True)


def run(part: Part, count: int) -> Outcome:
    """Run one part in a folder of its own; what cannot be run is broken."""
    with tempfile.TemporaryDirectory(prefix="fasttalk-reliability-") as folder:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_of(part, count, Path(folder)))
        except BenchmarkFailed as error:
            return Outcome(broken=[str(error)], wrong=True)


async def _of(part: Part, count: int, folder: Path) -> Outcome:
    return await part.run(count, folder)
