"""The engines of a pool, each by its own names."""

import asyncio

import pytest

from llm_service.engines.base import timed
from llm_service.engines.members import MemberEngine, Members
from llm_service.engines.scripted import ScriptedEngine
from llm_service.errors import EngineUnreachable, ModelNotFound
from tests.engines.requests import a_request, begun


def member(
    name: str = "one", *, has: tuple[str, ...] = ("own",), **options: object
) -> tuple[ScriptedEngine, MemberEngine]:
    """Return an engine, and the same as a member."""
    inner = ScriptedEngine(models=has, tokens_per_second=1_000_000, window=4096)
    names: dict[str, str] = {"asked": "own"}
    return inner, MemberEngine(inner, **{"name": name, "names": names, "wanted": ("asked",), **options})  # type: ignore[arg-type]


async def test_it_is_asked_by_its_own_names() -> None:
    """Sessions say one name, the engine hears another."""
    inner, engine = member()
    await engine.ping()
    await engine.load("asked", 4096)
    await engine.generate(a_request(model="asked"), timed(lambda _: None))
    assert await engine.continues(begun(model="asked"))
    assert (["own"], "own") == (inner.loads, inner.requests[0].model)
    assert ("one", "scripted", ["asked"]) == (engine.name, engine.provider, await engine.models())
    assert (4096, 2) == (await engine.context_window("asked"), await engine.count_tokens("asked", "two words"))
    assert await engine.count_tokens("other", "two words") is None
    with pytest.raises(ModelNotFound, match="the engine one has no model 'own'"):
        await engine.generate(a_request(model="own"), timed(lambda _: None))


@pytest.mark.parametrize(
    ("has", "names", "offers"),
    [
        (("a", "b"), {}, {"a": "a"}),
        (("a:latest",), {}, {"a": "a"}),
        (("x", "y"), {"a": "x", "b": "z"}, {"a": "x"}),
    ],
)
async def test_what_it_offers(has: tuple[str, ...], names: dict[str, str], offers: dict[str, str]) -> None:
    """Of what it was said to have, or of what sessions may ask for, that which it lists."""
    _, engine = member(has=has, names=names, wanted=("a", "c"))
    await engine.look()
    assert offers == engine.offers


async def test_one_without_any_of_the_models() -> None:
    """It does not count as well, and says what it lacks and has."""
    _, engine = member(has=("x", "y"))
    with pytest.raises(ModelNotFound, match="it has no model own; it has x, y"):
        await engine.ping()


async def test_one_with_a_smaller_window() -> None:
    """It would refuse what the others take, and is left out."""
    _, engine = member(window=8192)
    with pytest.raises(ModelNotFound, match="its window for own is 4096 tokens, less than the 8192"):
        await engine.ping()
    _, engine = member(window=4096)
    await engine.ping()
    assert {"asked": "own"} == engine.offers


async def test_it_is_looked_at_again_when_it_comes_back() -> None:
    """It may have been started with other models: after a ping that failed, or one that was not answered in time."""
    inner, engine = member(names={"asked": "own", "more": "other"}, has=("own", "other"))
    listed = count_looks(inner)
    for _ in range(3):
        await engine.ping()
    assert (1, {"asked": "own", "more": "other"}) == (len(listed), engine.offers)
    inner._models = ["other"]
    inner.down = True
    with pytest.raises(EngineUnreachable):
        await engine.ping()
    inner.down = False
    await engine.ping()
    assert {"more": "other"} == engine.offers
    inner._models = ["own"]
    ping, inner.ping = inner.ping, asyncio.Event().wait  # type: ignore[method-assign, assignment]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await engine.ping()
    inner.ping = ping  # type: ignore[method-assign]
    await engine.ping()
    await engine.ping()
    assert (3, {"asked": "own"}) == (len(listed), engine.offers)
    inner.down = True
    with pytest.raises(EngineUnreachable):
        await engine.generate(a_request(model="asked"), timed(lambda _: None))
    inner.down, inner._models = False, ["neither"]
    with pytest.raises(ModelNotFound, match="it has no model other, own; it has neither"):
        await engine.ping()
    assert {} == engine.offers


