"""Speech as a client hears it: when text, chunks and sound come, and where the sound runs out."""

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.paced_tts import paced_tts
from benchmarks.processes import ROOT, BenchmarkFailed
from benchmarks.reliability.tested import service_before
from benchmarks.report import show
from benchmarks.speech_client import hear
from benchmarks.speech_figures import Row, figures, table, write
from llm_service.engines.model_files import bundled

_RATE = 30


@dataclass(frozen=True)
class Answering:
    """What answers: the settings it is started with, what it is asked, and the session's config."""

    name: str
    provider: str
    prompt: str
    settings: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)


ENGINES = (
    Answering(
        "llama.cpp",
        "llama_cpp",
        "Describe a day in the life of a lighthouse keeper.",
        # Empty counts as not given: the model it comes with.
        {"LLM_MODEL": ""},
        # The likeliest token: the same answer every time.
        {"temperature": 0.0, "seed": 1, "max_tokens": 120},
    ),
    Answering(
        f"scripted, {_RATE} words/s",
        "scripted",
        "Good morning. My name is Ada, and I keep the lighthouse at the end of the pier. The fog is thick tonight, "
        "the ferry is late, and three sailors ask me for the way: what shall I tell them?",
        {"SCRIPTED_TOKENS_PER_SECOND": f"{_RATE}"},
    ),
)
# Real-time factors of the doubles; None: espeak-ng.
VOICES: Mapping[str, float | None] = {"espeak-ng": None, "paced, factor 0.5": 0.5, "paced, factor 1.5": 1.5}


@contextlib.asynccontextmanager
async def _endpoint(factor: float | None) -> AsyncGenerator[str, None]:
    """Give what TTS_ENDPOINTS is to say."""
    if factor is None:
        if shutil.which("espeak-ng") is None:
            raise BenchmarkFailed("espeak-ng is not installed: apt-get install espeak-ng")
        yield "espeak"
        return
    async with paced_tts(factor) as tts:
        yield f"openai=http://127.0.0.1:{tts.port}/v1"


async def measured(engine: Answering, voice: str, folder: Path, settings: Mapping[str, str]) -> Row:
    """Start a service of its own, ask it once and listen."""
    async with _endpoint(VOICES[voice]) as endpoint:
        variables = {**engine.settings, **settings, "TTS_ENDPOINTS": endpoint}
        with service_before(0, folder, variables, provider=engine.provider) as service:
            heard = await hear(service.port, engine.prompt, engine.config)
            synthesis, sound = await asyncio.to_thread(
                lambda: [service.metric(f"fasttalk_speech_{name}_seconds_total") for name in ("synthesis", "audio")]
            )
    return Row(engine.name, voice, heard, synthesis / sound)


def run(engines: Sequence[Answering], voices: Sequence[str], settings: Mapping[str, str]) -> Iterator[Row]:
    """Measure one pair after the other; says on standard error how far it is."""
    with tempfile.TemporaryDirectory(prefix="fasttalk-speech-") as name:
        for engine in engines:
            for voice in voices:
                try:
                    row = asyncio.run(
                        measured(engine, voice, Path(name) / f"{engine.provider}-{voices.index(voice)}", settings)
                    )
                except (BenchmarkFailed, OSError) as error:
                    # The others' figures are still worth having.
                    row = Row(engine.name, voice, note=f"failed: {error}".splitlines()[0], failed=True)
                _say(f"{engine.name}, {voice}: {row.note or _short(row)}")
                yield row


def _short(row: Row) -> str:
    assert row.heard is not None
    found = figures(row.heard)
    return f"first sound after {found.first_sound:.2f} s, {found.sound:.1f} s of it, {found.silence:.1f} s of silence"


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser("speech", help="answers that are spoken: when the sound comes, and where it runs out")
    providers = [engine.provider for engine in ENGINES]
    parser.add_argument("--engines", default="", help=f"of {', '.join(providers)}; comma-separated; default: all")
    parser.add_argument("--threads", type=int, metavar="N", help="of llama.cpp; default: one for each physical core")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where results are written")
    parser.set_defaults(run=_run)


def chosen(providers: str) -> list[Answering]:
    """Return the engines named, or all.

    Raises:
        ValueError: there is no such engine.
    """
    known = {engine.provider: engine for engine in ENGINES}
    wanted = providers.split(",") if providers else list(known)
    if unknown := set(wanted) - set(known):
        raise ValueError(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [known[provider] for provider in wanted]


def _run(options: argparse.Namespace) -> int:
    engines = chosen(options.engines)
    settings = {} if options.threads is None else {"NUM_THREADS": f"{options.threads}"}
    described = {**machine(), "model": bundled().stem, "xllamacpp": metadata.version("xllamacpp")}
    rows = list(run(engines, list(VOICES), settings))
    described["load_after"] = f"{os.getloadavg()[0]:.2f}"
    print(table(rows))
    for path in write(options.out, rows, described, " ".join(["python -m benchmarks", *sys.argv[1:]])):
        _say(f"wrote {show(path)}")
    return int(any(row.failed for row in rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
