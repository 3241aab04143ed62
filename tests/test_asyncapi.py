import builtins
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from llm_service import asyncapi, errors, events
from llm_service.close_codes import CloseCode
from llm_service.errors import ClientError, ConfigurationError
from llm_service.parsing import parse

DOCUMENT = asyncapi.document()
CLIENT = Draft202012Validator(asyncapi.client_schema())
SERVER = Draft202012Validator(asyncapi.server_schema())

STATS = events.ResponseStats(1, 2.5, 3.5, "stop", 4, None, events.ContextUse(5, 8192, 0))
SESSION_STATS = events.SessionStats("s", "ended", 1.0, 0.0, 1, 2, 3, 4, 5, {"top_k": None})
SAMPLES: list[events.ServerEvent] = [
    events.SessionStarted(session_id="s", provider="p", model="m"),
    events.SessionStarted(session_id="s", provider="p", model="m", resumed=False, reason="gone"),
    events.SessionConfigured(config={"top_k": 1}, provider="p"),
    events.ResponseStarted(),
    events.ResponseStarted(id="u"),
    events.Token(data="日"),
    events.Chunk(id=1, text="", start=0, end=0),
    events.Audio(chunk=1, format="pcm", sample_rate=8000, data=b"\0\xff"),
    events.Audio(chunk=1, format="opus", last=True),
    events.Thinking(data="hm"),
    events.Queued(position=1),
    events.Queued(position=1, id="u"),
    events.ToolCall(id="c", name="add", arguments={"a": [1]}),
    events.Context(used=1, limit=2, dropped=0),
    events.ResponseComplete(stats=STATS),
    events.ResponseComplete(
        stats=events.ResponseStats(
            1,
            2.5,
            3.5,
            "length",
            4,
            9.5,
            events.ContextUse(5, 8192, 0),
            cached_tokens=0,
            prompt_ms=1.5,
            load_ms=2.5,
            estimated=True,
        ),
        id="u",
    ),
    events.Cancelled(success=False),
    events.Cancelled(success=True, id="u", dropped=2),
    events.SessionEnded(stats=SESSION_STATS),
    events.SessionEnded(stats=SESSION_STATS, reason="expired"),
    events.error_event(errors.InvalidJSON("not JSON")),
    events.error_event(errors.EngineTimeout("slow", retry_after=30.0), id="u", terminal=True),
]
MESSAGES: list[Any] = [
    {"type": "start_session"},
    {"type": "start_session", "config": None, "session_id": None, "last_seq": None, "api_key": None},
    {"type": "start_session", "config": {"temperature": 1, "stop": ["x"], "events": ["thinking"], "seed": None}},
    {"type": "start_session", "config": {"temperature": 3}},
    {"type": "start_session", "config": {"temprature": 1}},
    {"type": "start_session", "config": {"on_busy": "wait"}},
    {"type": "start_session", "config": {"stop": [""]}},
    {"type": "start_session", "config": []},
    {"type": "start_session", "last_seq": -1},
    {"type": "start_session", "session_id": "x" * 65},
    {"type": "user_message", "text": "hi", "id": "u", "more": 1},
    {"type": "user_message", "text": " hi\n"},
    {"type": "user_message", "text": " \n"},
    {"type": "user_message", "text": ""},
    {"type": "user_message", "text": 5},
    {"type": "user_message"},
    {
        "type": "start_session",
        "config": {
            "tools": [
                {
                    "type": "function",
                    "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}},
                }
            ],
            "warm": True,
        },
    },
    {"type": "start_session", "config": {"tools": [{"type": "function", "function": {"name": "a b"}}]}},
    {"type": "played", "chars": 3},
    {"type": "played", "chunk": -1, "chars": 3},
    {"type": "partial_message", "text": "he"},
    {"type": "tool_result", "id": "c", "content": "4"},
    {"type": "tool_result", "id": "c"},
    {"type": "cancel"},
    {"type": "end_session"},
    {"type": "update_config", "config": {}},
    {"type": "update_config", "config": None},
    {"type": "update_config"},
    {"type": "ping"},
    {"type": None},
    {"text": "hi"},
    {},
    [],
    "cancel",
    None,
]


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _resolve(reference: str, document: Any) -> Any:
    assert reference.startswith("#/")
    for part in reference[2:].split("/"):
        document = document[part]
    return document


def test_yaml_reads_as_the_document() -> None:
    """The file reads as the document it was made from; tests/test_documents.py compares it with the one in docs/."""
    assert DOCUMENT == yaml.safe_load(asyncapi.documents()["docs/asyncapi.yaml"])


