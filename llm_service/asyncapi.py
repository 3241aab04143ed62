"""The published protocol: the AsyncAPI document and the JSON Schemas in docs/, made from `events` alone.

`llm_service.documents` puts them into a repository.
"""

import json
from typing import Any, get_args

import msgspec
from pydantic import BaseModel

from llm_service import __version__
from llm_service.close_codes import CloseCode
from llm_service.errors import Category, ConfigurationError, FastTalkError, Severity, told_to_clients
from llm_service.events import CLIENT_EVENTS, SERVER_EVENTS

Json = dict[str, Any]

_ABOUT = """\
One WebSocket is one conversation; tokens stream to the client as the engine makes them.

Text frames, one JSON object each. A client ignores server events and fields it does not know.

The server answers `start_session` with `session_started`. To a client that says nothing for a quarter of a
second it says `session_started` first, and then answers `start_session` with `session_configured`. A message
that needs a session and comes before `start_session` starts one with the service's defaults.

A `user_message` is answered by any number of `token` and exactly one terminal event: `response_complete`,
`cancelled` or an `error` with `terminal` true. Events marked "On request" are sent to sessions that name them in
`config.events`.

With `config.speech.enabled` answers are cut into chunks, told of by `chunk` events, and spoken: `audio` events have the
sound. With `config.speech.binary` it comes in binary frames instead, of twelve bytes and then the data; numbers are
big-endian:

| bytes | |
|---|---|
| 0 | the layout's version, 1 |
| 1 | flags: 1 marks the chunk's last frame, which has no data |
| 2 | format: 0 pcm, 1 wav, 2 mp3, 3 opus |
| 3 | 0 |
| 4 to 7 | id of the chunk |
| 8 to 11 | sample rate in Hz; 0 where the format tells it itself |

Sound is not kept for a client that comes back: it gets the text and the chunks that it missed, and hears the next
response. A `cancel`, an `end_session`, a message that interrupts and a lost connection end the sound at once.
"""

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def document() -> Json:
    """Return the AsyncAPI 3.0 document."""
    prefix = "#/components/schemas/"
    client, server = _client_schemas(prefix), _server_schemas(prefix)
    client_types, server_types = _tags(client), _tags(server)
    types = client_types | server_types
    schemas = client | server
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "FastTalk LLM service",
            "version": __version__,
            "description": _description(),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {"local": {"host": "localhost:8000", "protocol": "ws", "description": "LLM_HOST and LLM_PORT"}},
        "channels": {
            "llm": {
                "address": "/ws/llm",
                "title": "A conversation",
                "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in types},
            }
        },
        "operations": {
            "receive": _operation("receive", "What a client may say.", client_types),
            "send": _operation("send", "What the server says.", server_types),
        },
        "components": {
            "messages": {
                kind: {
                    "name": kind,
                    "title": name,
                    "summary": schemas[name]["description"],
                    "payload": {"$ref": prefix + name},
                }
                for kind, name in types.items()
            },
            "schemas": schemas,
        },
    }


def client_schema() -> Json:
    """Return the JSON Schema of every message a client may send."""
    return _union("What a client may send to /ws/llm", _client_schemas("#/$defs/"))


def server_schema() -> Json:
    """Return the JSON Schema of every event the server may send."""
    return _union("What the server may send over /ws/llm", _server_schemas("#/$defs/"))


def documents() -> dict[str, str]:
    """Return every file: its path from the repository's root, and its text.

    Raises:
        ConfigurationError: PyYAML is not installed.
    """
    return {
        "docs/asyncapi.yaml": _yaml(document()),
        "docs/schemas/client.json": json.dumps(client_schema(), indent=2) + "\n",
        "docs/schemas/server.json": json.dumps(server_schema(), indent=2) + "\n",
    }


def _client_schemas(prefix: str) -> dict[str, Json]:
    schemas: dict[str, Json] = {}
    for model in CLIENT_EVENTS:
        schema = _plain(model, prefix)
        schemas |= schema.pop("$defs", {})
        # pydantic knows a default for the tag; the wire does not.
        del schema["properties"]["type"]["default"]
        schema["required"] = ["type", *schema.get("required", ())]
        schemas[model.__name__] = schema
    for schema in schemas.values():
        for part in schema["properties"].values():
            part.pop("title", None)
    return schemas


def _plain(model: type[BaseModel], prefix: str) -> Json:
    return model.model_json_schema(ref_template=prefix + "{model}")


def _server_schemas(prefix: str) -> dict[str, Json]:
    _, schemas = msgspec.json.schema_components(SERVER_EVENTS, ref_template=prefix + "{name}")
    for name in (event.__name__ for event in SERVER_EVENTS):
        properties = schemas[name]["properties"]
        (tag,) = properties["type"]["enum"]
        properties["type"] = {"const": tag, "type": "string"}
        properties["seq"] = {"type": "integer", "minimum": 1}
        schemas[name]["required"].append("seq")
    for schema in schemas.values():
        schema["properties"] = {key: _as_sent(part) for key, part in schema["properties"].items()}
    body = schemas["ErrorBody"]["properties"]
    body["code"] = {"enum": [error.code for error in _errors()]}
    body["category"] = {"enum": list(get_args(Category))}
    body["severity"] = {"enum": list(get_args(Severity))}
    return schemas


def _as_sent(part: Json) -> Json:
    """Make of an optional field what is on the wire: one that is None is left out, never null."""
    if part.get("default", ...) is not None:
        return part
    (sent,) = (choice for choice in part["anyOf"] if choice != {"type": "null"})
    return dict(sent)


def _union(title: str, schemas: dict[str, Json]) -> Json:
    choices = [{"$ref": f"#/$defs/{name}"} for name in _tags(schemas).values()]
    return {"$schema": _DRAFT, "title": title, "oneOf": choices, "$defs": schemas}


def _tags(schemas: dict[str, Json]) -> dict[str, str]:
    """Return the names of those schemas that are messages, by the messages' types."""
    messages = {event.__name__ for event in (*CLIENT_EVENTS, *SERVER_EVENTS)}
    return {schema["properties"]["type"]["const"]: name for name, schema in schemas.items() if name in messages}


def _operation(action: str, summary: str, types: dict[str, str]) -> Json:
    messages = [{"$ref": f"#/channels/llm/messages/{kind}"} for kind in types]
    return {"action": action, "summary": summary, "channel": {"$ref": "#/channels/llm"}, "messages": messages}


def _description() -> str:
    codes = [f"| {code.value} | {code.meaning} |" for code in CloseCode]
    errors = [
        f"| {error.code} | {error.category} | {error.severity} | {'yes' if error.recoverable else 'no'} |"
        for error in _errors()
    ]
    closing = ["## Closing codes", "", "| code | meaning |", "|---|---|", *codes]
    failing = ["## Errors", "", "| code | category | severity | the session goes on |", "|---|---|---|---|", *errors]
    return "\n".join([_ABOUT, *closing, "", *failing, ""])


def _errors() -> list[type[FastTalkError]]:
    return sorted(told_to_clients(), key=lambda error: error.code)


def _yaml(document: Json) -> str:
    try:
        import yaml
    except ImportError:
        raise ConfigurationError("the AsyncAPI document is written with PyYAML: pip install pyyaml") from None

    class Dumper(yaml.SafeDumper):
        """Writes texts of several lines as blocks, and nothing by reference, so that it can be read."""

        def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
            return True

    def write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, write_text)
    text: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
