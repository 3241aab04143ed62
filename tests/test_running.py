"""One process and several: start, drain, restart, and what is said when there is nothing to run."""

import contextlib
import itertools
import json
import multiprocessing.connection
import os
import shutil
import signal
import socket
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import ClientConnection, connect

from llm_service import running
from llm_service.config import Settings
from llm_service.running import CANNOT_START, LONGEST_PAUSE, MAX_FAILED_STARTS, Workers
from tests.processes import PATIENCE, ROOT, ServiceProcess, free_port, service_process, until

NOTHING_THERE = {"LLM_PROVIDER": "ollama", "OLLAMA_BASE_URL": f"http://127.0.0.1:{free_port()}"}


@contextlib.contextmanager
def started(url: str, **config: Any) -> Generator[ClientConnection, None, None]:
    """Open a session."""
    with connect(url, compression=None, proxy=None, open_timeout=PATIENCE) as socket:
        socket.send(json.dumps({"type": "start_session", "config": config}))
        assert "session_started" == json.loads(socket.recv(PATIENCE))["type"]
        yield socket


def event(socket: ClientConnection) -> dict[str, Any]:
    received: dict[str, Any] = json.loads(socket.recv(PATIENCE))
    return received


def ask(socket: ClientConnection, text: str) -> str:
    """Ask and return the whole answer."""
    socket.send(json.dumps({"type": "user_message", "text": text}))
    answer = ""
    while (said := event(socket))["type"] == "token":
        answer += said["data"]
    assert "response_complete" == said["type"]
    return answer


def worker_pids(service: ServiceProcess) -> dict[int, int]:
    """The process of each worker, by its number, as last started."""
    return {line["worker"]: line["process"] for line in service.lines("worker_started")}


def serving_pids(service: ServiceProcess) -> set[int]:
    """The processes that hold connections of clients right now."""
    found = set()
    for pid in worker_pids(service).values():
        with contextlib.suppress(psutil.NoSuchProcess):
            held = psutil.Process(pid).net_connections(kind="tcp")
            if any(c.status == psutil.CONN_ESTABLISHED and c.laddr.port == service.port for c in held):
                found.add(pid)
    return found


def of_both(
    service: ServiceProcess, stack: contextlib.ExitStack, **config: Any
) -> tuple[list[ClientConnection], list[ClientConnection]]:
    """Connect until both workers serve; returns all connections, and the first one of each worker."""
    sockets: list[ClientConnection] = []
    firsts: list[ClientConnection] = []
    while len(firsts) < 2:
        assert len(sockets) < 80, "of 80 connections one worker had none"
        sockets.append(stack.enter_context(started(service.ws_url, **config)))
        if len(serving_pids(service)) > len(firsts):
            firsts.append(sockets[-1])
    return sockets, firsts


