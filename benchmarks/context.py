"""A long conversation on real engines: what the service evaluates and how long it takes, beside a naive client's
window and the engine's own truncation.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import context_engines, real_engines
from benchmarks.context_clients import Direct, Said
from benchmarks.context_engines import STRATEGIES, Asked, Strategy
from benchmarks.context_figures import Row, Turn, table, write
from benchmarks.context_script import (
    SYSTEM_FACT,
    SYSTEM_PROMPT,
    TURNS,
    Message,
    appended,
    fitting,
    message,
    recent_fact,
)
from benchmarks.measure import machine
from benchmarks.processes import ROOT, BenchmarkFailed
from benchmarks.report import show

ENGINES = tuple(dict.fromkeys(strategy.engine for strategy in STRATEGIES))
# Seconds after each answer, in which the engine gets done with it. A person takes longer.
_QUIET = 0.1


@dataclass(frozen=True)
class Prompt:
    """What reached the engine; `text` is all of it."""

    messages: int
    text: str

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]]) -> "Prompt":
        """Return the prompt of these messages."""
        return cls(len(messages), "\n".join(str(each["content"]) for each in messages))


class Conversation:
    """One conversation, turn by turn. `turns` are those answered, `answers` what was said in them."""

    def __init__(self, strategy: Strategy, asked: Asked, engine_port: int = 0) -> None:
        self._strategy = strategy
        self._asked = asked
        self._engine_port = engine_port
        self._history: list[Message] = [{"role": "system", "content": SYSTEM_PROMPT}]
        self.turns: list[Turn] = []
        self.answers: list[str] = []

    def turn(self, number: int) -> str:
        """Hold one turn; return the refusal, if the engine refused it."""
        text = message(number)
        said, sent = self._ask(text)
        if said.refused:
            return said.refused
        if not said.text.strip():
            raise BenchmarkFailed(f"turn {number} was answered with nothing")
        self.answers.append(said.text)
        time.sleep(_QUIET)
        evaluated, prompt = self._reached(said, sent, text)
        told = recent_fact(number)
        self.turns.append(
            Turn(
                number,
                round(said.ttft_ms, 2),
                said.prompt_tokens,
                evaluated,
                new=0,
                messages=None if prompt is None else prompt.messages,
                system_fact=None if prompt is None else SYSTEM_FACT in prompt.text,
                recent_fact=None if prompt is None or not told else told in prompt.text,
            )
        )
        return ""

    def _ask(self, text: str) -> tuple[Said, list[Message]]:
        client = self._asked.client
        if not isinstance(client, Direct):
            return client.ask(text), []
        self._history.append({"role": "user", "content": text})
        sent = fitting(self._history) if self._strategy.kind == "naive" else list(self._history)
        said = client.ask(sent)
        self._history.append({"role": "assistant", "content": said.text})
        return said, sent

    def _reached(self, said: Said, sent: list[Message], text: str) -> tuple[int, Prompt | None]:
        """Return what was evaluated since the last turn, and the turn's prompt."""
        asked = self._asked
        if asked.proxy is None:
            if said.cached is None:
                raise BenchmarkFailed("the embedded engine did not say what was in its cache")
            return said.prompt_tokens - said.cached, None
        chats, evaluated = asked.proxy.taken()
        if asked.log is not None:
            evaluated = asked.log.evaluated(len(chats))
        # The service may ask for more than answers: for a summary, say.
        asking = next((chat["messages"] for chat in chats if str(chat["messages"][-1]["content"]).endswith(text)), None)
        if asking is None or evaluated is None:
            raise BenchmarkFailed("the engine was not seen to be asked what the user said")
        if sent and asked.log is not None and isinstance(asked.client, Direct):
            rendered = asked.client.rendered(sent, self._engine_port)
            return evaluated, Prompt(rendered.count("<|im_start|>") - 1, rendered)
        return evaluated, Prompt.of(asking)


def converse(strategy: Strategy, asked: Asked, turns: int) -> tuple[Row, list[str]]:
    """Hold the conversation; return its row, in which what was new is still to be counted, and the answers."""
    conversation = Conversation(strategy, asked, asked.target.engine_port if asked.target else 0)
    row = Row(strategy.engine, strategy.kind, strategy.title, conversation.turns)
    for number in range(1, turns + 1):
        if refusal := conversation.turn(number):
            row.note = f"turn {number} was refused: {refusal}"
            break
    return row, conversation.answers


