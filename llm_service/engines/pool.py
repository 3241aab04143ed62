"""Several engines as one: each request goes to the one that is best for it, and to another if that one fails.

What was said already can't be taken back: after the first token another engine may go on with the answer, not begin it
anew.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import msgspec

from llm_service.engine_health import EngineHealth
from llm_service.engines.continuation import Continuation
from llm_service.engines.limited import Admission
from llm_service.engines.members import MemberEngine, Members
from llm_service.engines.permits import Permits
from llm_service.engines.protection import ProtectedEngine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import (
    CircuitOpen,
    ContextOverflow,
    EngineError,
    EngineTimeout,
    EngineUnreachable,
    FastTalkError,
    GenerationFailed,
    ModelNotFound,
    ResponseTimeout,
    StreamStalled,
)
from llm_service.generation import Finish, GenerationRequest, Sink
from llm_service.metrics import FailoverMoment

# Sessions whose engine is remembered, the newest ones.
MOST_SESSIONS = 10_000
# A session stays with its engine unless that has more than so many times, and so many, more to do than another.
TIMES_BUSIER, MORE = 2, 4
# Seconds in an answer's middle: for others to be found while those that can go on with it are busy, and for a count of
# what was said.
LOOK_LONGER, COUNT_SECONDS = 1.0, 1.0
# What ends an answer in its middle and says nothing against its rest.
BROKE_OFF = (EngineUnreachable, EngineTimeout, GenerationFailed, StreamStalled)


@dataclass(frozen=True, slots=True)
class PoolMember:
    """An engine, what protects it, and how it is."""

    engine: MemberEngine
    protected: ProtectedEngine
    health: EngineHealth

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def permits(self) -> Permits:
        return self.protected.engine.permits

    @property
    def free(self) -> bool:
        return self.permits.taken < self.permits.limit

    @property
    def usable(self) -> bool:
        """Whether an answer of it can be hoped for. One that failed too often is not tried at a client's expense."""
        return self.health.reachable and self.protected.breaker.state == "closed"

    def due(self, now: float) -> bool:
        """Whether it is to be tried, since it failed too often and has rested."""
        breaker = self.protected.breaker
        return self.health.reachable and self.free and breaker.state != "closed" and not breaker.refuses(now)

    def statistics(self, now: float) -> dict[str, object]:
        """Return how it stands, for `/stats`."""
        return self.protected.statistics(now) | {
            "provider": self.engine.provider,
            "healthy": self.health.reachable,
            "problem": self.health.problem,
            "models": sorted(self.engine.offers),
        }


