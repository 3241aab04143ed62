"""Pools of scripted engines."""

import json
from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry

from llm_service.config import Settings
from llm_service.engine_set import EngineSet
from llm_service.engines.base import Engine, timed
from llm_service.engines.members import MemberEngine, Members
from llm_service.engines.scripted import ScriptedEngine
from llm_service.generation import Finish, GenerationRequest
from llm_service.metrics import Metrics
from tests.engines.requests import a_request
from tests.live import opened

MODEL = "test"


def named(names: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """Return the environment that names scripted engines, each with further keys."""
    specs = [{"name": name, "provider": "scripted", **keys} for name, keys in names.items()]
    return {"ENGINES": json.dumps(specs), "ENGINE_RETRIES": "0", "LLM_MODEL": MODEL}


def engine_set(
    engines: Mapping[str, Engine], environment: Mapping[str, str], registry: CollectorRegistry
) -> tuple[EngineSet, list[MemberEngine]]:
    """Return these engines behind all that protects them, and each by its name; all have the model."""
    members = [MemberEngine(engine, name=name, names={}, wanted=(MODEL,)) for name, engine in engines.items()]
    together = opened(Members(members), model=MODEL, members=tuple(members))
    return EngineSet(together, Settings.load(environment), Metrics(registry)), members


class Pool:
    """Scripted engines behind all that protects them; each says its name and some words, or all the same `words`."""

    def __init__(
        self,
        *names: str,
        environment: Mapping[str, str] | None = None,
        words: Sequence[str] = (),
        **keys: object,
    ) -> None:
        self.inner = {
            name: ScriptedEngine(
                lambda _, name=name: words or [f"{name} ", "says ", "it."],  # type: ignore[misc]
                models=(MODEL,),
                tokens_per_second=1_000_000,
            )
            for name in names
        }
        self.registry = CollectorRegistry()
        settings = {**named(dict.fromkeys(names, keys)), **(environment or {})}
        self.set, self.members = engine_set(self.inner, settings, self.registry)

    async def look(self) -> None:
        """Ask each how it is."""
        await self.set.health.check()

    async def ask(self, session: str = "", model: str = MODEL) -> tuple[str, Finish]:
        """Return what is said."""
        return await self.answer(msgspec.structs.replace(a_request(model=model), session_id=session))

    async def answer(self, request: GenerationRequest, *, goes_on: bool = False) -> tuple[str, Finish]:
        """Return what is said; with `goes_on` the pool may ask what was said so far, as it may of a session."""
        pieces: list[str] = []
        sink = timed(lambda delta: pieces.append(delta.text))
        if goes_on:
            sink.said = lambda: "".join(pieces)
        finish = await self.set.engine.generate(request, sink)
        return "".join(pieces), finish

    def taken(self) -> list[int]:
        """Return how many permits of each engine are taken."""
        return [member.permits.taken for member in self.set.members]

    def count(self, name: str, **labels: str) -> float | None:
        """Return a metric."""
        return self.registry.get_sample_value(f"fasttalk_{name}", labels)
