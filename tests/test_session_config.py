"""Which schemas of arguments a tool may have; how each key of a configuration is read is in test_parsing.py."""

import pytest
from pydantic import ValidationError

from llm_service.session_config import BOUNDED_IN_SCHEMAS, MAX_SCHEMA_COUNT, REFUSED_IN_SCHEMAS, ToolFunction

NAMES = sorted(name for name in REFUSED_IN_SCHEMAS | BOUNDED_IN_SCHEMAS if not name.startswith("$"))


def _object(**properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties}


def _refused(schema: dict[str, object]) -> str:
    with pytest.raises(ValidationError) as caught:
        ToolFunction(name="f", parameters=schema)
    return str(caught.value.errors()[0]["ctx"]["error"])


@pytest.mark.parametrize("name", [*NAMES, "properties"])
def test_a_parameter_may_have_any_name(name: str) -> None:
    """What stands under "properties" and the like are names, also within other schemas and beside themselves."""
    text = {"type": "string"}
    for schema in (
        {**_object(**{name: text}), "required": [name]},
        _object(where=_object(**{name: text})),
        _object(properties=_object(**{name: text})),
        _object(some={"type": "array", "items": {"anyOf": [_object(**{name: text}), text]}}),
        {**_object(), "dependentRequired": {name: ["a"]}, "dependentSchemas": {name: _object()}},
    ):
        assert schema == ToolFunction(name="f", parameters=schema).parameters


@pytest.mark.parametrize("key", sorted(REFUSED_IN_SCHEMAS))
def test_a_keyword_is_refused_wherever_it_stands(key: str) -> None:
    """As deep as it may be, and in the schema of a parameter that has a keyword's name."""
    bad: dict[str, object] = {"type": "string", key: "a"}
    schemas: tuple[dict[str, object], ...] = (
        bad,
        _object(a=bad),
        _object(format=bad),
        _object(properties=bad),
        _object(properties=_object(properties=bad)),
        {"allOf": [{"not": bad}]},
        {"dependentSchemas": {"a": bad}},
        {"properties": [bad]},
    )
    for schema in schemas:
        assert f"must not hold {key}; engines make grammars of it" == _refused(schema)


@pytest.mark.parametrize("name", ["$ref", "$defs"])
def test_no_parameter_is_named_like_a_reference(name: str) -> None:
    """Engines would take it for one."""
    assert f"must not hold {name}; engines make grammars of it" == _refused(_object(**{name: {"type": "string"}}))


@pytest.mark.parametrize("key", sorted(BOUNDED_IN_SCHEMAS))
def test_counts_are_bounded(key: str) -> None:
    """A grammar grows with them."""
    message = f"must hold no {key} above 10000; engines make grammars of it"
    for number in (MAX_SCHEMA_COUNT + 1, 1e300):
        assert message == _refused({key: number})
        assert message == _refused(_object(maxLength={"type": "array", "items": {key: number}}))
    schema: dict[str, object] = {**_object(a={key: MAX_SCHEMA_COUNT}), "maximum": 1_000_000}
    assert schema == ToolFunction(name="f", parameters=schema).parameters


def test_all_that_is_refused_is_named() -> None:
    """In order, each once."""
    assert "must not hold format, pattern; engines make grammars of it" == _refused(
        _object(a={"pattern": "a", "format": "b"}, b={"format": "c"})
    )
    assert "must hold no maxItems, minLength above 10000; engines make grammars of it" == _refused(
        _object(a={"minLength": 20_000, "maxItems": 20_000}, b={"maxItems": 20_000})
    )
