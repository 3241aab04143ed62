"""An engine that is killed while it answers: every client is told at once, no history is lost, nobody hangs."""

import asyncio
import contextlib
import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from benchmarks.figures import percentile
from benchmarks.processes import Child, answers, child, free_port, module
from benchmarks.real_engines import PARALLEL, WINDOW, session_config
from benchmarks.reliability.client import Client, Hung, Lost, answer, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import at_once, cores, engine, service_before
from benchmarks.script import Script
from llm_service.engines.model_files import bundled

_ERROR_MS = 500.0
# Tokens of an answer; the fake engine says as many words as it is asked for.
_SHORT, _LONG = 4, 400


class Engine(Protocol):
    """An engine that can be killed. `streams` run in it when it is.

    A session lives for so many `kills`, so that its history stays short, and is answered so often `between` two of
    them: the breaker stays closed as long as most answers are whole.
    """

    provider: str
    streams: int
    kills: int
    between: int
    settings: Mapping[str, str]
    config: Mapping[str, Any]

    def process(self, folder: Path) -> contextlib.AbstractContextManager[Child]:
        """Run it, on the same port each time, until the block is left or it is killed."""
        ...

    def long(self, number: int) -> str:
        """Return a message whose answer goes on for seconds."""
        ...

    def short(self, number: int) -> str:
        """Return a message whose answer is short."""
        ...


class FakeEngine:
    """The fake engine, over Ollama's protocol."""

    provider, streams = "ollama", 6
    kills, between = 10, 2
    config: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.port = free_port()
        self.settings: Mapping[str, str] = {}

    @contextlib.contextmanager
    def process(self, folder: Path) -> Generator[Child, None, None]:
        """Run it."""
        with engine(folder, self.port) as (process, _):
            yield process

    def long(self, number: int) -> str:
        """Return a message whose answer goes on for seconds."""
        return Script(2000, 50.0, 0.01, number).prompt

    def short(self, number: int) -> str:
        """Return a message whose answer is short."""
        return Script(5, seed=number).prompt


class LlamaServer:
    """llama.cpp's server with the bundled model, in a process of its own."""

    provider, streams = "openai", PARALLEL
    # An engine that was started again reads the whole history anew: that is what a kill takes longest for.
    kills, between = 3, 1

    def __init__(self) -> None:
        self.port = free_port()
        self.settings: Mapping[str, str] = {
            "LLM_MODEL": bundled().stem,
            "DEFAULT_CONTEXT_WINDOW": str(WINDOW),
            "OPENAI_API_KEY": "benchmark",
        }
        self.config: Mapping[str, Any] = {**session_config(_SHORT), "system_prompt": "Be brief."}

    @contextlib.contextmanager
    def process(self, folder: Path) -> Generator[Child, None, None]:
        """Run it."""
        key = {"BENCHMARKS_LLAMA_CPP_KEY": "benchmark"}
        # One thread: several wait for each other by spinning, and this machine has other work.
        command = module("real_engines", "--port", str(self.port), "--threads", "1")
        with child("llama-server", command, folder=folder, cores=cores(), variables=key) as process:
            process.wait_until(lambda: answers(self.port, "/health"))
            yield process

    def long(self, number: int) -> str:
        """Return a message whose answer goes on for seconds."""
        return f"Count from {number % 100}."

    def short(self, number: int) -> str:
        """Return a message whose answer is short."""
        return f"Say {number % 100}."


@dataclass
class Kills:
    """What happened, of all sessions together. `told` are the times to the error, in milliseconds."""

    at: float = 0.0
    told: list[float] = field(default_factory=list)
    histories: int = 0
    lost: int = 0
    hung: int = 0
    problems: list[str] = field(default_factory=list)

    def wrong(self, problem: str) -> None:
        """Take note of a history that is not what it was, or an answer that did not end as it must."""
        self.lost += 1
        self.problems.append(problem)