class PoolEngine(EngineWrapper):
    """Asks the engine with the fewest running answers among the healthy that have the model.

    A session stays with the engine that holds its prompt in a cache, as far as that is not much busier than others.
    `failed_over` hears of each request that goes on to another engine, with the one that failed, its error, and whether
    that was before or after the first token.
    """

    def __init__(
        self,
        members: Sequence[PoolMember],
        admission: Admission,
        *,
        failed_over: Callable[[PoolMember, FastTalkError, FailoverMoment], None] = lambda *_: None,
    ) -> None:
        super().__init__(Members([member.engine for member in members]))
        self._members = tuple(members)
        self._admission = admission
        self._failed_over = failed_over
        self._at: OrderedDict[str, PoolMember] = OrderedDict()

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand an answer to `sink`; if its engine fails in the middle, the rest of it from one that can go on with it.

        Raises:
            EngineError: the first one's, when no other engine has the model or each of them failed, too.
            Overloaded: all that have the model are busy, and were for too long.
        """
        errand = _Errand(request, sink)
        usable = self._usable(errand)
        if not usable:
            raise self._nobody(request.model)
        while True:
            member = await self._admitted(errand, usable)
            if sink.asks is not None:
                sink.asks(member.name)
            try:
                finish = await member.protected.engine.admitted(errand.request, errand.sink)
            except ResponseTimeout:
                raise
            except (EngineError, ContextOverflow) as error:
                self._note(member, error)
                told = errand.failed(member.name, error)
                usable = await self._others(errand) if told is None else []
                if not usable:
                    raise (told or errand.error) from None
                self._failed_over(member, error, "before" if errand.rest is None else "after")
            else:
                self._stay(request.session_id, member)
                return finish if errand.rest is None else errand.rest.whole(finish)

    def leave_silent(self) -> None:
        """Have others asked for what those that are known to say nothing were asked for, and have not begun."""
        for member in self._members:
            if member.permits.silent:
                others = [each for each in self._members if each.usable and each is not member]
                member.protected.hearing.give_up(
                    lambda request, others=others: any(request.model in each.engine.offers for each in others)  # type: ignore[misc]
                )

    async def _others(self, errand: "_Errand") -> list[PoolMember]:
        """Return who may be asked now; of an answer that has begun those that are seen to go on with it."""
        errand.passed_over.clear()
        usable = self._usable(errand)
        if errand.rest is None or errand.request.messages[-1].role != "assistant":
            return usable
        found = await _able(usable, errand.request, errand.rest.said)
        # What the client asked for holds for both parts, whichever of them goes on.
        if most := max((count for _, count in found if count is not None), default=0):
            errand.request = errand.rest.counted(errand.request, most)
        able = [member for member, _ in found]
        # Nobody else comes into question meanwhile: it was not looked at.
        errand.passed_over |= {member.name for member in self._members if member not in able}
        return able

    def _usable(self, errand: "_Errand") -> list[PoolMember]:
        """Return who may be asked for the model: the well ones, else those not known to be silent, else all."""
        model, out = errand.request.model, errand.tried | errand.passed_over
        having = [member for member in self._members if model in member.engine.offers and member.name not in out]
        usable = [member for member in having if member.usable]
        return usable or [member for member in having if not member.permits.silent] or having

    async def _admitted(self, errand: "_Errand", usable: list[PoolMember]) -> PoolMember:
        """Return one that may be asked, with a permit of it taken; `usable` are those at the moment."""
        request = errand.request
        free = [member for member in usable if member.free]
        if free:
            member = self._best(free, request.session_id)
            member.permits.taken += 1
            return member

        def wanted(permits: Permits) -> bool:
            return any(member.permits is permits for member in self._usable(errand))

        engines = [member.permits for member in usable]
        permits = await self._admission.wait(request, errand.sink, engines, wanted, again=bool(errand.tried))
        return next(member for member in self._members if member.permits is permits)

    def _best(self, free: list[PoolMember], session: str) -> PoolMember:
        least = min(free, key=lambda member: member.permits.taken)
        same = self._at.get(session)
        if same is not None and same in free:
            busy, other = same.permits.taken, least.permits.taken
            if busy <= max(TIMES_BUSIER * other, other + MORE):
                return same
        return least

    def _stay(self, session: str, member: PoolMember) -> None:
        if not session:
            return
        self._at[session] = member
        self._at.move_to_end(session)
        if len(self._at) > MOST_SESSIONS:
            self._at.popitem(last=False)

    def _note(self, member: PoolMember, error: FastTalkError) -> None:
        """Ask it no more, if it is gone, until it answers again."""
        if isinstance(error, EngineUnreachable):
            member.health.note(error.message)

    def _nobody(self, model: str) -> EngineError:
        """Return the error of a model that no engine is known to have: some may not have been reached yet."""
        away = [member for member in self._members if not member.engine.offers]
        if away:
            problems = (f"{each.name}: {each.health.problem or 'it has none of its models any more'}" for each in away)
            return EngineUnreachable("; ".join(problems))
        return ModelNotFound(f"no engine has the model '{model}'")


class _Errand:
    """A request on its way: `request` and `sink` are of what is to be asked now, `rest` if that is an answer's rest.

    `tried` are the engines that are asked no more, `error` is what the first of them failed by; those that are
    `passed_over` are not asked unless the next fails, too.
    """

    __slots__ = ("_began", "_original", "error", "passed_over", "request", "rest", "sink", "tried")

    def __init__(self, request: GenerationRequest, sink: Sink) -> None:
        self._original = (request, sink)
        self._began = monotonic()
        self.request = request
        self.sink = sink
        self.rest: Continuation | None = None
        self.tried: set[str] = set()
        self.passed_over: set[str] = set()
        self.error: EngineError

    def failed(self, name: str, error: EngineError | ContextOverflow) -> FastTalkError | None:
        """Take note of a failure; returns what the client is told if no other engine would do better, else None."""
        if isinstance(error, ContextOverflow):
            # The client's message had room, whatever the rest of the answer has.
            return error if self.rest is None else self.error
        if not self.tried or isinstance(self.error, CircuitOpen):
            self.error = error
        self.tried.add(name)
        if self.sink.times:
            rest = Continuation.of(*self._original) if isinstance(error, BROKE_OFF) else None
            if rest is None:
                return self.error
            self.rest, self.request, self.sink = rest, rest.request, rest.sink
        self.request = msgspec.structs.replace(self.request, spent=monotonic() - self._began)
        return None


async def _able(
    members: Sequence[PoolMember], request: GenerationRequest, said: str
) -> list[tuple[PoolMember, int | None]]:
    """Return those that are seen to go on with what was said, each with its count of it.

    The first that can, and is free, is enough: the client hears nothing meanwhile, and another may take its time.
    """
    looks = {asyncio.create_task(_looked_at(member, request, said)): member for member in members}
    found: list[tuple[PoolMember, int | None]] = []
    pending = set(looks)
    try:
        while pending and not any(member.free for member, _ in found):
            done, pending = await asyncio.wait(
                pending, timeout=LOOK_LONGER if found else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
            ends = [(member, look.result()) for look, member in looks.items() if look in done]
            found += [(member, count) for member, (goes_on, count) in ends if goes_on]
    finally:
        for look in pending:
            look.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return found


async def _looked_at(member: PoolMember, request: GenerationRequest, said: str) -> tuple[bool, int | None]:
    """Return whether it would go on, and its count of what was said, if that comes in time."""

    async def count() -> int | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(COUNT_SECONDS):
                return await member.engine.count_tokens(request.model, said)
        return None

    async def goes_on() -> bool:
        try:
            return await member.protected.engine.continues(request)
        except EngineError:
            return False

    able, tokens = await asyncio.gather(goes_on(), count())
    return able, tokens
