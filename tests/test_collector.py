"""The collector of cycles: when it looks, and that it has nothing to find of a session that is over."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Generator

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.server import ServerProtocol

from llm_service.collector import GROWN, IDLE_PORTION, OVERDUE, PORTION, Collector
from llm_service.connection import Connection
from llm_service.engines.scripted import ScriptedEngine
from llm_service.live_session import LiveSession
from llm_service.protocols import WireWebSocketProtocol
from llm_service.session import Session
from llm_service.speaking import Speaking
from llm_service.speech.forwarder import Forwarder
from tests.engines.fake_server import fake_server
from tests.live import ask, collect, live_service, receive, send, start
from tests.speech import doubles


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


def _cycle() -> weakref.ref[_Cycle]:
    return weakref.ref(_Cycle())


@pytest.fixture
def collector() -> Generator[Collector, None, None]:
    """One that is in charge."""
    collector = Collector()
    with collector.in_charge():
        yield collector


def test_python_does_it_until_somebody_is_in_charge() -> None:
    """Without a block around it a collector does nothing; behind the block Python collects as before."""
    collector = Collector()
    gc.disable()
    try:
        cycle = _cycle()
        kept = [[] for _ in range(2 * IDLE_PORTION)]  # type: ignore[var-annotated]
        collector.look(busy=False)
        assert cycle() is not None
        with collector.in_charge():
            assert not gc.isenabled()
            cycle = _cycle()
            kept += [[] for _ in range(2 * IDLE_PORTION)]
            collector.look(busy=False)
            assert cycle() is None
        assert gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("busy", "portion"), [(True, PORTION), (False, IDLE_PORTION)])
def test_a_portion_is_looked_through(collector: Collector, *, busy: bool, portion: int) -> None:
    """A cycle is found when a portion of other objects was made beside it, and not before: it is larger while answers
    run."""
    cycle = _cycle()
    kept = [[] for _ in range(portion // 2)]  # type: ignore[var-annotated]
    collector.look(busy=busy)
    assert cycle() is not None
    kept += [[] for _ in range(portion // 2)]
    collector.look(busy=busy)
    assert cycle() is None


@pytest.mark.parametrize(("busy", "due"), [(False, GROWN), (True, OVERDUE * GROWN)])
def test_all_is_looked_through_when_much_has_grown(collector: Collector, *, busy: bool, due: int) -> None:
    """A cycle that was held when its portion was looked through is found among all there is: as soon as no answer
    runs, or where answers always run once it is overdue."""
    held = _Cycle()
    kept = [[] for _ in range(2 * (PORTION if busy else IDLE_PORTION))]  # type: ignore[var-annotated]
    collector.look(busy=busy)
    cycle = weakref.ref(held)
    del held
    kept += [[] for _ in range(due // 2)]
    collector.look(busy=busy)
    assert cycle() is not None
    kept += [[] for _ in range(due // 2)]
    collector.look(busy=busy)
    assert cycle() is None


def test_what_grows_with_the_rest_is_due_later(collector: Collector) -> None:
    """Among many objects all are looked through when as many have been added: it takes longer with each."""
    kept = [[] for _ in range(2 * GROWN)]  # type: ignore[var-annotated]
    collector.look(busy=False)
    held = _Cycle()
    kept += [[] for _ in range(PORTION)]
    collector.look(busy=False)
    cycle = weakref.ref(held)
    del held
    kept += [[] for _ in range(GROWN + PORTION)]
    collector.look(busy=False)
    assert cycle() is not None
    kept += [[] for _ in range(GROWN)]
    collector.look(busy=False)
    assert cycle() is None


async def _ended(socket: ClientConnection) -> None:
    await ask(socket, "hello")
    await send(socket, "end_session")
    await receive(socket)
    await socket.close()


async def _lost(socket: ClientConnection) -> None:
    await send(socket, "user_message", text="hello")
    await receive(socket)
    socket.transport.abort()


async def _cancelled(socket: ClientConnection) -> None:
    await send(socket, "user_message", text="hello")
    await receive(socket)
    await send(socket, "cancel")
    await collect(socket)
    await socket.close()


async def _mistaken(socket: ClientConnection) -> None:
    await socket.send("no JSON")
    await receive(socket)
    await ask(socket, "hello")
    await socket.close()


async def _summarized(socket: ClientConnection) -> None:
    await send(socket, "partial_message", text="hel")
    for _ in range(3):
        await ask(socket, "hello " * 400)
    await socket.close()


OURS = (LiveSession, Session, Connection, WireWebSocketProtocol, ServerProtocol, Speaking, Forwarder)


@pytest.mark.parametrize("leave", [_ended, _lost, _cancelled, _mistaken, _summarized])
@pytest.mark.parametrize("spoken", [False, True], ids=["text", "speech"])
async def test_a_session_that_is_over_is_gone(
    leave: Callable[[ClientConnection], Awaitable[None]], *, spoken: bool
) -> None:
    """Of a session and its connection nothing is left for the collector to find, however they end: what was said in it
    is out of the memory as soon as they are over."""
    engine = ScriptedEngine(lambda _: ["word "] * 40, tokens_per_second=400, models=())
    async with fake_server() as tts:
        tts.answer = doubles.openai
        environment = {"RESUME_WINDOW": "0", "CONTEXT_STRATEGY": "summarize"}
        if spoken:
            environment |= {"TTS_ENDPOINTS": f"openai={tts.url}/v1"}
        async with live_service(engine, environment, context_window=1024) as live:
            gc.collect()
            gc.disable()
            try:
                before = _ours()  # of other tests
                async with live.connect() as socket:
                    await start(socket, **({"speech": {"enabled": True, "format": "pcm"}} if spoken else {}))
                    await ask(socket, "hello")
                    made = {type(each) for each in _ours(*before)}
                    assert made == {LiveSession, Session, Connection, WireWebSocketProtocol, ServerProtocol} | (
                        {Speaking, Forwarder} if spoken else set()
                    )
                    await leave(socket)
                del socket
                async with asyncio.timeout(5):
                    await live.service.empty.wait()
                    while _ours(*before):
                        await asyncio.sleep(0.01)
            finally:
                gc.enable()


def _ours(*but: object) -> list[object]:
    """What there is of a session and its connection."""
    known = set(map(id, but))
    return [each for each in gc.get_objects() if type(each) in OURS and id(each) not in known]
