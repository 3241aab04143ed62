"""Real engines: through the service ÷ direct to the same engine, asked in turn with prompts that are equally new.

A pair is one answer of each; what the pair's two differ in is all that is compared.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import real_engines
from benchmarks.measure import machine
from benchmarks.processes import ROOT, BenchmarkFailed
from benchmarks.real_clients import Direct, ThroughService
from benchmarks.real_engines import Target
from benchmarks.real_figures import MAX_TOKENS, Answer, Pair, Row, Side, row, table, write
from benchmarks.report import show

PAIRS = 20
MAX_PAIRS = 500
_WARM_UPS = 2
# Seconds after each answer, in which the engine gets done with it, and once more before each question. llama.cpp's
# server closes the connection after a stream: a new one stands by then.
_QUIET = 0.05
_ANSWER_SECONDS = 120.0

# Each is one token of the bundled model: no prompt is longer than another, and two differ from the same place on.
_SUBJECTS = """
river mountain forest island garden harbour bridge castle village market winter summer morning evening ocean
desert valley meadow lantern mirror window kitchen library museum theatre station railway teacher doctor farmer
sailor painter singer dancer writer soldier hunter baker captain pilot engineer scientist prince princess queen
king knight dragon horse rabbit turtle eagle falcon dolphin whale tiger lion bear wolf fox deer owl sparrow spider
beetle butterfly apple orange lemon cherry walnut carrot potato onion pepper butter honey coffee bread cheese
chocolate violin piano guitar trumpet drum flute clock compass telescope microscope camera engine rocket
satellite planet comet galaxy moon star cloud storm thunder rainbow snow glacier volcano
""".split()  # noqa: SIM905


def prompt(number: int) -> str:
    """Return the prompt of a number from 0: equally long for the first thousand, and new to a cache at its end.

    What comes before is the same and in the cache of an engine that is warm: to evaluate it anew for every answer
    takes a fifth of a second on two cores, and its scatter would hide what is looked for.
    """
    again, subject = divmod(number, len(_SUBJECTS))
    return f"Tell a long story, with many details and in plain words, about the {_SUBJECTS[subject]} number {again}."


def order(pair: int) -> tuple[Side, Side]:
    """Return who is asked first and second: ABBA, so that neither always follows the other."""
    return ("service", "direct") if pair % 2 else ("direct", "service")


async def measure(target: Target, pairs: int, max_tokens: int = MAX_TOKENS, *, control: bool = False) -> list[Pair]:
    """Ask both in turn; each question is a new one. What warms up is not among the pairs.

    As a control the service's place is taken by another direct client: what is found then is chance.

    Raises:
        BenchmarkFailed: one of them did not answer, or not as it should.
    """
    clients: dict[Side, Direct | ThroughService] = {
        "direct": Direct(target, max_tokens),
        "service": (Direct if control else ThroughService)(target, max_tokens),
    }
    measured, number = [], 0
    try:
        for pair in range(-_WARM_UPS, pairs):
            answers: dict[Side, Answer] = {}
            for side in order(pair):
                answers[side] = await _asked(clients[side], prompt(number))
                number += 1
            if pair >= 0:
                measured.append(Pair(order(pair)[0], answers["direct"], answers["service"]))
    finally:
        for client in clients.values():
            client.close()
    return measured


async def _asked(client: Direct | ThroughService, prompt: str) -> Answer:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await asyncio.sleep(_QUIET)
            await client.prepare()
            await asyncio.sleep(_QUIET)
            return await client.ask(prompt)
    except TimeoutError:
        raise BenchmarkFailed(f"no answer within {_ANSWER_SECONDS:g} seconds") from None


def measured(name: str, title: str, start: AbstractContextManager[Target], pairs: int, *, control: bool = False) -> Row:
    """Return an engine's row; one that failed says so, and the others' figures are still worth having."""
    _say(f"{title}: {pairs} pairs")
    try:
        with start as target, _on(target.cores):
            return row(name, title, asyncio.run(measure(target, pairs, control=control)))
    except (BenchmarkFailed, OSError) as error:
        _say(f"{name} FAILED: {error}")
        return Row(name, title, note=f"failed: {str(error).splitlines()[0]}", failed=True)


@contextmanager
def _on(cores: frozenset[int]) -> Iterator[None]:
    """Run on these cores; none named: on any, as before."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(pairs: int, ollama: str, threads: int | None) -> list[Row]:
    """Measure every engine; says on standard error how far it is."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="fasttalk-real-") as name:
        folder = Path(name)
        title = "Ollama, LLM_PROVIDER=ollama"
        if ollama:
            rows.append(measured("ollama", title, real_engines.ollama_target(ollama, folder / "a", threads), pairs))
        else:
            _say(real_engines.OLLAMA_ADVICE)
            rows.append(Row("ollama", title, note=real_engines.OLLAMA_ADVICE))
        title = "llama.cpp's server, LLM_PROVIDER=openai"
        rows.append(measured("llama-server", title, real_engines.llama_server_target(folder / "b", threads), pairs))
        title = "embedded, LLM_PROVIDER=llama_cpp, against llama.cpp in a process of its own"
        rows.append(measured("embedded", title, real_engines.embedded_target(folder / "c", threads), pairs))
        title = "control: llama.cpp's server, directly both times"
        server = real_engines.llama_server_target(folder / "d", threads)
        rows.append(measured("control", title, server, pairs, control=True))
    return rows


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    real = commands.add_parser("real", help="real engines: through the service ÷ direct, in pairs")
    real.add_argument("--rounds", type=_pairs, default=PAIRS, metavar="N", help=f"pairs; default {PAIRS}")
    real.add_argument("--ollama", type=Path, help="the program; default: the PATH's, or scripts/build-ollama.sh's")
    real.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where results are written")
    real.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="of the engines; default: one for each physical core. Fewer than there are cores: an engine that is a "
        "process of its own has so many to itself",
    )
    real.set_defaults(run=_run)


def _pairs(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_PAIRS:
        raise argparse.ArgumentTypeError(f"from 1 to {MAX_PAIRS}")
    return number


def _run(options: argparse.Namespace) -> int:
    ollama = real_engines.find_ollama(options.ollama)
    described = {**machine(), **real_engines.versions(ollama)}
    rows = run(options.rounds, ollama, options.threads)
    described["load_after"] = f"{os.getloadavg()[0]:.2f}"
    print(table(rows))
    for path in write(options.out, rows, described, sys.argv[1:]):
        _say(f"wrote {show(path)}")
    return int(any(row.failed for row in rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
