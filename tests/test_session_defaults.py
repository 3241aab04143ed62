from dataclasses import replace

import pytest

from llm_service.errors import InvalidConfig
from llm_service.generation import SamplingParams, Tool
from llm_service.session_config import SessionConfig, ToolFunction, ToolSpec
from llm_service.session_defaults import Choices, SessionDefaults

DEFAULTS = SessionDefaults(
    provider="scripted",
    model="small",
    models=frozenset({"small", "large"}),
    sampling=SamplingParams(temperature=0.7, top_p=0.9, top_k=40, max_tokens=2048),
    context_window=8192,
    system_prompt="Be kind.",
    max_history_messages=50,
    max_queued_messages=8,
)


@pytest.mark.parametrize(
    "config",
    [
        SessionConfig(),
        SessionConfig(model="large", context_window=8192),
        SessionConfig(model=None, context_window=None),
        SessionConfig(context_window=256, max_tokens=1_000_000),
    ],
)
def test_what_is_offered_is_not_refused(config: SessionConfig) -> None:
    """Any offered model and any window up to the service's own can be had."""
    assert DEFAULTS.refusal(config) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SessionConfig(model="huge"), "config.model: not offered here; offered are large, small"),
        (SessionConfig(model="Small"), "config.model: not offered here; offered are large, small"),
        (SessionConfig(context_window=8193), "config.context_window: must be at most 8192"),
    ],
)
def test_what_is_not_offered_is_refused(config: SessionConfig, message: str) -> None:
    """A refusal names the key and what can be had."""
    error = DEFAULTS.refusal(config)

    assert isinstance(error, InvalidConfig)
    assert message == error.message


def test_nothing_chosen_is_the_default() -> None:
    """A session whose client chose nothing is what the service says."""
    assert DEFAULTS.choices(SessionConfig()) == Choices(
        config=SessionConfig(),
        model="small",
        window=8192,
        sampling=DEFAULTS.sampling,
        system_prompt="Be kind.",
        tools=(),
        on_busy="reject",
        summarizes=False,
        warms=False,
        events=frozenset(),
        speech=None,
    )
    other = replace(DEFAULTS, context_strategy="summarize", warm=True).choices(SessionConfig())
    assert (True, True) == (other.summarizes, other.warms)


def test_what_was_chosen_is_had() -> None:
    """Each choice of a client stands in the place of the default."""
    config = SessionConfig(
        model="large",
        context_window=512,
        system_prompt="Be short.",
        temperature=1.5,
        top_p=0.5,
        top_k=1,
        max_tokens=16,
        stop=["END"],
        seed=7,
        on_busy="queue",
        context_strategy="summarize",
        warm=True,
        tools=[ToolSpec(function=ToolFunction(name="add", description="adds"))],
        events=["thinking"],
    )

    assert DEFAULTS.choices(config) == Choices(
        config=config,
        model="large",
        window=512,
        sampling=SamplingParams(1.5, 0.5, 1, 16, stop=("END",), seed=7),
        system_prompt="Be short.",
        tools=(Tool("add", "adds", {"type": "object", "properties": {}}),),
        on_busy="queue",
        summarizes=True,
        warms=True,
        events=frozenset({"thinking"}),
        speech=None,
    )
    eager = replace(DEFAULTS, context_strategy="summarize", warm=True)
    chosen = eager.choices(SessionConfig(context_strategy="trim", warm=False))
    assert (False, False) == (chosen.summarizes, chosen.warms)


def test_zeros_are_choices() -> None:
    """A zero is not taken for nothing: temperature 0 is the likeliest token, seed 0 is a seed."""
    sampling = DEFAULTS.choices(SessionConfig(temperature=0.0, top_p=0.0, seed=0, stop=[])).sampling

    assert SamplingParams(0.0, 0.0, 40, 2048, stop=(), seed=0) == sampling


def test_empty_system_prompt_is_none() -> None:
    """A client may choose to have no system prompt; a null takes the service's."""
    assert "" == DEFAULTS.choices(SessionConfig(system_prompt="")).system_prompt
    assert "Be kind." == DEFAULTS.choices(SessionConfig(system_prompt=None)).system_prompt
