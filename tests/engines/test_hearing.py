"""When an engine was last heard, and who gives it up."""

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from llm_service.engines.base import timed
from llm_service.engines.hearing import HearingEngine
from llm_service.engines.loading import LoadingEngine
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import EngineTimeout, GenerationFailed
from llm_service.generation import Finish, GenerationRequest, Sink
from tests.engines.requests import a_request


class Heard:
    """A scripted engine that is listened to."""

    def __init__(self, *faults: Fault) -> None:
        self.inner = ScriptedEngine(lambda _: ["a ", "b "], models=(), tokens_per_second=1e6, faults=faults)
        self.engine = HearingEngine(self.inner)
        self.sinks: list[Sink] = []

    def ask(self, model: str = "small") -> asyncio.Task[Finish]:
        """Ask in a task."""
        self.sinks.append(timed(lambda _: None))
        return asyncio.create_task(self.engine.generate(a_request(model=model), self.sinks[-1]))


async def until(condition: Callable[[], object]) -> None:
    """Let the loop go on until something is so."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def all_of_them(_: GenerationRequest) -> bool:
    """Choose every request."""
    return True


async def test_who_gives_it_up() -> None:
    """Those who are chosen and have heard nothing; an answer that has begun goes on, and so does one not chosen."""
    heard = Heard(Fault(1), Fault(0), Fault(0))
    begun, silent, other = heard.ask(), heard.ask(), heard.ask("other")
    await until(lambda: heard.sinks[0].times and heard.inner.running == 3)
    heard.engine.give_up(lambda request: request.model == "small")
    heard.engine.give_up(lambda request: request.model == "small")
    with pytest.raises(EngineTimeout, match="answers nothing, not even pings"):
        await silent
    assert ([False, False], 2) == ([begun.done(), other.done()], heard.inner.running)
    heard.engine.give_up(all_of_them)
    with pytest.raises(EngineTimeout):
        await other
    begun.cancel()
    with pytest.raises(asyncio.CancelledError):
        await begun
    assert 0 == heard.inner.running


async def test_a_call_that_is_being_written_has_begun() -> None:
    """It is handed over whole, and is no silence; what another attempt left behind does not count."""
    heard = Heard(Fault(0), Fault(0))
    calling, asked = heard.ask(), heard.ask()
    heard.sinks[1].progress_at = monotonic() - 1
    await until(lambda: heard.inner.running == 2)
    heard.sinks[0].progress_at = monotonic()
    heard.engine.give_up(all_of_them)
    with pytest.raises(EngineTimeout):
        await asked
    assert not calling.done()
    calling.cancel()
    await asyncio.gather(calling, return_exceptions=True)


class HangingLoad(ScriptedEngine):
    async def load(self, model: str, context_window: int) -> None:
        await asyncio.Event().wait()


async def test_one_that_hangs_while_it_loads() -> None:
    """Is given up as well: a load has a longer deadline than any."""
    engine = HearingEngine(LoadingEngine(HangingLoad(), load_timeout=60, kept=60))
    task = asyncio.create_task(engine.generate(a_request(), timed(lambda _: None)))
    await asyncio.sleep(0)
    engine.give_up(all_of_them)
    with pytest.raises(EngineTimeout):
        await task


async def test_when_it_was_last_heard() -> None:
    """Never; at a word of an answer that runs, one that broke off included; at an answer's end."""
    heard = Heard(Fault(0), Fault(1), Fault(1, GenerationFailed("it broke")))
    assert 0 == heard.engine.heard_at
    silent = heard.ask()
    await until(lambda: heard.inner.running)
    assert 0 == heard.engine.heard_at
    running = heard.ask()
    await until(lambda: heard.sinks[1].times)
    assert heard.sinks[1].times[-1] == heard.engine.heard_at
    with pytest.raises(GenerationFailed):
        await heard.ask()
    assert heard.sinks[2].times[-1] == heard.engine.heard_at
    await heard.ask()
    assert heard.engine.heard_at >= heard.sinks[3].times[-1]
    for task in (silent, running):
        task.cancel()
    await asyncio.gather(silent, running, return_exceptions=True)
    assert heard.engine.heard_at >= heard.sinks[3].times[-1]


class Failing(ScriptedEngine):
    """Fails by something else when it is given up."""

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        try:
            return await super().generate(request, sink)
        except asyncio.CancelledError:
            raise GenerationFailed("it broke") from None


async def test_the_task_is_cancelled_by_nothing_else() -> None:
    """Whatever comes of the giving up, nothing of it is left; and a cancel of the client's stays one."""
    for kind, error in ((ScriptedEngine, EngineTimeout), (Failing, GenerationFailed)):
        engine = HearingEngine(kind(faults=[Fault(0), Fault(0)]))
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(engine.give_up, all_of_them)
        with pytest.raises(error):
            await engine.generate(a_request(model="scripted"), timed(lambda _: None))
        assert 0 == task.cancelling()
    engine = HearingEngine(ScriptedEngine(faults=[Fault(0)]))
    asked = asyncio.create_task(engine.generate(a_request(model="scripted"), timed(lambda _: None)))
    await asyncio.sleep(0)
    asked.cancel()
    engine.give_up(all_of_them)
    with pytest.raises(asyncio.CancelledError):
        await asked
