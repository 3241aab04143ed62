"""An error body of any engine gives a message, a type and an error of ours."""

import pytest

from llm_service.engines.refusals import Refusal, cleaned, error_fields, refused, retry_after
from tests.engines.requests import SECRET


def test_an_unquoted_refusal() -> None:
    """Without `quote` the engine's type is told and its message is not."""
    error = refused(Refusal(400, SECRET, "BadRequestError"), "Engine", quote=False)
    assert error.message == "Engine answered HTTP 400 (BadRequestError)"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b'{"error": "plain"}', ("plain", "")),
        (b'{"error": {"message": "m", "type": "t_t", "code": 400}}', ("m", "t_t")),
        (b'{"error": {"message": "m", "type": null, "code": "c"}}', ("m", "c")),
        (b'{"object": "error", "message": "m", "type": "BadRequestError", "code": 400}', ("m", "BadRequestError")),
        (b'{"error": {"message": "m", "type": "a prompt?"}}', ("m", "")),
        (b'{"error": 5}', ("", "")),
        (b"[1]", ("", "")),
        (b"<html>", ("", "")),
        (b"\xff", ("", "")),
        (b'"\xff"', ("", "")),
        (b"", ("", "")),
        (b"[" * 100_000, ("", "")),
    ],
)
def test_error_bodies(body: bytes, fields: tuple[str, str]) -> None:
    """Message and type are found in every engine's shape; anything else is none."""
    assert fields == error_fields(body)


def test_cleaned() -> None:
    """A foreign message is one short line."""
    assert cleaned("a\n\x1b b\u2028c\u202e ") == "a b c"
    assert len(cleaned("x" * 10_000)) == 300


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("", None), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("-1", None), ("9" * 50, None)],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """Seconds are read; anything else says nothing."""
    assert seconds == retry_after(value)
