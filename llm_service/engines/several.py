"""Opens the engines that ENGINES names. One of them is enough to start; those that are away are asked again later."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog

from llm_service.config import Settings
from llm_service.devices import Device
from llm_service.engine_spec import EngineSpec
from llm_service.engines.base import Engine
from llm_service.engines.members import MemberEngine, Members
from llm_service.engines.model_files import BUNDLED_TEMPERATURE
from llm_service.engines.opened import COUNTING_ANSWERS, OpenedEngine
from llm_service.errors import EngineError, EngineUnavailable

# These are told the window, and refuse what is longer.
_TOLD = ("ollama", "llama_cpp")

_log = structlog.get_logger(__name__)


async def open_several(
    settings: Settings, device: Device, make: Callable[[EngineSpec], Awaitable[Engine]]
) -> OpenedEngine:
    """Open them; `make` gives the engine of a spec.

    Raises:
        EngineUnavailable: none of them has LLM_MODEL.
    """
    async with contextlib.AsyncExitStack() as made:
        members = []
        for spec in settings.engines:
            engine = await make(spec)
            made.push_async_callback(engine.aclose)
            members.append(await _member(spec, engine, settings))
        opened = await _looked_at(members, settings, device)
        made.pop_all()
    return opened


def default_model(settings: Settings) -> str:
    """Return the name by which sessions that choose none ask for a model."""
    return Path(settings.llm_model).stem if settings.embedded_model_named else settings.llm_model


async def _member(spec: EngineSpec, engine: Engine, settings: Settings) -> MemberEngine:
    wanted = (default_model(settings), *settings.allowed_models)
    names = spec.models
    if spec.provider == "llama_cpp":
        # It has one model, which stands for whatever it is asked for.
        (own,) = await engine.models()
        names = dict.fromkeys(spec.models or wanted[:1], own)
    return MemberEngine(engine, name=spec.name, names=names, wanted=wanted)


async def _looked_at(members: list[MemberEngine], settings: Settings, device: Device) -> OpenedEngine:
    model = default_model(settings)
    problems = await _problems(members, [member.look() for member in members])
    limits = {member.name: await _limit(member, model, problems) for member in members if model in member.offers}
    window = min((limit for limit in limits.values() if limit), default=settings.default_context_window)
    window = min(window, settings.default_context_window)
    having = [member for member in members if model in member.offers]
    if settings.preload:
        problems |= await _problems(having, [member.load(model, window) for member in having])
    for member in members:
        member.window = window
        if member.name in problems:
            member.offers.clear()  # it is looked at anew when it answers
            _log.warning("engine_away", engine=member.name, problem=problems[member.name])
    having = [member for member in having if model in member.offers]
    if not having:
        told = "; ".join(f"{name}: {problem}" for name, problem in problems.items()) or "they have others"
        raise EngineUnavailable(f"none of the {len(members)} engines of ENGINES has the model {model!r}: {told}")
    # What the bundled model wants, where no other answers.
    bundled = not settings.embedded_model_named and all(member.provider == "llama_cpp" for member in having)
    temperature = BUNDLED_TEMPERATURE if bundled else None
    return OpenedEngine(
        engine=Members(members),
        provider="pool",
        model=model,
        models=frozenset(_offered(members, settings)),
        context_window=window,
        device=device,
        reason=f"ENGINES names {len(members)}, of which {len(having)} can answer",
        counts_tokens=any([await member.count_tokens(model, "a") is not None for member in having]),
        temperature=temperature,
        window_enforced=all(
            member.provider in _TOLD or limits.get(member.name, window + 1) == window for member in members
        ),
        answer_in_window=any(member.provider in COUNTING_ANSWERS for member in members),
        members=tuple(members),
    )


def _offered(members: list[MemberEngine], settings: Settings) -> set[str]:
    """Return what sessions may ask for: what is there, and what was said to be on engines that are away."""
    told = {name for spec in settings.engines for name in spec.models}
    return told | {name for member in members for name in member.offers} | {default_model(settings)}


async def _limit(member: MemberEngine, model: str, problems: dict[str, str]) -> int | None:
    try:
        return await member.context_window(model)
    except EngineError as error:
        problems[member.name] = error.message
        return None


async def _problems(members: list[MemberEngine], work: list[Awaitable[None]]) -> dict[str, str]:
    """Wait for what each of them does; return the messages of those that could not, by name."""
    results = await asyncio.gather(*work, return_exceptions=True)
    problems = {}
    for member, result in zip(members, results, strict=True):
        if isinstance(result, EngineError):
            problems[member.name] = result.message
        elif result is not None:
            raise result
    return problems
