import json
import os
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm_service import events, parsing
from llm_service.errors import (
    ClientError,
    EmptyMessage,
    InvalidConfig,
    InvalidJSON,
    InvalidMessage,
    UnknownMessageType,
)
from llm_service.parsing import parse
from llm_service.session_config import OnBusy, SessionConfig, config_as_sent

FUZZ = 20 if os.environ.get("FASTTALK_FUZZ") == "1" else 1
FULL_CONFIG: dict[str, Any] = {
    "system_prompt": "You are kind.",
    "model": "llama3.2:1b",
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "max_tokens": 2048,
    "stop": ["END"],
    "seed": 1,
    "context_window": 8192,
    "think": False,
    "on_busy": "queue",
    "context_strategy": "summarize",
    "warm": True,
    "tools": [
        {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
    ],
    "speech": {
        "enabled": True,
        "voice": "af_sarah:60,bm_george:40",
        "language": "pt-BR",
        "format": "opus",
        "speed": 1.5,
        "binary": True,
    },
    "events": ["thinking", "context", "chunk", "audio"],
}


def _tool(**function: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": "add", **function}}


def _refused(message: object) -> ClientError:
    with pytest.raises(ClientError) as caught:
        parse(message if isinstance(message, str) else json.dumps(message))
    return caught.value


def _config(**config: object) -> dict[str, object]:
    return {"type": "start_session", "config": config}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type": "cancel"}', events.Cancel()),
        (' {"type":"end_session"}\n', events.EndSession()),
        ('{"type": "start_session"}', events.StartSession()),
        ('{"type": "start_session", "config": null}', events.StartSession()),
        ('{"type": "start_session", "config": {}}', events.StartSession(config=SessionConfig())),
        (
            '{"type": "start_session", "session_id": "s-1", "last_seq": 0, "api_key": "k"}',
            events.StartSession(session_id="s-1", last_seq=0, api_key="k"),
        ),
        ('{"type": "user_message", "text": " hi "}', events.UserMessage(text=" hi ")),
        (
            '{"type": "user_message", "text": "\\u65e5\\ud83d\\ude42", "id": "u"}',
            events.UserMessage(text="日🙂", id="u"),
        ),
        ('{"type": "update_config", "config": {"seed": null}}', events.UpdateConfig(config=SessionConfig(seed=None))),
        ('{"type": "played", "chars": 5}', events.Played(chars=5)),
        ('{"type": "played", "chunk": 2, "chars": 5}', events.Played(chunk=2, chars=5)),
        ('{"type": "partial_message", "text": ""}', events.PartialMessage(text="")),
        ('{"type": "tool_result", "id": "c", "content": ""}', events.ToolResult(id="c", content="")),
        ('{"type": "cancel", "reason": "a newer client says more"}', events.Cancel()),
        ('{"type": "user_message", "type": "cancel"}', events.Cancel()),
    ],
)
def test_reads(text: str, expected: events.ClientMessage) -> None:
    """A message becomes the event it means; unknown fields of it are left out."""
    assert expected == parse(text)


def test_reads_every_key_of_a_config() -> None:
    """Each key that the model has can be given."""
    event = parse(json.dumps(_config(**FULL_CONFIG)))

    assert set(SessionConfig.model_fields) == set(FULL_CONFIG)
    assert events.StartSession(config=SessionConfig(**FULL_CONFIG)) == event


@pytest.mark.parametrize("key", FULL_CONFIG)
def test_any_key_of_a_config_may_be_null(key: str) -> None:
    """A null is the service's default, and is said back as it was sent."""
    event = parse(json.dumps({"type": "update_config", "config": {key: None}}))

    assert isinstance(event, events.UpdateConfig)
    assert {key: None} == config_as_sent(event.config)


