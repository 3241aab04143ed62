"""Keeps the levels of the design: imports go down, or sideways without a cycle, never up."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "llm_service"

# A module that stands here need not exist yet; one that exists must stand here. A package's own name is its __init__.
LEVELS = {
    "": 0,
    "errors": 0,
    "config": 0,
    "engine_spec": 0,
    "env_example": 0,
    "devices": 0,
    "log": 0,
    "log_lines": 0,
    "metrics": 0,
    "generation": 0,
    "events": 1,
    "parsing": 1,
    "token_estimate": 0,
    "turn": 1,
    "history": 1,
    "prompt_head": 1,
    "conversation": 1,
    "summary": 1,
    "access": 1,
    "key_file": 1,
    "request_limits": 5,
    "message_rate": 2,
    "admission": 2,
    "sentences": 1,
    "pacing": 1,
    "boundaries": 1,
    "speakable": 1,
    "inline_marks": 1,
    "formulas": 1,
    "scanner": 1,
    "urls": 1,
    "speech_rules": 0,
    "replay": 1,
    "engines.base": 1,
    "engines.ndjson": 1,
    "engines.sse": 1,
    "engines.think_tags": 1,
    "engines.tool_calls": 1,
    "engines.http1": 1,
    "engines.transport": 1,
    "engines.refusals": 1,
    "engines.rounds": 1,
    "engines.model_files": 1,
    "session_defaults": 2,
    "condenser": 2,
    "session_config": 1,
    "counters": 0,
    "collector": 0,
    "huge_pages": 0,
    "idle_work": 2,
    "asides": 3,
    "live_session": 3,
    "records": 1,
    "archive": 5,
    "resumption": 5,
    "session": 2,
    "turns": 2,
    "effects": 2,
    "response": 2,
    "heard": 2,
    "close_codes": 0,
    "asyncapi": 2,
    "engine_health": 2,
    "metering": 2,
    "engines.ollama": 2,
    "engines.answer": 1,
    "engines.ollama_answer": 1,
    "engines.ollama_errors": 1,
    "engines.openai": 2,
    "engines.openai_answer": 1,
    "engines.llama_cpp": 2,
    "engines.scripted": 2,
    "engines.permits": 1,
    "engines.prompt_reading": 1,
    "engines.limited": 2,
    "engines.calls": 1,
    "engines.hearing": 2,
    "engines.loading": 2,
    "engines.protection": 3,
    "engines.wrapper": 1,
    "engines.breaker": 2,
    "engines.deadlines": 2,
    "engines.retrying": 2,
    "stores": 2,
    "stores.*": 2,
    "audio_format": 0,
    "speech_metrics": 0,
    "speech_choices": 1,
    "audio_frames": 1,
    "chunk_hook": 3,
    "speaking": 3,
    "speech": 2,
    "speech.*": 2,
    "engines.members": 3,
    "engines.pool": 3,
    "engines.opened": 3,
    "engines.continuation": 1,
    "engines.several": 4,
    "engine_set": 4,
    "documents": 3,
    "engines": 4,
    "session_manager": 4,
    "outbox": 2,
    "wire": 5,
    "connection": 5,
    "service": 5,
    "api": 5,
    "api.*": 5,
    "protocols": 5,
    "self_check": 5,
    "chat_client": 5,
    "playback": 5,
    "bench": 5,
    "bench_figures": 5,
    "terminal_chat": 5,
    "server": 6,
    "monitoring": 6,
    "serving": 6,
    "running": 6,
    "workers": 6,
    "cli": 7,
}

PURE = {
    "errors",
    "generation",
    "events",
    "parsing",
    "token_estimate",
    "turn",
    "history",
    "prompt_head",
    "conversation",
    "summary",
    "session_defaults",
    "condenser",
    "session_config",
    "counters",
    "session",
    "turns",
    "effects",
    "response",
    "heard",
    "close_codes",
    "access",
    "message_rate",
    "admission",
    "sentences",
    "pacing",
    "boundaries",
    "speakable",
    "inline_marks",
    "formulas",
    "scanner",
    "urls",
    "speech_rules",
    "replay",
    "records",
    "engines.ndjson",
    "engines.sse",
    "engines.think_tags",
    "speech.audio",
    "engines.permits",
    "engines.prompt_reading",
    "engines.continuation",
    "speech_choices",
    "audio_format",
    "audio_frames",
}
# All that pure modules may import, beside each other: nothing here waits, asks a clock or touches the world.
PURE_IMPORTS = {
    "array",
    "collections",
    "dataclasses",
    "enum",
    "hashlib",
    "hmac",
    "itertools",
    "ipaddress",
    "llm_service",
    "msgspec",
    "pydantic",
    "pydantic_core",
    "re",
    "sentencex",
    "struct",
    "sys",
    "typing",
}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "__import__"}
KNOW_FASTAPI = {"server", "monitoring", "connection", "wire", "protocols", "request_limits", "serving", "workers"}
KNOW_THE_PROCESS = {"cli", "main"}
JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "core"}


@cache
def _sources() -> dict[str, ast.Module]:
    """Every module of the package, by its name within it."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return found


