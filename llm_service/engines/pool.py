"""Several engines as one: each request goes to the one that is best for it, and to another if that one fails.

What was said already can't be taken back: after the first token a failure is the client's to know.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from llm_service.engine_health import EngineHealth
from llm_service.engines.limited import Admission
from llm_service.engines.members import MemberEngine, Members
from llm_service.engines.permits import Permits
from llm_service.engines.protection import ProtectedEngine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import CircuitOpen, EngineError, EngineUnreachable, ModelNotFound, ResponseTimeout
from llm_service.generation import Finish, GenerationRequest, Sink

# Sessions whose engine is remembered, the newest ones.
MOST_SESSIONS = 10_000
# A session stays with its engine unless that has more than so many times, and so many, more to do than another.
TIMES_BUSIER, MORE = 2, 4


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

    def usable(self, now: float) -> bool:
        """Whether an answer of it can be hoped for."""
        return self.health.reachable and not self.protected.breaker.refuses(now)

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
    `failed_over` hears of each request that goes on to another engine, with the one that failed and its error.
    """

    def __init__(
        self,
        members: Sequence[PoolMember],
        admission: Admission,
        *,
        failed_over: Callable[[PoolMember, EngineError], None] = lambda *_: None,
    ) -> None:
        super().__init__(Members([member.engine for member in members]))
        self._members = tuple(members)
        self._admission = admission
        self._failed_over = failed_over
        self._at: OrderedDict[str, PoolMember] = OrderedDict()

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand an answer to `sink`.

        Raises:
            EngineError: the first one's, when no other engine has the model or each of them failed, too.
            Overloaded: all that have the model are busy, and were for too long.
        """
        tried: set[str] = set()
        first: EngineError | None = None
        while True:
            usable = self._usable(request.model, tried)
            if not usable:
                raise self._nobody(request.model)
            member = await self._admitted(request, sink, usable, tried)
            try:
                finish = await member.protected.engine.admitted(request, sink)
            except ResponseTimeout:
                raise
            except EngineError as error:
                self._note(member, error)
                tried.add(member.name)
                if first is None or isinstance(first, CircuitOpen):
                    first = error
                if sink.times:
                    raise
                if not self._usable(request.model, tried):
                    raise first from None
                self._failed_over(member, error)
            else:
                self._stay(request.session_id, member)
                return finish

    def _usable(self, model: str, tried: set[str]) -> list[PoolMember]:
        """Return who may be asked for the model: those that are well, or all that have it if none of them is."""
        now = monotonic()
        having = [member for member in self._members if model in member.engine.offers and member.name not in tried]
        return [member for member in having if member.usable(now)] or having

    async def _admitted(
        self, request: GenerationRequest, sink: Sink, usable: list[PoolMember], tried: set[str]
    ) -> PoolMember:
        """Return one that may be asked, with a permit of it taken; `usable` are those at the moment."""
        free = [member for member in usable if member.free]
        if free:
            member = self._best(free, request.session_id)
            member.permits.taken += 1
            return member

        def wanted(permits: Permits) -> bool:
            return any(member.permits is permits for member in self._usable(request.model, tried))

        permits = await self._admission.wait(request, sink, [member.permits for member in usable], wanted)
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

    def _note(self, member: PoolMember, error: EngineError) -> None:
        """Ask it no more, if it is gone, until it answers again."""
        if isinstance(error, EngineUnreachable):
            member.health.note(error.message)

    def _nobody(self, model: str) -> EngineError:
        """Return the error of a model that no engine is known to have: some may not have been reached yet."""
        away = [member for member in self._members if not member.engine.offers]
        if away:
            return EngineUnreachable("; ".join(f"{member.engine.name}: {member.health.problem}" for member in away))
        return ModelNotFound(f"no engine has the model '{model}'")