def test_whole_numbers_are_numbers() -> None:
    """JSON knows one kind of number: 1 is a temperature."""
    event = parse('{"type": "start_session", "config": {"temperature": 1}}')

    assert events.StartSession(config=SessionConfig(temperature=1.0)) == event


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        "{",
        '{"type": "cancel"',
        '{"type": "cancel"} x',
        "{'type': 'cancel'}",
        '{"type": "cancel", "n": NaN}',
        '{"type": "cancel", "n": Infinity}',
        '{"type": "cancel", "n": 1e400}',
        '{"type": "cancel", "n": ' + "9" * 5000 + "}",
        '{"type": "user_message", "text": "\\ud800"}',
        '{"type": "user_message", "text": "\ud800"}',
        '"\x00"',
        "\ufeff{}",
    ],
    ids=range(14),
)
def test_not_json(text: str) -> None:
    """What is not JSON, or holds what JSON has no words for, is said not to be JSON."""
    error = _refused(text)

    assert InvalidJSON is type(error)
    assert "the message is not JSON" == error.message


@pytest.mark.parametrize("depth", [parsing.MAX_DEPTH, 100_000])
def test_too_deep(depth: int) -> None:
    """Nesting is bounded, however deep it goes."""
    error = _refused('{"type": "cancel", "n": ' + "[" * depth + "]" * depth + "}")

    assert InvalidJSON is type(error)
    assert str(parsing.MAX_DEPTH) in error.message


def test_deep_enough() -> None:
    """The deepest nesting that is allowed is read."""
    inner = parsing.MAX_DEPTH - 2
    assert events.Cancel() == parse('{"type": "cancel", "n": ' + "[" * inner + "1" + "]" * inner + "}")


@pytest.mark.parametrize("number", ["1" + "0" * 18, "-1" + "0" * 18, "9" * 400])
def test_too_large_an_integer(number: str) -> None:
    """Integers are bounded, even where nobody reads them."""
    error = _refused('{"type": "cancel", "n": [' + number + "]}")

    assert InvalidJSON is type(error)
    assert "18 digits" in error.message


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("null", "null"),
        ("true", "a boolean"),
        ("1", "a number"),
        ("1.5", "a number"),
        ('"cancel"', "a string"),
        ("[]", "an array"),
    ],
)
def test_not_an_object(text: str, kind: str) -> None:
    """A message is an object; what came instead is named."""
    error = _refused(text)

    assert InvalidMessage is type(error)
    assert f"a message is a JSON object with a type, not {kind}" == error.message


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({}, "none"),
        ({"type": None}, "null"),
        ({"type": 5}, "a number"),
        ({"type": {}}, "an object"),
        ({"type": "ping"}, "ping"),
        ({"type": "Cancel"}, "Cancel"),
        ({"type": "token"}, "token"),
        ({"type": "a\nb\x1b[31m\u202e"}, "a\ufffdb\ufffd[31m\ufffd"),
        ({"type": "x" * 65}, "x" * 64 + "…"),
    ],
    ids=range(9),
)
def test_unknown_type(message: dict[str, object], shown: str) -> None:
    """An unknown type is said back, short and printable, with the types that are known."""
    error = _refused(message)

    assert UnknownMessageType is type(error)
    known = "cancel, end_session, partial_message, played, start_session, tool_result, update_config, user_message"
    assert f"unknown message type: {shown}; known are {known}" == error.message


