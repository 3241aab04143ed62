"""An engine that fails at every word of an answer, in every way: the exact text, or one typed error."""

from pathlib import Path

from benchmarks.reliability.client import Client, Event, Hung, Lost, answer, started
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import engine, service_before
from benchmarks.script import Script

FAULTS = ("reset", "cut", "end", "error", "garbage", "stall", "pieces")
# What each fault is to be told as.
_CODES = {"engine_unreachable", "generation_failed", "stream_stalled", "first_token_timeout", "engine_timeout"}
# Short, since each stall lasts as long.
_SETTINGS = {"TOKEN_TIMEOUT": "0.3", "FIRST_TOKEN_TIMEOUT": "0.3", "ENGINE_RETRIES": "0"}
_SYSTEM_TOKENS = 5 + 4  # of "You are a helpful assistant.", as the fake engine counts


class Asking:
    """One session that is failed to, and what its engine must have been told each time."""

    def __init__(self, client: Client, outcome: Outcome) -> None:
        self._client = client
        self._outcome = outcome
        self._tokens = _SYSTEM_TOKENS
        self._seed = 0
        self.doubled = self.wrong = self.lost_histories = self.errors = 0

    async def fail(self, words: int, fault: str, after: int) -> None:
        """Have an answer fail, then the same message answered: the history is as if it had not failed."""
        self._seed += 1
        script = Script(words, seed=self._seed, fault=fault, after=after)
        said, end = await answer(self._client, script.prompt)
        if fault == "pieces":
            self._whole(script, said, end)
        else:
            self._typed(script, said, end)
        for _ in range(2):
            # Twice, so that the breaker stays closed.
            self._seed += 1
            again = Script(words, seed=self._seed)
            self._whole(again, *await answer(self._client, again.prompt))
        self._client.send("start_session")
        while (await self._client.event()).type not in {"session_started", "session_configured"}:
            pass
        self._tokens = _SYSTEM_TOKENS

    def _whole(self, script: Script, said: str, end: Event) -> None:
        self._tokens += 5 + script.prompt.count(" ")
        if end.type != "response_complete" or said != script.text():
            self.wrong += 1
            self._note(script, f"{end.type} {end.error and end.error.code} after {said.count(' ')} words")
        elif end.stats is None or end.stats.prompt_tokens != self._tokens:
            self.lost_histories += 1
            self._note(script, f"{end.stats and end.stats.prompt_tokens} tokens of prompt, {self._tokens} expected")
        self._tokens += 5 + said.count(" ")

    def _typed(self, script: Script, said: str, end: Event) -> None:
        self.errors += 1
        if not script.text().startswith(said) or said.count(" ") > script.after:
            self.doubled += 1
        code = end.error.code if end.error is not None else None
        if not end.terminal or code not in _CODES:
            self.wrong += 1
            self._note(script, f"{end.type} {code}")

    def _note(self, script: Script, what: str) -> None:
        self._outcome.note(f"{script.fault or 'none'} after {script.after} words: {what}")


async def run(count: int, folder: Path, *, provider: str) -> Outcome:
    """Have an answer of so many words fail after each of them, and before the first."""
    outcome = Outcome()
    with (
        engine(folder) as (_, engine_port),
        service_before(engine_port, folder, _SETTINGS, provider=provider) as service,
    ):
        asking = Asking(await started(service.port), outcome)
        cases = [(fault, after) for fault in FAULTS for after in range(count + 1)]
        for fault, after in cases:
            try:
                await asking.fail(count, fault, after)
            except (Hung, Lost) as error:
                outcome.note(f"{fault} after {after} words: {error!r}")
                break
        service.check(outcome)
    outcome.figures.insert(0, f"{len(cases)} faults at {count + 1} places, {asking.errors} typed errors")
    outcome.none(asking.wrong, "wrong texts or ends")
    outcome.none(asking.doubled, "words doubled or past the fault")
    outcome.none(asking.lost_histories, "histories not as before the fault")
    return outcome
