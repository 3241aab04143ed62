"""The files that are made from the code, so that they cannot say anything else; a test keeps them up to date."""

from inspect import cleandoc
from pathlib import Path

from llm_service import asyncapi
from llm_service.env_example import env_example
from llm_service.errors import ConfigurationError, told_to_clients

_INTRODUCTION = """\
# Errors

What clients can be told of: on `/ws/llm` as an `error` event, and at a refused handshake as the body of the HTTP
answer. `code` is stable; `message` is for people and says what to do. `retry_after` is in seconds, or null. After an
error that is not recoverable the connection is closed.

| code | category | severity | recoverable | when |
|---|---|---|---|---|
"""


def documents() -> dict[str, str]:
    """Return every generated file: its path from the repository's root, and its text.

    Raises:
        ConfigurationError: PyYAML is not installed.
    """
    return asyncapi.documents() | {"docs/errors.md": errors_page(), ".env.example": env_example()}


def write(root: Path) -> list[Path]:
    """Write every generated file below `root`, the root of a checkout, and return their paths.

    Raises:
        ConfigurationError: it is no checkout, cannot be written to, or PyYAML is not installed.
    """
    if not (root / "pyproject.toml").is_file():
        raise ConfigurationError(f"{root} is no checkout of this repository: there are no documents to write anew")
    paths = []
    for name, text in documents().items():
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
        paths.append(path)
    return paths


def errors_page() -> str:
    """Return docs/errors.md."""
    rows = [
        f"| `{error.code}` | {error.category} | {error.severity} | {'yes' if error.recoverable else 'no'} "
        f"| {' '.join(cleandoc(error.__doc__ or '').split())} |\n"
        for error in told_to_clients()
    ]
    return _INTRODUCTION + "".join(rows)