@pytest.mark.parametrize("message", [{}, {"text": ""}, {"text": " \t\r\n\u3000"}])
def test_empty_message(message: dict[str, object]) -> None:
    """A user message without text, or with white space alone, is empty."""
    error = _refused({"type": "user_message", **message})

    assert EmptyMessage is type(error)
    assert error.message.startswith("text is ")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "user_message", "text": None}, "text: must be a string"),
        ({"type": "user_message", "text": 5}, "text: must be a string"),
        ({"type": "user_message", "text": {"a": 1}}, "text: must be a string"),
        ({"type": "user_message", "text": "hi", "id": 1}, "id: must be a string"),
        ({"type": "user_message", "text": "hi", "id": "x" * 129}, "id: must have at most 128 characters"),
        ({"type": "user_message", "id": 1}, "text: is missing; id: must be a string"),
        ({"type": "start_session", "config": "x"}, "config: must be an object"),
        ({"type": "start_session", "config": []}, "config: must be an object"),
        ({"type": "start_session", "session_id": "x" * 65}, "session_id: must have at most 64 characters"),
        ({"type": "start_session", "last_seq": -1}, "last_seq: must be at least 0"),
        ({"type": "start_session", "last_seq": 1.0}, "last_seq: must be an integer"),
        ({"type": "start_session", "last_seq": "1"}, "last_seq: must be an integer"),
        ({"type": "start_session", "last_seq": True}, "last_seq: must be an integer"),
        ({"type": "start_session", "api_key": "k" * 513}, "api_key: must have at most 512 characters"),
        ({"type": "played", "chars": -1}, "chars: must be at least 0"),
        ({"type": "played", "chunk": "1"}, "chunk: must be an integer; chars: is missing"),
        ({"type": "partial_message"}, "text: is missing"),
        ({"type": "tool_result", "id": "x" * 129}, "id: must have at most 128 characters; content: is missing"),
        ({"type": "update_config"}, "config: is missing"),
        ({"type": "update_config", "config": None}, "config: must be an object"),
        (
            {"type": "start_session", "last_seq": -1, "config": {"top_k": 0}},
            "config.top_k: must be at least 1; last_seq: must be at least 0",
        ),
    ],
)
def test_invalid_message(message: dict[str, object], expected: str) -> None:
    """A message of a known type with a wrong field names the field and what it must be."""
    error = _refused(message)

    assert InvalidMessage is type(error)
    assert expected == error.message


INVALID_CONFIGS = [
    ("system_prompt", 5, "config.system_prompt: must be a string"),
    ("system_prompt", "x" * 32_769, "config.system_prompt: must have at most 32768 characters"),
    ("model", "", "config.model: must have at least 1 characters"),
    ("model", "x" * 513, "config.model: must have at most 512 characters"),
    ("temperature", "0.7", "config.temperature: must be a number"),
    ("temperature", True, "config.temperature: must be a number"),
    ("temperature", -0.1, "config.temperature: must be at least 0.0"),
    ("temperature", 2.1, "config.temperature: must be at most 2.0"),
    ("top_p", -1, "config.top_p: must be at least 0.0"),
    ("top_p", 1.01, "config.top_p: must be at most 1.0"),
    ("top_k", 0, "config.top_k: must be at least 1"),
    ("top_k", 1001, "config.top_k: must be at most 1000"),
    ("top_k", 1.5, "config.top_k: must be an integer"),
    ("top_k", False, "config.top_k: must be an integer"),
    ("max_tokens", 0, "config.max_tokens: must be at least 1"),
    ("max_tokens", 1_000_001, "config.max_tokens: must be at most 1000000"),
    ("stop", "END", "config.stop: must be an array"),
    ("stop", ["x"] * 17, "config.stop: must have at most 16 items"),
    ("stop", ["a", ""], "config.stop.1: must have at least 1 characters"),
    ("stop", ["x" * 101], "config.stop.0: must have at most 100 characters"),
    ("stop", [None], "config.stop.0: must be a string"),
    ("seed", -1, "config.seed: must be at least 0"),
    ("seed", 2**32, "config.seed: must be at most 4294967295"),
    ("context_window", 255, "config.context_window: must be at least 256"),
    ("context_window", 10_000_001, "config.context_window: must be at most 10000000"),
    ("think", 1, "config.think: must be true or false"),
    ("think", "true", "config.think: must be true or false"),
    ("on_busy", "wait", "config.on_busy: must be 'reject', 'interrupt' or 'queue'"),
    ("on_busy", [], "config.on_busy: must be 'reject', 'interrupt' or 'queue'"),
    (
        "events",
        ["sound"],
        "config.events.0: must be 'response_started', 'thinking', 'queued', 'context', 'chunk' or 'audio'",
    ),
    ("speech", True, "config.speech: must be an object"),
    ("speech", {"enabled": "yes"}, "config.speech.enabled: must be true or false"),
    ("speech", {"voice": "../x"}, "config.speech.voice: must match ^[A-Za-z0-9][A-Za-z0-9_.:,+ -]{0,127}$"),
    ("speech", {"language": "english!"}, "config.speech.language: must match ^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}$"),
    ("speech", {"format": "flac"}, "config.speech.format: must be 'pcm', 'wav', 'mp3' or 'opus'"),
    ("speech", {"speed": 5}, "config.speech.speed: must be at most 4.0"),
    ("speech", {"pitch": 1}, "config.speech.pitch: unknown key"),
    ("events", ["thinking"] * 17, "config.events: must have at most 16 items"),
    ("events", {}, "config.events: must be an array"),
    ("context_strategy", "forget", "config.context_strategy: must be 'trim' or 'summarize'"),
    ("warm", 1, "config.warm: must be true or false"),
    ("tools", {}, "config.tools: must be an array"),
    ("tools", [_tool()] * 65, "config.tools: must have at most 64 items"),
    ("tools", [{"type": "function"}], "config.tools.0.function: is missing"),
    ("tools", [_tool(name="a b")], "config.tools.0.function.name: must match ^[a-zA-Z0-9_-]{1,64}$"),
    ("tools", [_tool(strict=True)], "config.tools.0.function.strict: unknown key"),
    (
        "tools",
        [_tool(description="x" * 4097)],
        "config.tools.0.function.description: must have at most 4096 characters",
    ),
    (
        "tools",
        [_tool(parameters={"properties": {"a": {"pattern": "(a+)+$"}}})],
        "config.tools.0.function.parameters: must not hold pattern; engines make grammars of it",
    ),
    (
        "tools",
        [_tool(parameters={"anyOf": [{"$ref": "#"}]})],
        "config.tools.0.function.parameters: must not hold $ref; engines make grammars of it",
    ),
    (
        "tools",
        [_tool(parameters={"enum": ["x" * 100] * 170})],
        "config.tools.0.function.parameters: must have at most 16384 bytes",
    ),
    ("tools", [_tool(), _tool()], "config.tools: must not name a function twice"),
]