def samples(service: ServiceProcess) -> dict[str, float]:
    """What /metrics says, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(service.get("/metrics") or ""):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_one_process(tmp_path: Path) -> None:
    """It says once what it opened and where it listens, answers, and at SIGTERM finishes what runs and exits with 0."""
    with service_process(tmp_path, environment={"SCRIPTED_TOKENS_PER_SECOND": "100"}) as service:
        service.wait_until_listening()
        assert '{"status":"ready"}' == service.get("/health/ready")
        with started(service.ws_url) as socket:
            socket.send(json.dumps({"type": "user_message", "text": "hello"}))
            assert "token" == event(socket)["type"]
            service.process.send_signal(signal.SIGTERM)
            while (said := event(socket))["type"] == "token":
                pass
            assert "response_complete" == said["type"]
        assert 0 == service.process.wait(PATIENCE)
        events = [line["event"] for line in map(json.loads, service.text().splitlines())]
        assert ["engine_opened", "listening", "connection_opened"] == events[:3]
        assert 1 == events.count("drained")


def test_an_engine_that_is_missing(tmp_path: Path) -> None:
    """The process says in one line what is missing and what to do, and exits with 1."""
    with service_process(tmp_path, environment=NOTHING_THERE) as service:
        assert 1 == service.process.wait(PATIENCE)
        url = NOTHING_THERE["OLLAMA_BASE_URL"]
        assert f"error: no Ollama answers at {url}; start it, or set OLLAMA_BASE_URL\n" == service.text()


def test_two_workers(tmp_path: Path) -> None:
    """Both serve one port and are counted as one; a killed one is replaced; one signal drains, a second one cuts."""
    slow = {"SCRIPTED_TOKENS_PER_SECOND": "200", "DRAIN_TIMEOUT": "300"}
    with service_process(tmp_path, "--workers", "2", environment=slow) as service, contextlib.ExitStack() as stack:
        service.wait_until_listening(2)
        assert [1, 2] == sorted(line["worker"] for line in service.lines("listening"))
        sockets, firsts = of_both(service, stack)
        assert all(ask(socket, "hello").startswith("You said: hello") for socket in firsts)

        def counted() -> tuple[float | None, float | None]:
            found = samples(service)
            return found.get("fasttalk_sessions_total"), found.get("fasttalk_connections_active")

        service.wait_until(lambda: counted() == (len(sockets), len(sockets)), "every session is counted, once")

        before = worker_pids(service)
        os.kill(before[2], signal.SIGKILL)
        service.wait_until_listening(3)
        assert (1, -9) == (len(service.lines("worker_died")), service.lines("worker_died")[0]["exit_code"])
        assert before[1] == worker_pids(service)[1]
        assert before[2] != worker_pids(service)[2]
        sessions = len(sockets)
        service.wait_until(lambda: counted()[0] == sessions, "what the dead one did still counts")
        service.wait_until(lambda: (counted()[1] or 0) < sessions, "its connections do not")

        with started(service.ws_url, max_tokens=1) as socket:
            assert "You" == ask(socket, "hello")
        with started(service.ws_url) as socket:
            socket.send(json.dumps({"type": "user_message", "text": "go"}))
            event(socket)
            service.process.send_signal(signal.SIGTERM)
            event(socket)
            assert 0 == service.end()
        assert "Traceback" not in service.text()
    assert not any(psutil.pid_exists(pid) for pid in {**before, **worker_pids(service)}.values())


def test_the_worker_that_is_monitored_dies(tmp_path: Path) -> None:
    """Who asks on the monitoring port meanwhile is not refused: its successor answers, and is ready before long."""
    with service_process(tmp_path, "--workers", "2") as service:
        service.wait_until_listening(2)
        with started(service.ws_url):
            before = worker_pids(service)
            os.kill(before[1], signal.SIGKILL)
            answer = httpx.get(f"http://127.0.0.1:{service.monitoring_port}/health/live", timeout=PATIENCE)
            assert 200 == answer.status_code
            assert before[1] != worker_pids(service)[1]
            assert before[2] == worker_pids(service)[2]
            service.wait_until(lambda: service.get("/health/ready"), "it is ready")
            assert 1 == samples(service)["fasttalk_sessions_total"]


def test_workers_that_cannot_start(tmp_path: Path) -> None:
    """Workers without an engine end the whole with 1; the reason is in the log, without a stack."""
    with service_process(tmp_path, "--workers", "2", environment=NOTHING_THERE) as service:
        assert 1 == service.process.wait(PATIENCE)
        reasons = {line["reason"] for line in service.lines("worker_cannot_start")}
        assert {f"no Ollama answers at {NOTHING_THERE['OLLAMA_BASE_URL']}; start it, or set OLLAMA_BASE_URL"} == reasons
        assert 1 <= len(service.lines("worker_cannot_start")) <= 2
        assert "Traceback" not in service.text()


def test_a_worker_that_cannot_start_again(tmp_path: Path) -> None:
    """One that died and can't start leaves the other one and its clients alone, and comes back when it can."""
    keys = tmp_path / "keys"
    keys.write_text("# nobody yet\nanna\n")
    environment = {"API_KEYS_FILE": str(keys)}
    with (
        service_process(tmp_path, "--workers", "2", environment=environment) as service,
        contextlib.ExitStack() as stack,
    ):
        service.wait_until_listening(2)
        before = worker_pids(service)
        keys.unlink()
        os.kill(before[2], signal.SIGKILL)
        failed = MAX_FAILED_STARTS - 1
        service.wait_until(lambda: len(service.lines("worker_cannot_start")) >= failed, "it fails to start")
        headers = {"Authorization": "Bearer anna"}
        client = stack.enter_context(connect(service.ws_url, compression=None, proxy=None, additional_headers=headers))
        client.send(json.dumps({"type": "start_session"}))
        assert "session_started" == event(client)["type"]
        assert ask(client, "hello").startswith("You said: hello")
        assert '{"status":"ready"}' == service.get("/health/ready")
        keys.write_text("anna\n")
        service.wait_until_listening(3)
        assert before[1] == worker_pids(service)[1]
        assert 0 == service.end()


