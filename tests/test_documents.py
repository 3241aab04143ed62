"""The files that are made from the code."""

import re
from pathlib import Path

import pytest

from llm_service import documents, errors
from llm_service.config import variables
from llm_service.errors import ConfigurationError

ROOT = Path(__file__).parent.parent


def test_files_are_up_to_date() -> None:
    """Every generated file in the repository is what the code says: python main.py config --write-docs."""
    made = documents.documents()
    assert {"docs/asyncapi.yaml", "docs/schemas/client.json", "docs/schemas/server.json"} < made.keys()
    assert {"docs/errors.md", ".env.example"} < made.keys()
    assert made == {name: (ROOT / name).read_text(encoding="utf-8") for name in made}


def test_write(tmp_path: Path) -> None:
    """Writing makes the folders that are missing, and says what it wrote."""
    (tmp_path / "pyproject.toml").touch()
    written = documents.write(tmp_path)
    assert documents.documents() == {
        path.relative_to(tmp_path).as_posix(): path.read_bytes().decode() for path in written
    }


def test_an_installed_package_writes_nothing(tmp_path: Path) -> None:
    """Outside of a checkout nothing is written."""
    with pytest.raises(ConfigurationError, match="no checkout"):
        documents.write(tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """What is in the way is said without a stack."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "docs").touch()
    with pytest.raises(ConfigurationError, match=r"docs/asyncapi\.yaml cannot be written: "):
        documents.write(tmp_path)


def test_the_security_page_names_its_tests() -> None:
    """What docs/security.md names is there, tests and settings, and each test file of tests/security is named in it."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    own = {path.name for path in (ROOT / "tests/security").glob("test_*.py")}
    named = set(re.findall(r"`(tests/[a-z_/]+\.py|test_[a-z_]+\.py)`", page))
    assert own == {name for name in named if "/" not in name}
    assert all((ROOT / name).is_file() for name in named if "/" in name)
    assert set(re.findall(r"`([A-Z][A-Z_]{4,})`", page)) <= set(variables())


def test_errors_page_has_what_clients_meet() -> None:
    """Each error that a client can be told of is there once, and none that only an operator sees."""
    page = documents.errors_page()
    rows = [line.split(" | ")[0].strip("| `") for line in page.splitlines() if line.startswith("| `")]
    assert len(set(rows)) == len(rows)
    assert {"invalid_json", "max_connections", "engine_timeout", "internal_error"} <= set(rows)
    assert set() == {error.code for error in errors.StartupError.__subclasses__()} & set(rows)
    assert all(line.count(" | ") == 4 for line in page.splitlines() if line.startswith("| `"))