@pytest.mark.parametrize("kind", ["start_session", "update_config"])
@pytest.mark.parametrize(("key", "value", "expected"), INVALID_CONFIGS, ids=range(len(INVALID_CONFIGS)))
def test_invalid_config(kind: str, key: str, value: object, expected: str) -> None:
    """A wrong key of a configuration is named with its bounds, wherever the configuration stands."""
    error = _refused({"type": kind, "config": {key: value}})

    assert InvalidConfig is type(error)
    assert expected == error.message


def test_every_key_of_a_config_is_checked() -> None:
    """The table above has each key at least once."""
    assert set(SessionConfig.model_fields) == {key for key, _, _ in INVALID_CONFIGS}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("temperature", [0, 2]),
        ("top_p", [0, 1]),
        ("top_k", [1, 1000]),
        ("max_tokens", [1, 1_000_000]),
        ("seed", [0, 2**32 - 1]),
        ("context_window", [256, 10_000_000]),
        ("system_prompt", ["", "x" * 32_768]),
        ("model", ["x", "x" * 512]),
        ("stop", [[], ["x" * 100] * 16]),
        ("events", [[], ["thinking"] * 16]),
        ("on_busy", list(get_args(OnBusy))),
        ("think", [True, False]),
    ],
)
def test_bounds_of_a_config_are_allowed(key: str, values: list[object]) -> None:
    """The bounds themselves can be had."""
    for value in values:
        event = parse(json.dumps(_config(**{key: value})))
        assert isinstance(event, events.StartSession)
        assert {key: value} == config_as_sent(event.config or SessionConfig())


def test_unknown_key_of_a_config() -> None:
    """A misspelt key is refused, not ignored: the message names it and all that are known."""
    error = _refused(_config(temprature=1))

    assert InvalidConfig is type(error)
    assert f"config.temprature: unknown key; known are {', '.join(SessionConfig.model_fields)}" == error.message


def test_keys_are_said_back_short_and_printable() -> None:
    """A client's key cannot break a line of a log or colour a terminal."""
    error = _refused(_config(**{"a\nb\x1b" + "x" * 100: 1}))

    assert error.message.startswith("config.a\ufffdb\ufffd" + "x" * 60 + "…: unknown key")


