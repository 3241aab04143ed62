"""What others' suites say: Autobahn's cases for RFC 6455, and schemathesis on what the HTTP ports say of themselves."""

import asyncio
import json
import random
import re
import socket
import sys
from pathlib import Path

import msgspec

from benchmarks.processes import BenchmarkFailed, child, module
from benchmarks.reliability.promise import Outcome
from benchmarks.reliability.tested import cores, engine, get, service_before

# Limits and performance, compression (which is not offered).
_LEFT_OUT = ("9.*", "12.*", "13.*")
# 7.1.5: a fragment, then a closing frame, then another fragment. The closing code differs; RFC 6455 allows either.
_DEVIATIONS = {"7.1.5"}
_PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


class _Case(msgspec.Struct):
    behavior: str


async def autobahn(count: int, folder: Path) -> Outcome:
    """Run the cases on an echo behind the service's own server; there must be `count` of them."""
    outcome = Outcome()
    with child("echo", module("reliability.echo"), folder=folder, cores=cores()) as echo:
        options = [option for case in _LEFT_OUT for option in ("-x", case)]
        command = [_program("kosoku"), f"127.0.0.1:{echo.line()}", "-p", "4", "-o", str(folder / "report"), *options]
        await _run(command, folder)
    (cases,) = msgspec.json.decode(
        (folder / "report" / "index.json").read_bytes(), type=dict[str, dict[str, _Case]]
    ).values()
    failed = {name for name, case in cases.items() if case.behavior not in _PASSED}
    outcome.least(len(cases), count, f"{len(cases)} cases")
    outcome.none(len(failed - _DEVIATIONS), "failed beside 7.1.5, which RFC 6455 allows")
    for name in sorted(failed - _DEVIATIONS):
        outcome.note(f"case {name}: {cases[name].behavior}")
    return outcome


async def schemas(count: int, folder: Path) -> Outcome:
    """Let schemathesis play with both ports, then send each of their operations `count` requests of garbage."""
    outcome, generated, operations, statuses = Outcome(), 0, 0, list[int]()
    with engine(folder) as (_, engine_port), service_before(engine_port, folder) as service:
        for port in (service.port, service.monitoring_port):
            url = f"http://127.0.0.1:{port}/openapi.json"
            said = await _run(
                [_program("st"), "run", url, "--max-examples", str(count), "--checks", _CHECKS, "--no-color"], folder
            )
            found = re.search(r"(\d+) generated(?:, (\d+) found)?", said)
            if found is None:
                raise BenchmarkFailed(f"schemathesis said nothing of cases:\n{said[-2000:]}")
            generated += int(found[1])
            if "No issues found" not in said:
                outcome.note(said[said.find("FAILURES") :][:1000])
            paths: dict[str, dict[str, object]] = json.loads(get(port, "/openapi.json"))["paths"]
            chance = random.Random(port)
            for path in paths:
                operations += 1
                statuses += await asyncio.to_thread(_garbage, port, path, count, chance)
        service.check(outcome)
    answered = [status for status in statuses if status]
    outcome.figures.insert(0, f"{operations} operations, {generated} cases of schemathesis")
    outcome.figure(f"{len(statuses):,} requests of garbage, {len(answered):,} of them answered")
    outcome.none(sum(status >= 500 for status in answered), "× 5xx")
    return outcome


def _program(name: str) -> str:
    program = Path(sys.executable).with_name(name)
    if not program.exists():
        raise BenchmarkFailed(f"{name} is not installed: pip install -e '.[dev]'")
    return str(program)


async def _run(command: list[str], folder: Path) -> str:
    """Run a suite, which ends with 1 where it found something, and return what it said."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        stdin=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    if process.returncode not in {0, 1}:
        raise BenchmarkFailed(f"{command[0]} ended with {process.returncode}\n{said.decode(errors='replace')[-2000:]}")
    return said.decode(errors="replace")


def _garbage(port: int, path: str, count: int, chance: random.Random) -> list[int]:
    """Send so many requests that are wrong in some way; returns the statuses, 0 for a connection that was closed."""
    statuses = []
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            peer.sendall(_request(path, chance))
            peer.shutdown(socket.SHUT_WR)
            head = peer.makefile("rb").readline(64)
        statuses.append(int(head[9:12]) if head.startswith(b"HTTP/1.1 ") else 0)
    return statuses


def _request(path: str, chance: random.Random) -> bytes:
    method = chance.choice((b"GET", b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"TRACE", b"get", b"\x00"))
    query = chance.choice((b"", b"?", b"?a=%00", b"?%ff=%", b"?" + b"a" * 5000, b"?" + _bytes(chance, 30)))
    headers = [b"Host: localhost"]
    for _ in range(chance.randrange(5)):
        name = chance.choice((b"Content-Length", b"Transfer-Encoding", b"Content-Type", b"Origin", b"Upgrade", b"X"))
        value = chance.choice((b"chunked", b"-1", b"99999999999999999999", b"websocket", b"null", _bytes(chance, 40)))
        headers.append(name + b": " + value)
    body = _bytes(chance, 200) if chance.random() < 0.5 else b""
    return method + b" " + path.encode() + query + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body


def _bytes(chance: random.Random, most: int) -> bytes:
    return chance.randbytes(chance.randrange(most)).replace(b" ", b"").replace(b"\n", b"")