class Talk:
    """One session that is answered, failed to, and answered again.

    The engine's own count of each prompt tells what was in it: all that was answered before, and no turn that failed.
    """

    def __init__(self, target: Engine, port: int, kills: Kills, number: int) -> None:
        self._target = target
        self._port = port
        self._kills = kills
        self._number = 1 + number * 100_000
        self._before = self._grown = 0  # tokens of the last prompt with its answer, and of a short message in it
        self._client: Client

    async def begin(self) -> None:
        """Start a session and have it answered twice, to know by how much a prompt grows."""
        self._client = await started(self._port, **self._target.config)
        self._before = self._grown = 0
        for _ in range(2):
            await self.whole()

    async def end(self) -> None:
        """Leave."""
        self._client.close()

    async def ask(self) -> None:
        """Ask for a long answer, and return when it has begun."""
        self._number += 1
        self._client.send("update_config", config={"max_tokens": _LONG})
        await self._client.event()
        self._client.send("user_message", text=self._target.long(self._number))
        event = await self._client.event()
        if event.type != "token":
            self._kills.wrong(f"{event.type} {event.error and event.error.code} instead of a first word")

    async def told(self) -> None:
        """Wait for the error."""
        while (event := await self._client.event()).type == "token":
            pass
        if event.type == "error" and event.terminal:
            self._kills.told.append(1000 * (event.at - self._kills.at))
        else:
            self._kills.wrong(f"{event.type} at the kill")
        self._client.send("update_config", config={"max_tokens": _SHORT})
        await self._client.event()

    async def whole(self) -> None:
        """Have a short message answered."""
        self._number += 1
        said, end = await answer(self._client, self._target.short(self._number))
        self._kills.histories += 1
        if end.type != "response_complete" or end.stats is None or not said:
            self._kills.wrong(f"{end.type} {end.error and end.error.code} instead of an answer")
            return
        prompt = end.stats.prompt_tokens
        grown = prompt - self._before if self._before else 0
        # Numbers have more tokens or fewer; a turn has many more.
        if self._grown and abs(grown - self._grown) > 3:
            self._kills.wrong(f"a prompt of {prompt} tokens, {grown} of them new instead of {self._grown}")
        self._grown, self._before = self._grown or grown, prompt + end.stats.tokens_generated


async def run(count: int, folder: Path, *, target: type[FakeEngine] | type[LlamaServer]) -> Outcome:
    """Kill the engine so many times."""
    outcome, kills, chosen = Outcome(), Kills(), target()
    with contextlib.ExitStack() as stack:
        living = stack.enter_context(contextlib.ExitStack())
        process = living.enter_context(chosen.process(folder))
        service = stack.enter_context(service_before(chosen.port, folder, chosen.settings, provider=chosen.provider))
        talks = [Talk(chosen, service.port, kills, number) for number in range(chosen.streams)]
        try:
            for number in range(count):
                if number % chosen.kills == 0:
                    await at_once(talk.begin() for talk in talks)
                await _kill(talks, process, kills)
                living.close()
                process = living.enter_context(chosen.process(folder))
                for _ in range(chosen.between):
                    await at_once(talk.whole() for talk in talks)
                if number % chosen.kills == chosen.kills - 1:
                    await at_once(talk.end() for talk in talks)
        except* (Hung, Lost) as ended:
            kills.hung += len(ended.exceptions)
        service.check(outcome)
    outcome.figures.insert(0, f"{count:,} kills, {len(kills.told):,} answers broken off, {kills.histories:,} answered")
    outcome.none(kills.lost, "histories lost")
    outcome.none(kills.hung, "hung")
    p50, p99 = percentile(kills.told, 0.5), percentile(kills.told, 0.99)
    outcome.most(p99, _ERROR_MS, f"error after {p50:.1f} ms, p99 {p99:.1f}")
    for problem in kills.problems:
        outcome.note(problem)
    return outcome


async def _kill(talks: list[Talk], process: Child, kills: Kills) -> None:
    await at_once(talk.ask() for talk in talks)
    await asyncio.sleep(random.random() * 0.05)
    kills.at = monotonic()
    process.process.kill()
    await at_once(talk.told() for talk in talks)
    await asyncio.to_thread(process.process.wait)