def test_answer_is_bounded() -> None:
    """Of thousands of mistakes the first few are explained: an answer is not longer than what it answers."""
    message = json.dumps(_config(**{f"k{number}": 1 for number in range(1000)}))
    error = _refused(message)

    assert InvalidConfig is type(error)
    assert error.message.endswith("; and 995 more")
    assert len(error.message) < len(message)


# ---------------------------------------------------------------------------------------------------------
# Fuzzing

PYTHON_WORDS = (
    "NoneType",
    "Traceback",
    "Exception",
    "pydantic",
    "msgspec",
    "dict",
    "tuple",
    "object at 0x",
    "SessionConfig",
    "StartSession",
    "valid dictionary",
    "Input should",
    "is not valid here",
)

# A choice of the worst: Hypothesis needs a second to learn all of Unicode.
ODD = "\x85\xa0éß日🙂\u200b\u2028\u202e\ud800\udfff\ufeff\uffff\U0010ffff"
text = st.text("".join(map(chr, range(128))) + ODD, max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(
    scalars | st.sampled_from([0, 1, -1, 2**32, 10**18, 0.5, "", "x" * 600, "thinking", "queue"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=6,
)
types = st.sampled_from(["start_session", "user_message", "cancel", "end_session", "update_config"])
fields = st.sampled_from(["text", "id", "config", "session_id", "last_seq", "api_key", "type", "x"])
configs = st.dictionaries(st.sampled_from([*SessionConfig.model_fields, "x"]), values, max_size=4)
# Valid messages with some of their fields, and some of their configuration's, replaced by anything.
mutated = st.builds(
    lambda base, kind, more, config: {**base, "type": kind, "config": {**FULL_CONFIG, **config}, **more},
    st.sampled_from([{"text": "hi", "id": "u"}, {"session_id": "s", "last_seq": 3, "api_key": "k"}]),
    types,
    st.dictionaries(fields, values, max_size=2),
    configs,
)


def _check(frame: str) -> None:
    """The promise: an event or a ClientError in the words of JSON, whatever came."""
    try:
        event = parse(frame)
    except ClientError as refusal:
        message = refusal.message
    else:
        assert isinstance(event, events.CLIENT_EVENTS)
        return
    assert message
    assert message.isprintable()
    assert len(message) < 2_000
    for word in PYTHON_WORDS:
        assert word not in message or word in frame


@settings(max_examples=25 * FUZZ, deadline=None)
@given(text)
def test_any_text(frame: str) -> None:
    """Any text is an event or a ClientError."""
    _check(frame)


@settings(max_examples=15 * FUZZ, deadline=None)
@given(values)
def test_any_json(value: object) -> None:
    """Any JSON, NaN and lone surrogates included, is an event or a ClientError."""
    _check(json.dumps(value))


@settings(max_examples=30 * FUZZ, deadline=None)
@given(mutated)
def test_mutated_messages(message: dict[str, object]) -> None:
    """Messages that are nearly right are an event or a ClientError that has words for what is wrong."""
    _check(json.dumps(message))


@settings(max_examples=15 * FUZZ, deadline=None)
@given(mutated, st.data())
def test_cut_messages(message: dict[str, object], data: st.DataObject) -> None:
    """A message with a part cut out is an event or a ClientError."""
    whole = json.dumps(message)
    start = data.draw(st.integers(0, len(whole)))
    _check(whole[:start] + whole[start + data.draw(st.integers(0, 5)) :])


def test_words_have_no_spare() -> None:
    """Each of pydantic's error types that has words of ours comes up in one of these messages."""
    wrong: list[object] = [
        *({"type": "start_session", "config": {key: value}} for key, value, _ in INVALID_CONFIGS),
        {"type": "start_session", "config": 5},
        {"type": "update_config"},
    ]
    seen: set[str] = set()
    for message in wrong:
        with pytest.raises(ValidationError) as caught:
            parsing._validate(message)
        seen.update(details["type"] for details in caught.value.errors())

    assert set(parsing._WORDS) == seen - {"extra_forbidden"}