@pytest.mark.parametrize("loads", [True, False])
async def test_a_model_that_it_turned_out_to_lack(*, loads: bool) -> None:
    """It is not asked for it any more, for the others it is, and looked at again at the next ping, or the one after."""
    inner, engine = member(names={"asked": "own", "more": "other"}, has=("own", "other"))
    await engine.look()
    inner._models = ["other"]
    with pytest.raises(ModelNotFound):
        if loads:
            await engine.load("asked", 4096)
        else:
            await engine.generate(a_request(model="asked"), timed(lambda _: None))
    assert {"more": "other"} == engine.offers
    inner._models = ["own", "other"]
    await engine.ping()
    assert {"asked": "own", "more": "other"} == engine.offers
    inner._models = ["other"]
    go_on = asyncio.Event()
    inner.ping = go_on.wait  # type: ignore[method-assign, assignment]
    pinging = asyncio.create_task(engine.ping())
    await asyncio.sleep(0)
    with pytest.raises(ModelNotFound):
        await engine.generate(a_request(model="asked"), timed(lambda _: None))
    go_on.set()
    await pinging
    inner._models = ["own", "other"]
    await engine.ping()
    assert {"asked": "own", "more": "other"} == engine.offers


async def test_a_smaller_window_after_a_restart() -> None:
    """It is left out from then on."""
    inner, engine = member(window=4096)
    await engine.ping()
    inner.down = True
    with pytest.raises(EngineUnreachable):
        await engine.ping()
    inner.down, inner._window = False, 2048
    with pytest.raises(ModelNotFound, match="its window for own is 2048 tokens"):
        await engine.ping()
    assert {} == engine.offers


def count_looks(inner: ScriptedEngine) -> list[object]:
    """Return a list that grows whenever an engine is asked what it has."""
    looks: list[object] = []
    models = inner.models

    async def counted() -> list[str]:
        looks.append(None)
        return await models()

    inner.models = counted  # type: ignore[method-assign]
    return looks


async def test_all_of_them_as_one() -> None:
    """The first that has a model stands for all; they are closed together."""
    (one, first), (two, second) = member("first"), member("second", names={"asked": "own", "more": "own"})
    engines = Members([first, second])
    one.down = True
    await engines.ping()
    assert ["asked", "more"] == await engines.models()
    one.down = False
    await engines.ping()
    assert ["asked", "more"] == await engines.models()
    assert await engines.continues(begun(model="more"))
    await engines.generate(a_request(model="more"), timed(lambda _: None))
    await engines.generate(a_request(model="asked"), timed(lambda _: None))
    assert (1, 1) == (len(one.requests), len(two.requests))
    assert (4096, None, 2) == (
        await engines.context_window("asked"),
        await engines.context_window("none"),
        await engines.count_tokens("more", "two words"),
    )
    with pytest.raises(ModelNotFound, match="no engine has a model 'none'"):
        await engines.generate(a_request(model="none"), timed(lambda _: None))
    await engines.aclose()
    assert (True, True) == (one.closed, two.closed)


async def test_loading_all() -> None:
    """One that can't is no reason to fail; none that can is."""
    (one, first), (two, second) = member("first"), member("second")
    engines = Members([first, second])
    await first.look()
    await second.look()
    one.models, one._models = [], ["gone"]  # type: ignore[assignment, method-assign]
    await engines.load("asked", 4096)
    assert ["own"] == two.loads
    two._models = ["gone"]
    with pytest.raises(ModelNotFound):
        await engines.load("asked", 4096)


async def test_when_none_answers() -> None:
    """The reasons of all are told."""
    (one, first), (two, second) = member("first"), member("second")
    one.down = two.down = True
    with pytest.raises(EngineUnreachable, match=r"first: .* down\.; second: .* down\."):
        await Members([first, second]).ping()