def test_workers_leave_with_their_supervisor(tmp_path: Path) -> None:
    """Without the supervisor, however it ended, the workers go, too: nothing is left that holds the port."""
    with service_process(tmp_path, "--workers", "2") as service:
        service.wait_until_listening(2)
        service.process.kill()
        pids = worker_pids(service).values()
        until(lambda: not any(_runs(pid) for pid in pids), f"the workers have gone\n{service.text()}")


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.embedded
def test_two_workers_with_a_model_each(tmp_path: Path, embedded_model_path: Path) -> None:
    """Each of two workers has an embedded model of its own and answers; the memory it takes is warned of."""
    embedded = {"LLM_PROVIDER": "llama_cpp", "DEFAULT_CONTEXT_WINDOW": "512", "NUM_THREADS": "1"}
    with service_process(tmp_path, "--workers", "2", environment=embedded) as service, contextlib.ExitStack() as stack:
        service.wait_until_listening(2)
        assert [2] == [line["copies"] for line in service.lines("each_worker_loads_the_model")]
        assert 2 == len(service.lines("engine_opened"))
        _, firsts = of_both(service, stack, max_tokens=8, temperature=0.0)
        assert [True, True] == [ask(socket, "Say hello.") != "" for socket in firsts]
        assert 0 == service.end()


def test_reload(tmp_path: Path) -> None:
    """A source file that changes starts the service anew; a signal ends it."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "llm_service", copy / "llm_service", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "main.py", copy)
    with service_process(tmp_path, "--reload", environment={"LLM_PROVIDER": "scripted"}, root=copy) as service:
        service.wait_until_listening()
        source = copy / "llm_service" / "server.py"
        source.write_text(source.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        service.wait_until_listening(2)
        assert 1 == service.text().count("reloading: the source changed\n")
        assert 0 == service.end()
        assert "Traceback" not in service.text()


# What the supervisor decides, without processes


class FakeProcess:
    """A worker that ends when the test says so, or when it is told to and `obeys`."""

    def __init__(self, obeys: bool) -> None:
        self.obeys = obeys
        self.exitcode: int | None = None
        self.pid = 2**30
        self.told: list[str] = []
        self.sentinel, self._end = socket.socketpair()

    def start(self) -> None:
        self.told.append("start")

    def terminate(self) -> None:
        self.told.append("terminate")
        if self.obeys:
            self.exit(-15)

    def kill(self) -> None:
        self.told.append("kill")
        self.exit(-9)

    def exit(self, status: int) -> None:
        self.exitcode = status
        self._end.close()

    def forget(self) -> None:
        self.sentinel.close()
        self._end.close()


class FakeContext:
    """Makes fake processes; the next ones end at once with the statuses in `endings`.

    Workers in `serving` take clients and stay. The one that is made as number `until` of all brings a SIGTERM along.
    """

    def __init__(self) -> None:
        self.processes: list[FakeProcess] = []
        self.endings: list[int] = []
        self.obeys = True
        self.serving: set[int] = set()
        self.until = 0
        self.times: dict[int, list[float]] = {}

    def Process(self, *, target: object, args: tuple[Any, ...], name: str) -> FakeProcess:  # noqa: N802
        number, served = args[1], args[-1]
        process = FakeProcess(self.obeys)
        self.processes.append(process)
        self.times.setdefault(number, []).append(running.__dict__["monotonic"]())
        if number in self.serving:
            served[number - 1] = 1
        elif self.endings:
            process.exit(self.endings.pop(0))
        if len(self.processes) == self.until:
            os.kill(os.getpid(), signal.SIGTERM)
        return process


@pytest.fixture
def context() -> Generator[FakeContext, None, None]:
    context = FakeContext()
    yield context
    for process in context.processes:
        process.forget()


def supervise(context: FakeContext, tmp_path: Path, workers: int = 1, **environment: str) -> int:
    """Run a supervisor over fake processes until it ends."""
    settings = Settings.load({"NUM_WORKERS": str(workers), "LLM_PROVIDER": "scripted", **environment})
    with socket.socket() as main, socket.socket() as monitoring:
        supervisor = Workers(settings, main=main, monitoring=monitoring, metrics_folder=str(tmp_path))
        supervisor._context = context  # type: ignore[assignment]
        return supervisor.run()


@pytest.fixture
def instantly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass when somebody waits for it."""
    now = [1000.0]
    wait = multiprocessing.connection.wait

    def waiting(things: Any, timeout: float | None = None) -> Any:
        found = wait(things, 0 if timeout is not None else PATIENCE)
        if not found:
            now[0] += (timeout or 0) + 0.001
        return found

    monkeypatch.setattr(multiprocessing.connection, "wait", waiting)
    monkeypatch.setattr(running, "monotonic", lambda: now[0])