def counted(turns: Sequence[Turn], answers: Sequence[str], count: Callable[[Sequence[str]], list[int]]) -> None:
    """Write into the turns how many tokens were new in each."""
    before = ["", *answers]
    texts = [appended(turn.turn, before[turn.turn - 1]) for turn in turns]
    for turn, new in zip(turns, count(texts), strict=True):
        turn.new = new


def run(strategies: Sequence[Strategy], turns: int, ollama: str, threads: int | None) -> Iterator[Row]:
    """Hold one conversation after the other and yield its row; says on standard error how far it is."""
    with tempfile.TemporaryDirectory(prefix="fasttalk-context-") as name:
        for number, strategy in enumerate(strategies):
            folder = Path(name) / f"{number}"
            row, answers = _row(strategy, turns, ollama, folder, threads)
            if row.turns:
                with context_engines.tokenizer(folder / "tokenizer") as count:
                    counted(row.turns, answers, count)
            yield row


def _row(strategy: Strategy, turns: int, ollama: str, folder: Path, threads: int | None) -> tuple[Row, list[str]]:
    missing = Row(strategy.engine, strategy.kind, strategy.title)
    if strategy.engine == "ollama" and not ollama:
        missing.note = real_engines.OLLAMA_ADVICE
        return missing, []
    _say(f"{strategy.name}: {turns} turns")
    began = time.monotonic()
    try:
        with context_engines.started(strategy, ollama, folder, threads) as asked:
            row, answers = converse(strategy, asked, turns)
        _say(f"{strategy.name}: {len(row.turns)} answered in {time.monotonic() - began:.0f} s")
        return row, answers
    except (BenchmarkFailed, OSError) as error:
        # The others' figures are still worth having.
        _say(f"{strategy.name} FAILED: {error}")
        missing.note, missing.failed = f"failed: {(str(error) or repr(error)).splitlines()[0]}", True
        return missing, []


def chosen(engines: str) -> list[Strategy]:
    """Return the strategies of the engines named, or all.

    Raises:
        ValueError: there is no such engine.
    """
    wanted = engines.split(",") if engines else list(ENGINES)
    if unknown := set(wanted) - set(ENGINES):
        raise ValueError(f"no such engine: {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    return [strategy for strategy in STRATEGIES if strategy.engine in wanted]


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    _add_options(commands.add_parser("context", help="real engines: a long conversation beside naive ones"))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=_turns, default=TURNS, metavar="N", help=f"default {TURNS}")
    parser.add_argument("--engines", default="", help=f"of {', '.join(ENGINES)}; comma-separated; default: all")
    parser.add_argument("--ollama", type=Path, help="the program; default: the PATH's, or scripts/build-ollama.sh's")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks", help="where results are written")
    parser.add_argument("--threads", type=int, metavar="N", help="of the engines; default: one for each physical core")
    parser.set_defaults(run=_run)


def _turns(text: str) -> int:
    number = int(text)
    if not 1 <= number <= TURNS:
        raise argparse.ArgumentTypeError(f"from 1 to {TURNS}")
    return number


def _run(options: argparse.Namespace) -> int:
    strategies = chosen(options.engines)
    ollama = real_engines.find_ollama(options.ollama)
    described = {**machine(), **real_engines.versions(ollama)}
    arguments = sys.argv[1:] if "context" in sys.argv[1:2] else ["context", *sys.argv[1:]]
    command = " ".join(["python -m benchmarks", *arguments])
    rows: list[Row] = []
    written: list[Path] = []
    for row in run(strategies, options.turns, ollama, options.threads):
        rows.append(row)
        described["load_after"] = f"{os.getloadavg()[0]:.2f}"
        # After each one: a run takes long, and one that is cut short has its use.
        written = write(options.out, rows, described, options.turns, command)
    print(table(rows, options.turns))
    for path in written:
        _say(f"wrote {show(path)}")
    return int(any(row.failed for row in rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run it by itself; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__)
    _add_options(parser)
    options = parser.parse_args()
    try:
        return _run(options)
    except (BenchmarkFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