def _imports(tree: ast.Module) -> Iterator[str]:
    """The full names of what a module imports, wherever in it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.ImportFrom():
                yield "a relative import"


def _own(imported: str) -> str | None:
    """The module of ours that an import needs: `llm_service.events.Token` is `events`."""
    if imported.split(".")[0] != PACKAGE:
        return None
    name = imported.removeprefix(PACKAGE).removeprefix(".")
    while name not in _sources():
        name = name.rpartition(".")[0]
    return name


def _needs(module: str) -> set[str]:
    return {own for imported in _imports(_sources()[module]) if (own := _own(imported)) is not None and own != module}


def _level(module: str) -> int:
    level = LEVELS.get(module, LEVELS.get(f"{module.rpartition('.')[0]}.*"))
    assert level is not None, f"{PACKAGE}.{module} has no level: give it one in tests/test_architecture.py"
    return level


@pytest.mark.parametrize("module", _sources())
def test_module_has_a_level(module: str) -> None:
    """Each module stands in the table of levels."""
    assert _level(module) in range(8)


@pytest.mark.parametrize("module", _sources())
def test_imports_do_not_go_up(module: str) -> None:
    """A module needs only modules of its own level and below."""
    above = {needed: _level(needed) for needed in _needs(module) if _level(needed) > _level(module)}

    assert {} == above, f"{module} is of level {_level(module)} and imports from above: {above}"


def test_imports_have_no_cycles() -> None:
    """No module needs itself, through however many others."""
    try:
        order = tuple(TopologicalSorter({module: _needs(module) for module in _sources()}).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")

    assert set(_sources()) == set(order)


@pytest.mark.parametrize("module", _sources())
def test_imports_are_absolute(module: str) -> None:
    """A module is named in full where it is imported."""
    assert "a relative import" not in set(_imports(_sources()[module]))


@pytest.mark.parametrize("module", sorted(PURE & set(_sources())))
def test_pure_modules_are_pure(module: str) -> None:
    """The pure modules import no event loop, network, clock, chance or logger, and open nothing."""
    tree = _sources()[module]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert set() == {imported.split(".")[0] for imported in _imports(tree)} - PURE_IMPORTS
    assert set() == names & IMPURE_CALLS


@pytest.mark.parametrize("module", sorted(PURE & set(_sources())))
def test_pure_modules_need_pure_modules_only(module: str) -> None:
    """What is pure rests on what is pure."""
    assert set() == _needs(module) - PURE


@pytest.mark.parametrize("module", [module for module in _sources() if module.startswith("engines")])
def test_engines_know_no_wire(module: str) -> None:
    """Engines never see wire events: the session translates."""
    assert set() == _needs(module) & {"events", "parsing", "session"}


@pytest.mark.parametrize("module", ["events", "parsing"])
def test_wire_knows_no_engine(module: str) -> None:
    """The wire never sees an engine."""
    assert not any(needed.startswith("engines") for needed in _needs(module))


@pytest.mark.parametrize("module", _sources())
def test_few_know_fastapi(module: str) -> None:
    """FastAPI and Starlette stay at the edge."""
    knows = {imported.split(".")[0] for imported in _imports(_sources()[module])} & {"fastapi", "starlette"}

    assert not knows or module in KNOW_FASTAPI or module.split(".")[0] == "api"


@pytest.mark.parametrize("module", [*_sources(), "main"])
def test_only_the_command_line_knows_the_process(module: str) -> None:
    """Environment and arguments of the process come in at one place."""
    tree = _sources()[module] if module in _sources() else ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    # By the last name alone, so that no alias of the module hides it; and as a text, for getattr.
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {imported.rpartition(".")[2] for imported in _imports(tree)}
    used |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    forbidden = {"environ", "environb", "getenv", "putenv", "argv", "dotenv_values", "load_dotenv"}

    assert module in KNOW_THE_PROCESS or set() == used & forbidden


@pytest.mark.parametrize("module", _sources())
def test_names_say_what_is_inside(module: str) -> None:
    """No junk drawers, no handlers, and one manager."""
    classes = {node.name for node in ast.walk(_sources()[module]) if isinstance(node, ast.ClassDef)}

    assert set() == JUNK_DRAWERS & (set(module.split(".")) | {name.lower() for name in classes})
    assert [] == [name for name in classes if name.endswith(("Handler", "Helper", "Helpers", "Utils"))]
    assert {"SessionManager"} >= {name for name in classes if name.endswith("Manager")}


def test_main_has_no_logic() -> None:
    """main.py hands over to the command line, and defines nothing."""
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))

    assert {f"{PACKAGE}.cli.main"} == set(_imports(tree))
    assert not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(tree))
