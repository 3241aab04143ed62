"""The engines of a pool, each by the name it has there."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from llm_service.engines.base import Engine
from llm_service.engines.wrapper import EngineWrapper
from llm_service.errors import EngineError, EngineUnreachable, ModelNotFound
from llm_service.generation import Finish, GenerationRequest, Sink


class MemberEngine(EngineWrapper):
    """An engine that is asked for models by the names that sessions use.

    `names` maps these to the engine's own; empty stands for those of `wanted` that it lists under the same name.
    What it has is looked at again when it may have changed: it was away, or lacks what it had.
    `window` is in tokens; an engine whose window for a model is smaller is not asked for it.
    """

    def __init__(
        self, engine: Engine, *, name: str, names: Mapping[str, str], wanted: Sequence[str], window: int | None = None
    ) -> None:
        super().__init__(engine)
        self.provider = engine.name
        self.window = window
        self.offers: dict[str, str] = {}  # what it was found to have
        self._sure = False  # whether it was there ever since that was found out
        self._doubts = 0  # how often there was reason to doubt it
        self._name = name
        self._names = names
        self._wanted = wanted

    @property
    def name(self) -> str:
        """Its name in the pool."""
        return self._name

    def own(self, model: str) -> str:
        """Return the engine's own name of a model.

        Raises:
            ModelNotFound: it has none of this name.
        """
        own = self.offers.get(model)
        if own is None:
            raise ModelNotFound(f"the engine {self._name} has no model '{model}'")
        return own

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink`."""
        name, own = request.model, self.own(request.model)
        if own != name:
            request = msgspec.structs.replace(request, model=own)
        try:
            return await self._engine.generate(request, sink)
        except (EngineUnreachable, ModelNotFound) as error:
            self._doubt(name, error)
            raise

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether it would go on with the request's last message."""
        return await self._engine.continues(msgspec.structs.replace(request, model=self.own(request.model)))

    async def load(self, model: str, context_window: int) -> None:
        """Bring the model into memory."""
        own = self.own(model)
        try:
            await self._engine.load(own, context_window)
        except (EngineUnreachable, ModelNotFound) as error:
            self._doubt(model, error)
            raise

    async def ping(self) -> None:
        """Return if it answers; one that may have other models than is known is looked at.

        Raises:
            ModelNotFound: it has none of the models that sessions may ask for.
        """
        if not (self._sure and self.offers):
            await self.look()
            return
        # A ping that is cancelled was not answered in time.
        self._sure, doubts = False, self._doubts
        await self._engine.ping()
        self._sure = doubts == self._doubts

    def _doubt(self, model: str, error: EngineError) -> None:
        """Look again at what it has, before long; until then it is not asked for a model that it turned out to lack."""
        self._sure = False
        self._doubts += 1
        if isinstance(error, ModelNotFound):
            self.offers.pop(model, None)

    async def look(self) -> None:
        """Find out what it has.

        Raises:
            ModelNotFound: it has none of the models that sessions may ask for.
        """
        doubts = self._doubts
        listed = await self._engine.models()
        names = self._names or {name: name for name in self._wanted}
        offers = {name: own for name, own in names.items() if own in listed or f"{own}:latest" in listed}
        if not offers:
            self.offers = {}
            wanted, has = ", ".join(sorted(names.values())), ", ".join(listed[:10]) or "none"
            raise ModelNotFound(f"it has no model {wanted}; it has {has}")
        if self.window is not None:
            await self._leave_out_small(offers, self.window)
        self.offers = offers
        self._sure = doubts == self._doubts

    async def _leave_out_small(self, offers: dict[str, str], window: int) -> None:
        for name, own in tuple(offers.items()):
            limit = await self._engine.context_window(own)
            if limit is not None and limit < window:
                del offers[name]
                problem = f"its window for {own} is {limit} tokens, less than the {window} of the others"
        if not offers:
            self.offers = {}
            raise ModelNotFound(f"{problem}; set DEFAULT_CONTEXT_WINDOW to what all of them have")

    async def models(self) -> list[str]:
        """The names by which it can be asked."""
        return list(self.offers)

    async def context_window(self, model: str) -> int | None:
        """The largest window, in tokens."""
        return await self._engine.context_window(self.own(model))

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone."""
        return await self._engine.count_tokens(self.offers[model], text) if model in self.offers else None


class Members:
    """All of them as one engine, the first that has a model standing for them: what a pool is made of."""

    def __init__(self, members: Sequence[MemberEngine]) -> None:
        self.members = tuple(members)

    @property
    def name(self) -> str:
        """What metrics and logs call them together."""
        return "pool"

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer of the first that has the model to `sink`."""
        return await self._having(request.model).generate(request, sink)

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether the first that has the model would go on with the request's last message."""
        return await self._having(request.model).continues(request)

    async def load(self, model: str, context_window: int) -> None:
        """Bring the model into the memory of all that have it.

        Raises:
            EngineError: none of them could.
        """
        having = [member for member in self.members if model in member.offers]
        results = await asyncio.gather(
            *(member.load(model, context_window) for member in having), return_exceptions=True
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        if failed and (len(failed) == len(having) or not all(isinstance(each, EngineError) for each in failed)):
            raise failed[0]

    async def ping(self) -> None:
        """Return if one of them answers.

        Raises:
            EngineUnreachable: none does; the message has the reasons.
        """
        results = await asyncio.gather(*(member.ping() for member in self.members), return_exceptions=True)
        problems = []
        for member, result in zip(self.members, results, strict=True):
            if result is None:
                return
            if not isinstance(result, EngineError):
                raise result
            problems.append(f"{member.name}: {result.message}")
        raise EngineUnreachable("; ".join(problems))

    async def models(self) -> list[str]:
        """The names of what at least one of them has."""
        return list(dict.fromkeys(name for member in self.members for name in member.offers))

    async def context_window(self, model: str) -> int | None:
        """The smallest of their windows for the model, in tokens; None where none tells."""
        limits = [await member.context_window(model) for member in self.members if model in member.offers]
        return min((limit for limit in limits if limit is not None), default=None)

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone, from the first that can count."""
        for member in self.members:
            count = await member.count_tokens(model, text)
            if count is not None:
                return count
        return None

    async def aclose(self) -> None:
        """Release connections and memory of all."""
        await asyncio.gather(*(member.aclose() for member in self.members))

    def _having(self, model: str) -> MemberEngine:
        for member in self.members:
            if model in member.offers:
                return member
        raise ModelNotFound(f"no engine has a model '{model}'")