def test_yaml_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PyYAML, which only developers have, the error says what to install."""
    real = builtins.__import__

    def without_yaml(name: str, *args: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    with pytest.raises(ConfigurationError, match="pip install pyyaml"):
        asyncapi.documents()


@pytest.mark.parametrize("document", [DOCUMENT, CLIENT.schema, SERVER.schema], ids=["asyncapi", "client", "server"])
def test_references_lead_somewhere(document: Any) -> None:
    """Every reference within a document has what it refers to."""
    references = set(_references(document))

    assert references
    for reference in references:
        assert isinstance(_resolve(reference, document), dict)


def test_schemas_are_schemas() -> None:
    """The schemas are valid by their own drafts: 2020-12 in the files, draft 7 as AsyncAPI takes them."""
    Draft202012Validator.check_schema(CLIENT.schema)
    Draft202012Validator.check_schema(SERVER.schema)
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
        assert "$defs" not in schema


def test_document_has_the_shape_of_asyncapi_3() -> None:
    """Version, channel, operations and messages stand where AsyncAPI 3 has them, and refer to one another."""
    messages = DOCUMENT["channels"]["llm"]["messages"]

    assert "3.0.0" == DOCUMENT["asyncapi"]
    assert {"title", "version", "description", "license"} == set(DOCUMENT["info"])
    assert "/ws/llm" == DOCUMENT["channels"]["llm"]["address"]
    assert {"receive", "send"} == {operation["action"] for operation in DOCUMENT["operations"].values()}
    assert set(messages) == set(DOCUMENT["components"]["messages"])
    said = [reference["$ref"] for operation in DOCUMENT["operations"].values() for reference in operation["messages"]]
    assert sorted(f"#/channels/llm/messages/{kind}" for kind in messages) == sorted(said)


def test_every_message_is_there() -> None:
    """Each client and server event is a message with a description and a payload of its type."""
    messages = DOCUMENT["components"]["messages"]

    assert {model.__name__ for model in (*events.CLIENT_EVENTS, *events.SERVER_EVENTS)} == {
        message["title"] for message in messages.values()
    }
    for kind, message in messages.items():
        payload = _resolve(message["payload"]["$ref"], DOCUMENT)
        assert {"const": kind, "type": "string"} == payload["properties"]["type"]
        assert "type" in payload["required"]
        assert message["summary"]


def test_server_events_are_numbered() -> None:
    """Each server event has its number."""
    for kind in DOCUMENT["operations"]["send"]["messages"]:
        message = _resolve(kind["$ref"], DOCUMENT)
        payload = _resolve(_resolve(message["$ref"], DOCUMENT)["payload"]["$ref"], DOCUMENT)
        assert "seq" in payload["required"]


def test_error_codes_are_listed() -> None:
    """The codes that a client may meet are those of the tree of errors, in schema and description."""
    codes = DOCUMENT["components"]["schemas"]["ErrorBody"]["properties"]["code"]["enum"]

    assert {"invalid_json", "max_connections", "engine_timeout", "internal_error"} <= set(codes)
    assert len(codes) == len(set(codes))
    assert all(f"| {code} |" in DOCUMENT["info"]["description"] for code in codes)
    assert "| internal_error | system | critical | yes |" in DOCUMENT["info"]["description"]


def test_closing_codes_are_listed() -> None:
    """The codes a connection may be closed with are told, with what to do."""
    assert {1000, 1007, 1009, 3001, 3008, 3012, 3013, 3500, 3502, 3504} == set(CloseCode)
    assert all(f"| {code.value} |" in DOCUMENT["info"]["description"] for code in CloseCode)


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: type(event).__name__)
def test_server_events_are_valid(event: events.ServerEvent) -> None:
    """What is written for an event is what its schema allows; without its number it is not."""
    event.seq = 1
    dumped = json.loads(events.encode(event))

    assert [] == [error.message for error in SERVER.iter_errors(dumped)]
    payload = {"$ref": f"#/components/schemas/{type(event).__name__}", "components": DOCUMENT["components"]}
    assert Draft202012Validator(payload).is_valid(dumped)
    del dumped["seq"]
    assert not SERVER.is_valid(dumped)


def test_every_server_event_has_a_sample() -> None:
    """The samples above leave no event out."""
    assert set(events.SERVER_EVENTS) == {type(event) for event in SAMPLES}


@pytest.mark.parametrize("message", MESSAGES, ids=range(len(MESSAGES)))
def test_client_messages_are_valid_as_they_are_read(message: Any) -> None:
    """The schema allows what the service reads, and nothing that it refuses."""
    try:
        parse(json.dumps(message))
    except ClientError:
        readable = False
    else:
        readable = True

    assert readable == CLIENT.is_valid(message)