@pytest.mark.usefixtures("instantly")
def test_a_worker_that_dies_again_and_again(context: FakeContext, tmp_path: Path) -> None:
    """It is started again a few times; then all are stopped, with 1."""
    context.endings = [1] * 100
    assert 1 == supervise(context, tmp_path)
    assert 1 + MAX_FAILED_STARTS == len(context.processes)


@pytest.mark.usefixtures("instantly")
@pytest.mark.parametrize("status", [CANNOT_START, 1])
def test_a_worker_that_fails_for_ever_leaves_the_others(context: FakeContext, tmp_path: Path, status: int) -> None:
    """While another worker serves it is started again and again, with a pause that doubles up to half a minute."""
    context.serving = {1}
    context.endings = [status] * 100
    context.until = 40
    with structlog.testing.capture_logs() as lines:
        assert 0 == supervise(context, tmp_path, workers=2)
    assert ["start", "terminate"] == context.processes[0].told
    pauses = [round(after - before) for before, after in itertools.pairwise(context.times[2])]
    assert [0, 1, 3, 7, 15] + [LONGEST_PAUSE] * 33 == pauses
    died = [line["again_in_seconds"] for line in lines if line["event"] == "worker_died"]
    assert pauses == died[:38]


@pytest.mark.usefixtures("instantly")
def test_when_none_serves_any_more(context: FakeContext, tmp_path: Path) -> None:
    """Once each of the workers has failed too often in a row, and none serves, all are stopped, with 1."""
    context.serving = {1}

    def dies(number: int) -> bool:
        return number == 2 and len(context.times[2]) == 20

    make = context.Process

    def making(*, target: object, args: tuple[Any, ...], name: str) -> FakeProcess:
        process = make(target=target, args=args, name=name)
        if dies(args[1]):
            context.serving.clear()
            context.processes[0].exit(-9)
        return process

    context.Process = making  # type: ignore[method-assign]
    context.endings = [CANNOT_START] * 100
    assert 1 == supervise(context, tmp_path, workers=2)
    # The one that served has lived long enough to be started anew without being blamed.
    assert 1 + 1 + MAX_FAILED_STARTS == len(context.times[1])


@pytest.mark.usefixtures("instantly")
def test_a_worker_that_cannot_start_stops_all(context: FakeContext, tmp_path: Path) -> None:
    """The first start of the first worker tells that none can start: the others are not left half begun."""
    context.endings = [CANNOT_START]
    assert 1 == supervise(context, tmp_path, workers=3)
    assert [["start"], ["start", "terminate"], ["start", "terminate"]] == [p.told for p in context.processes]


@pytest.mark.usefixtures("instantly")
def test_a_worker_that_hangs_is_killed(context: FakeContext, tmp_path: Path) -> None:
    """A worker that does not end after the drain is killed, so that the stop has an end."""
    context.obeys = False
    context.endings = [CANNOT_START]
    assert 1 == supervise(context, tmp_path, workers=2)
    assert ["start", "terminate", "kill"] == context.processes[1].told


def test_signals_are_handled_as_before_afterwards(context: FakeContext, tmp_path: Path) -> None:
    """The supervisor leaves the process's signal handlers as it found them."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    context.endings = [CANNOT_START]
    supervise(context, tmp_path)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_uvloop_is_used() -> None:
    """On Linux and macOS the event loop is uvloop's."""
    factory = running.loop_factory()
    assert factory is not None
    loop = factory()
    loop.close()
    assert "uvloop" == type(loop).__module__


def test_interrupt_while_workers_start(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal at any moment: it ends all with 0, and no stack is shown."""
    with service_process(tmp_path, "--workers", "2") as service:
        service.wait_until(lambda: len(worker_pids(service)) == 2, "both are being started")
        for pid in worker_pids(service).values():
            os.kill(pid, signal.SIGINT)
        assert 0 == service.end(signal.SIGINT)
        assert "Traceback" not in service.text()
