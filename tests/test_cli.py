"""The command line: where values come from, what is said of wrong ones, and that nothing ends in a traceback."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_service import __version__, cli, documents, log
from llm_service.config import variables
from llm_service.engines.scripted import Fault, ScriptedEngine
from llm_service.errors import GenerationFailed
from llm_service.serving import bind
from tests.live import live_service
from tests.processes import PATIENCE, ROOT, bare_environment, free_port, until

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder without any variable; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper() in variables() or name.upper().startswith("VLLM_"):
            monkeypatch.delenv(name)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        output, errors = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, output, errors

    return run


def shown(run: Run, *options: str) -> dict[str, object]:
    status, output, errors = run("config", "--format", "json", *options)
    assert (0, "") == (status, errors)
    values: dict[str, object] = json.loads(output)
    return values


def python(*arguments: str, folder: Path, **popen: object) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        cwd=folder,
        env=bare_environment(LLM_PROVIDER="scripted"),
        text=True,
        stderr=subprocess.PIPE,
        **popen,  # type: ignore[call-overload]
    )
    return process


class TestConfig:
    def test_text(self, run: Run) -> None:
        """FastTalk 1.x's table: a title between rules, then a line for each variable; --show changes nothing."""
        status, output, errors = run("config")
        lines = output.splitlines()
        rule = "=" * 60
        assert (0, "") == (status, errors)
        assert ["", rule, "FastTalk LLM Service Configuration", rule] == lines[:4]
        assert [f"{name:<30}: " for name in variables()] == [line[:32] for line in lines[4:-1]]
        assert f"{'LLM_PORT':<30}: 8000" in lines
        assert rule == lines[-1]
        assert output == run("config", "--show")[1]

    def test_json(self, run: Run) -> None:
        """Every variable, with its type."""
        values = shown(run)
        assert list(variables()) == list(values)
        assert (8000, None, []) == (values["LLM_PORT"], values["NUM_THREADS"], values["ALLOWED_MODELS"])

    def test_options_over_environment_over_file(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An option wins over the environment, which wins over .env, which wins over the default."""
        text = "LLM_PORT=9001\nLLM_HOST=file\nLLM_MODEL=file\nLOG_LEVEL=debug\n"
        (tmp_path / ".env").write_text(text, encoding="utf-8")
        monkeypatch.setenv("LLM_HOST", "environment")
        monkeypatch.setenv("llm_model", "environment")
        values = shown(run, "--model", "option", "--workers", "3")
        assert [9001, "environment", "option", "DEBUG", 3, 9092] == [
            values[name]
            for name in ("LLM_PORT", "LLM_HOST", "LLM_MODEL", "LOG_LEVEL", "NUM_WORKERS", "LLM_MONITORING_PORT")
        ]

    def test_every_option_has_its_variable(self, run: Run) -> None:
        """Each option of the table is an option, of a variable that there is."""
        given = {"host": "h", "port": "9001", "monitoring_port": "9002", "model": "m", "provider": "vllm"}
        given |= {"log_level": "error", "workers": "2"}
        assert given.keys() == cli.OPTIONS.keys()
        values = shown(run, *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()))
        assert given == {name: str(values[cli.OPTIONS[name]]).lower() for name in given}

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_secrets_are_masked(self, run: Run, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
        """No key and no password of a URL is shown."""
        monkeypatch.setenv("API_KEYS", "canary-1,canary-2")
        monkeypatch.setenv("VLLM_API_KEY", "canary-3")
        monkeypatch.setenv("OLLAMA_BASE_URL", "http://me:canary-4@host")
        status, output, errors = run("config", "--format", form)
        assert (0, "") == (status, errors)
        assert "canary" not in output
        assert 2 < output.count("********")

    @pytest.mark.parametrize("wrong", ["0", "80", "65536", "abc", "", " ", "8000.5", "-1"])
    @pytest.mark.parametrize("command", ["config", "websocket", "test", "chat", "bench"])
    def test_wrong_values(self, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, wrong: str) -> None:
        """A wrong value is named with its bounds in one line on standard error, whatever the command; exit status 1."""
        if not wrong.strip():
            assert 8000 == shown(run, "--port", wrong)["LLM_PORT"]
            return
        monkeypatch.setenv("LLM_PORT", wrong)
        status, output, errors = run(command)
        assert (1, "") == (status, output)
        assert errors.startswith(f"error: LLM_PORT={wrong}: input should be")
        assert 1 == errors.count("\n")

    @pytest.mark.parametrize("option", ["--port=0", "--workers=0", "--log-level=loud", "--provider=nobody"])
    def test_wrong_options(self, run: Run, option: str) -> None:
        """A wrong value of an option is told in the same way."""
        status, _, errors = run("websocket", option)
        name, _, value = option[2:].partition("=")
        assert 1 == status
        assert errors.startswith(f"error: {cli.OPTIONS[name.replace('-', '_')]}={value}: ")

    def test_a_file_that_cannot_be_read(self, run: Run, tmp_path: Path) -> None:
        """A .env that is no text is named."""
        (tmp_path / ".env").write_bytes(b"\xff\xfe=1")
        assert (1, "", f"error: {tmp_path / '.env'} cannot be read, or is no text in UTF-8\n") == run("config")

    def test_write_docs(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """--write-docs writes every generated file into the checkout and lists them."""
        (tmp_path / "pyproject.toml").touch()
        monkeypatch.setattr(cli, "PACKAGE", tmp_path / "llm_service")
        status, output, _ = run("config", "--write-docs")
        assert (0, [str(tmp_path / name) for name in documents.documents()]) == (status, output.splitlines())
        assert all((tmp_path / name).is_file() for name in documents.documents())

    def test_write_docs_is_in_the_help(self, run: Run) -> None:
        """What it writes is told."""
        status, output, _ = run("config", "--help")
        assert 0 == status
        assert "write docs/asyncapi.yaml, docs/schemas, docs/errors.md and .env.example anew" in " ".join(
            output.split()
        )


class TestCalls:
    @pytest.mark.parametrize("arguments", [[], ["serve"], ["config", "--colour"], ["chat", "--port", "1"]])
    def test_wrong_calls(self, run: Run, arguments: list[str]) -> None:
        """An unknown command or option is exit status 2, with the usage."""
        status, output, errors = run(*arguments)
        assert (2, "") == (status, output)
        assert errors.startswith("usage: main.py")

    def test_version(self, run: Run) -> None:
        """--version says it."""
        assert (0, f"{__version__}\n", "") == run("--version")

    def test_interrupted(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C is exit status 130 and no words."""

        def interrupted(_: object) -> int:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "_config", interrupted)
        assert (130, "", "") == run("config")

    def test_interrupted_by_a_signal(self) -> None:
        """Ctrl-C in the middle of a command leaves no traceback."""
        # Many short sleeps: a signal that comes just before a sleep begins does not cut that sleep short.
        waiting = "lambda o: (print('on', flush=True), [time.sleep(0.01) for _ in range(6000)])"
        code = f"import time, llm_service.cli as c; c._config = {waiting}"
        with subprocess.Popen(
            [sys.executable, "-c", f"{code}; c.main(['config'])"],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert "on\n" == process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert (130, "") == (process.wait(PATIENCE), process.stderr.read())

    def test_a_reader_that_leaves(self, tmp_path: Path) -> None:
        """Output that nobody reads any more ends the command without a word."""
        reading, writing = os.pipe()
        with python("config", folder=tmp_path, stdout=writing) as process:
            os.close(reading)
            os.close(writing)
            assert process.stderr is not None
            assert (1, "") == (process.wait(PATIENCE), process.stderr.read())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
    def test_a_full_disk(self, tmp_path: Path) -> None:
        """Output that cannot be written is told in one line."""
        with Path("/dev/full").open("w") as full, python("config", folder=tmp_path, stdout=full) as process:
            assert process.stderr is not None
            status, errors = process.wait(PATIENCE), process.stderr.read()
        assert (1, "error: [Errno 28] No space left on device\n") == (status, errors)

    def test_a_terminal_without_check_marks(self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What the terminal's encoding cannot show does not end the command."""
        output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setenv("SYSTEM_PROMPT", "Sei höflich.")
        assert 0 == run("config")[0]
        output.seek(0)
        assert "Sei h?flich." in output.read()


class TestTest:
    def test_fine(self, run: Run) -> None:
        """With an engine that works the exit status is 0."""
        status, output, errors = run("test", "--provider", "scripted")
        assert (0, 6, "") == (status, output.count("✓"), errors)

    def test_no_engine(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without, it is 1, and what to do is said."""
        url = f"http://127.0.0.1:{free_port()}"
        monkeypatch.setenv("OLLAMA_BASE_URL", url)
        status, output, errors = run("test", "--provider", "ollama")
        assert (1, "") == (status, errors)
        assert f"✗ engine: no Ollama answers at {url}; start it, or set OLLAMA_BASE_URL" == output.splitlines()[-1]


# A start that ends at a port that is taken, and what was imported for it.
STARTED = """
import sys
from llm_service.cli import main
try:
    main(["websocket", "--host", "127.0.0.1", "--port", sys.argv[1]])
except SystemExit:
    print(sorted(name for name in sys.modules if name.partition(".")[0] == "rich"))
import rich
"""


class TestWebSocket:
    def test_a_taken_port(self, run: Run) -> None:
        """A port that is taken is one line, and exit status 1."""
        with bind("127.0.0.1", 0, setting="LLM_PORT") as taken:
            taken.listen()
            port = taken.getsockname()[1]
            try:
                status, output, errors = run("websocket", "--host", "127.0.0.1", "--port", str(port))
            finally:
                log.configure("WARNING", "console")
        assert (1, "", 1) == (status, output, errors.count("\n"))
        assert errors.startswith(f"error: LLM_PORT={port}: cannot listen on 127.0.0.1:{port} (")

    def test_the_start_imports_nothing_for_terminals(self) -> None:
        """What draws in terminals takes time to import, and the service does without; it is there for others."""
        with bind("127.0.0.1", 0, setting="LLM_PORT") as taken:
            taken.listen()
            done = subprocess.run(
                [sys.executable, "-c", STARTED, str(taken.getsockname()[1])],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        assert "[]\n" == done.stdout
        assert "cannot listen" in done.stderr

    def test_one_process_shares_no_metrics(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A folder for shared metrics that somebody left in the environment is not written to."""
        monkeypatch.setenv(cli.MULTIPROCESS_FOLDER, "/nowhere")
        seen = []

        def remember(*_: object, metrics_folder: str) -> int:
            seen.append((metrics_folder, os.environ.get(cli.MULTIPROCESS_FOLDER)))
            return 0

        monkeypatch.setattr("llm_service.running.run", remember)
        assert 0 == run("websocket")[0]
        assert 0 == run("websocket", "--workers", "2")[0]
        assert ("", None) == seen[0]
        assert seen[1][0] == seen[1][1] != ""
        assert not Path(seen[1][0]).exists()


class TestChat:
    async def once(self, run: Run, engine: ScriptedEngine, *options: str, **environment: str) -> tuple[int, str, str]:
        async with live_service(engine, environment) as live:
            return await asyncio.to_thread(run, "chat", "--url", live.ws_url, "--once", "hello", *options)

    async def test_once(self, run: Run) -> None:
        """The streamed answer is printed, and nothing else; the system prompt is the session's."""
        engine = ScriptedEngine(lambda _: ["It ", "is ", "[bold]so[/]."], tokens_per_second=1000, models=())
        assert (0, "It is [bold]so[/].\n", "") == await self.once(run, engine, "--system", "Be brief.")
        assert ("system", "Be brief.") == (engine.requests[0].messages[0].role, engine.requests[0].messages[0].content)

    @pytest.mark.espeak
    async def test_speak(self, run: Run, espeak_program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Without a player on the PATH the answer's sound is written, a WAV a chunk, and told."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("llm_service.playback.PLAYERS", ())
        engine = ScriptedEngine(lambda _: ["It is ", "so."], tokens_per_second=1000, models=())
        status, output, errors = await self.once(run, engine, "--speak", TTS_ENDPOINTS="espeak")
        assert (0, "It is so.\n") == (status, output)
        assert "no player was found; written: speech-001.wav" in errors
        assert b"RIFF" == (tmp_path / "speech-001.wav").read_bytes()[:4]

    async def test_an_error(self, run: Run) -> None:
        """An answer that fails is told on standard error; exit status 1."""
        engine = ScriptedEngine(models=(), faults=[Fault(0, GenerationFailed("it [/b] broke"))])
        status, output, errors = await self.once(run, engine)
        assert (1, "", "it [/b] broke") == (status, output, errors.splitlines()[-1])

    async def test_keys(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service with keys lets in who brings one; others are told to. Another's address never gets ours."""
        engine = ScriptedEngine(lambda _: ["yes"], models=())
        monkeypatch.setenv("API_KEYS", "right")
        status, output, errors = await self.once(run, engine, API_KEYS="right")
        assert (1, "") == (status, output)
        assert "asks for a key" in errors
        refused = "the service refused the connection with HTTP 401: "
        status, output, errors = await self.once(run, engine, "--api-key", "wrong", API_KEYS="right")
        assert (1, "") == (status, output)
        assert errors.splitlines()[-1].startswith(refused)
        assert (0, "yes\n") == (await self.once(run, engine, "--api-key", "right", API_KEYS="right"))[:2]

    def test_the_key_of_a_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The key for our own address comes out of API_KEYS_FILE where API_KEYS has none; another's gets none."""
        keys = tmp_path / "keys"
        keys.write_text("# ours\nfrom-the-file\n")
        monkeypatch.setenv("API_KEYS_FILE", str(keys))
        own, other, given = (
            cli._parser().parse_args(["chat", *options])
            for options in ([], ["--url", "ws://other/ws/llm"], ["--api-key", "brought"])
        )
        assert ["from-the-file", "", "brought"] == [cli._url_and_key(options)[1] for options in (own, other, given)]

    def test_nobody_there(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service that is not there is named by the address that was tried, and how to start it."""
        port = free_port()
        monkeypatch.setenv("LLM_PORT", str(port))
        status, output, errors = run("chat", "--once", "hello")
        assert (1, "") == (status, output)
        assert errors.startswith(f"no service answers at ws://localhost:{port}/ws/llm; start it with ")

    def test_no_address(self, run: Run) -> None:
        """An address that is none is told."""
        assert (1, "", "http://x is no address of a WebSocket, as ws://localhost:8000/ws/llm is\n") == run(
            "chat", "--url", "http://x", "--once", "hello"
        )

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("0.0.0.0", "localhost"), ("::", "localhost"), ("192.0.2.1", "192.0.2.1"), ("::1", "[::1]")],
    )
    def test_own_host(self, host: str, expected: str) -> None:
        """The chat looks for a service where the configuration lets it listen."""
        assert expected == cli._own_host(host)


class TestBench:
    async def test_fine(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """The options make the load, the key is brought, and the figures alone are on standard output."""
        engine = ScriptedEngine(lambda _: ["yes ", "no ", "maybe"], tokens_per_second=1000, models=())
        options = ("--sessions=2", "--turns=1", "--prompt=Well?", "--max-tokens=2", "--api-key=right", "--json")
        async with live_service(engine, {"API_KEYS": "right"}) as live:
            status, output, errors = await asyncio.to_thread(run, "bench", "--url", live.ws_url, *options)
        found = json.loads(output)
        assert (0, 2, 4) == (status, found["responses_completed"], found["words"])
        assert "warming up: one answer that does not count" == errors.splitlines()[0]
        assert {("Well?", 2)} == {(asked.messages[-1].content, asked.sampling.max_tokens) for asked in engine.requests}
        assert "right" not in output + errors

    async def test_wrong_key(self, run: Run) -> None:
        """A key that is refused is an error with its code and what to do."""
        async with live_service(ScriptedEngine(), {"API_KEYS": "right"}) as live:
            arguments = ("bench", "--url", live.ws_url, "--api-key", "wr0ng")
            status, output, errors = await asyncio.to_thread(run, *arguments)
        assert 1 == status
        assert output.splitlines()[-1].startswith("1 × unauthorized: the service refused the connection with HTTP 401")
        assert "wr0ng" not in output + errors

    def test_nobody_there(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A service that is not there is named by the address that was tried, without the password in it."""
        status, output, _ = run("bench", "--url", f"ws://me:canary@localhost:{free_port()}/")
        assert 1 == status
        assert output.splitlines()[-1].startswith("1 × no_service: no service answers at ws://********@localhost:")
        assert "canary" not in output

    @pytest.mark.parametrize(
        "wrong",
        [
            *(f"--sessions={number}" for number in ("0", "1001", "-1", "two", "1.5", "²")),
            *("--turns=0", "--turns=", f"--turns={'9' * 5000}", "--max-tokens=0", "--prompt= "),
        ],
    )
    def test_wrong_options(self, run: Run, wrong: str) -> None:
        """A number out of bounds, and a question without a word, are wrong calls."""
        status, output, errors = run("bench", wrong)
        assert (2, "") == (status, output)
        assert f"error: argument {wrong.partition('=')[0]}: " in errors

    async def test_interrupted(self, tmp_path: Path) -> None:
        """Ctrl-C prints what was measured so far; exit status 130, and no traceback."""
        engine = ScriptedEngine(tokens_per_second=1000, models=(), faults=[None, None, Fault(1)])
        async with live_service(engine) as live:
            arguments = ("bench", "--url", live.ws_url, "--sessions=1", "--json")
            with python(*arguments, folder=tmp_path, stdout=subprocess.PIPE) as process:
                # The question after one that was answered.
                await asyncio.to_thread(until, lambda: len(engine.requests) == 3, "the second question is asked")
                process.send_signal(signal.SIGINT)
                output, errors = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        found = json.loads(output)
        assert (130, True, 1, {}) == (
            process.returncode,
            found["interrupted"],
            found["responses_completed"],
            found["errors"],
        )
        assert "measuring; sessions: 1, questions in each: 3" == errors.splitlines()[-1]
