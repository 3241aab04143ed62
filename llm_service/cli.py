"""The command line: `python main.py {websocket,chat,bench,test,config}`.

The one place that reads the process's environment and arguments.
"""

import argparse
import asyncio
import contextlib
import difflib
import gc
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

from dotenv import dotenv_values

from llm_service import __version__
from llm_service.config import Settings, aliases, shown, variables
from llm_service.env_example import FOREIGN
from llm_service.errors import ConfigurationError, FastTalkError

PACKAGE = Path(__file__).parent
MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

# In .env they would reach nobody.
READ_BY_LIBRARIES = ("CUDA_VISIBLE_DEVICES", *FOREIGN)

# Options that stand for a variable; the option wins.
OPTIONS = {
    "host": "LLM_HOST",
    "port": "LLM_PORT",
    "monitoring_port": "LLM_MONITORING_PORT",
    "model": "LLM_MODEL",
    "provider": "LLM_PROVIDER",
    "log_level": "LOG_LEVEL",
    "workers": "NUM_WORKERS",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status: 0 fine, 1 failed, 2 wrongly called, 130 stopped by Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that has no check mark gets a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        status: int = options.run(options)
        print(end="", flush=True)  # noqa: T201 - what cannot be written is told here, not by Python at exit
    except FastTalkError as error:
        status = _fail(error.message)
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        # Most likely of standard output: what is left in its buffer must not fail at exit again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1 if isinstance(error, BrokenPipeError) else _fail(str(error))
    sys.exit(status)


def _fail(message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {message}", file=sys.stderr)  # noqa: T201
    return 1


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that count: the file `.env` here, over it the process's, over them the options.

    Raises:
        ConfigurationError: the file is there and cannot be read.
    """
    try:
        file = dotenv_values(Path(".env"))
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{Path('.env').absolute()} cannot be read, or is no text in UTF-8") from None
    given = {variable: str(value) for name, variable in OPTIONS.items() if (value := getattr(options, name, None))}
    layers = (file, os.environ, given)
    for name in file:
        _warn_of_typo(name)
    for name in READ_BY_LIBRARIES:
        if value := file.get(name):
            os.environ.setdefault(name, value)
    # In capitals, as settings are found whatever their case: of `llm_port` and LLM_PORT the upper layer's wins.
    return {name.upper(): value for layer in layers for name, value in layer.items() if value is not None}


def _warn_of_typo(name: str) -> None:
    """Say it of a name in .env that is nearly one of ours; others are other programs' business."""
    known = [alias for variable in variables() for alias in aliases(variable)]
    if name.upper() not in known and (near := difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.8)):
        print(f"warning: .env: {name} is no setting; did you mean {near[0]}?", file=sys.stderr)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="main.py", description="The FastTalk LLM service.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("--host", help="address to listen on (LLM_HOST)")
    settings.add_argument("--port", help="WebSocket and HTTP port (LLM_PORT)")
    settings.add_argument("--monitoring-port", help="monitoring port (LLM_MONITORING_PORT)")
    settings.add_argument("--model", help="model to generate with (LLM_MODEL)")
    settings.add_argument("--provider", help="auto, ollama, openai, vllm, llama_cpp or scripted (LLM_PROVIDER)")
    settings.add_argument("--log-level", help="DEBUG, INFO, WARNING, ERROR or CRITICAL (LOG_LEVEL)")
    settings.add_argument("--workers", help="processes that share the port (NUM_WORKERS)")

    websocket = commands.add_parser("websocket", parents=[settings], help="run the service")
    websocket.add_argument("--reload", action="store_true", help="start anew when a source file changes")
    websocket.set_defaults(run=_websocket)

    service = argparse.ArgumentParser(add_help=False)
    service.add_argument("--url", help="its WebSocket (default: ws://localhost:LLM_PORT/ws/llm)")
    service.add_argument(
        "--api-key", metavar="KEY", help="where one is asked for (default, without --url: the first of ours)"
    )

    chat = commands.add_parser("chat", parents=[service], help="talk to a running service in the terminal")
    chat.add_argument("--once", metavar="TEXT", help="ask this, print the answer and leave")
    chat.add_argument("--system", metavar="TEXT", help="system prompt of the session")
    chat.add_argument(
        "--speak", action="store_true", help="hear the answers: by a player of this machine, else as WAV files here"
    )
    chat.set_defaults(run=_chat)

    bench = commands.add_parser("bench", parents=[service], help="measure a running service: waits and words a second")
    bench.add_argument(
        "--sessions", type=_from_one_to(1000), default=4, metavar="N", help="sessions at once (default: 4)"
    )
    bench.add_argument(
        "--turns", type=_from_one_to(100_000), default=3, metavar="N", help="questions in each (default: 3)"
    )
    bench.add_argument("--prompt", type=_not_blank, metavar="TEXT", help="the question (default: one of its own)")
    bench.add_argument(
        "--max-tokens", type=_from_one_to(100_000), default=64, metavar="N", help="longest answer (default: 64)"
    )
    bench.add_argument("--json", action="store_true", help="print the figures as JSON (docs/bench.md has the keys)")
    bench.set_defaults(run=_bench)

    test = commands.add_parser("test", parents=[settings], help="check engine, model and one real generation")
    test.set_defaults(run=_test)

    config = commands.add_parser("config", parents=[settings], help="show the configuration, secrets masked")
    config.add_argument("--show", action="store_true", help="show it (also without this option)")
    config.add_argument("--format", choices=("text", "json"), default="text")
    config.add_argument(
        "--write-docs",
        action="store_true",
        help="write docs/asyncapi.yaml, docs/schemas, docs/errors.md and .env.example anew",
    )
    config.set_defaults(run=_config)
    return parser


def _from_one_to(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        # int() alone takes more than digits, and of those more than it reads in reasonable time.
        if text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no whole number from 1 to {most}")

    return number


def _not_blank(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it must not be empty")
    return text


def _settings(options: argparse.Namespace) -> Settings:
    return Settings.load(environment(options))


# What a command needs is imported when it runs: a start takes no longer than what it starts.


def _websocket(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.reload:
        return _reload(options)
    with contextlib.ExitStack() as stack:
        folder = ""
        os.environ.pop(MULTIPROCESS_FOLDER, None)
        if settings.num_workers > 1:
            # prometheus_client reads it when it is imported: the workers write their figures there, and the
            # one that is asked adds them up.
            folder = os.environ[MULTIPROCESS_FOLDER] = stack.enter_context(tempfile.TemporaryDirectory())
        # What is imported stays: to look through it for garbage again and again takes a twentieth of the start.
        gc.disable()
        # structlog would import it, for tracebacks that the service's log has none of.
        with _without("rich"):
            from llm_service import running

        gc.freeze()
        gc.enable()
        return running.run(settings, metrics_folder=folder)


@contextlib.contextmanager
def _without(package: str) -> Generator[None, None, None]:
    """Let the block import nothing of a package that what it imports can do without."""
    known = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == package}
    sys.modules[package] = cast("ModuleType", None)
    try:
        yield
    finally:
        del sys.modules[package]
        sys.modules.update(known)


def _reload(options: argparse.Namespace) -> int:
    import watchfiles

    arguments = ["websocket"]
    for name in OPTIONS:
        if (value := getattr(options, name)) is not None:
            arguments += [f"--{name.replace('_', '-')}", value]
    # The first signal lets running responses finish for a moment, then the new code is what is wanted.
    watchfiles.run_process(
        PACKAGE,
        target=main,
        args=(arguments,),
        watch_filter=watchfiles.PythonFilter(),
        sigint_timeout=3,
        callback=_say_reload,
    )
    return 0


def _say_reload(_: object) -> None:
    print("reloading: the source changed", file=sys.stderr)  # noqa: T201


def _chat(options: argparse.Namespace) -> int:
    from rich.console import Console

    from llm_service.chat_client import ChatClient
    from llm_service.terminal_chat import Chat, ask_once

    url, api_key = _url_and_key(options)
    config = {} if options.system is None else {"system_prompt": options.system}
    client = ChatClient(url, api_key=api_key, config=config)
    if options.speak:
        from llm_service.playback import found_player

        client.speak(found_player(), Path.cwd())
    if options.once is not None:
        return asyncio.run(ask_once(client, options.once, Console(), Console(stderr=True)))
    return Chat(client, Console()).run()


def _bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from llm_service import bench
    from llm_service.bench_figures import Load
    from llm_service.chat_client import ChatClient

    url, api_key = _url_and_key(options)
    load = Load(options.sessions, options.turns, options.prompt or bench.PROMPT, options.max_tokens)
    return bench.run(
        load,
        lambda: ChatClient(url, api_key=api_key, config=load.config),
        as_json=options.json,
        console=Console(),
        notes=Console(stderr=True),
    )


def _url_and_key(options: argparse.Namespace) -> tuple[str, str]:
    """Return where the service is and the key to bring: our own key goes to our own address alone."""
    from llm_service.key_file import KeyFile

    settings = _settings(options)
    keys = [key.get_secret_value() for key in settings.api_keys]
    if settings.api_keys_file and not keys and not (options.url or options.api_key):
        keys = list(KeyFile(Path(settings.api_keys_file)).load())
    own = f"ws://{_own_host(settings.llm_host)}:{settings.llm_port}/ws/llm"
    return options.url or own, options.api_key or (keys[0] if keys and not options.url else "")


def _own_host(host: str) -> str:
    """Return where a service that listens on `host` is found from this machine."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _test(options: argparse.Namespace) -> int:
    from rich.console import Console

    from llm_service import log
    from llm_service.self_check import self_check

    settings = _settings(options)
    log.configure("WARNING", settings.log_format)
    return 0 if asyncio.run(self_check(settings, Console())) else 1


def _config(options: argparse.Namespace) -> int:
    if options.write_docs:
        from llm_service import documents

        for path in documents.write(PACKAGE.parent):
            print(path)  # noqa: T201
        return 0
    values = shown(_settings(options))
    as_json = options.format == "json"
    print(json.dumps(values, indent=2, ensure_ascii=False) if as_json else _table(values))  # noqa: T201
    return 0


def _table(values: Mapping[str, object]) -> str:
    rule = "=" * 60
    lines = [f"{name:<30}: {_text(value)}" for name, value in values.items()]
    return "\n".join(["", rule, "FastTalk LLM Service Configuration", rule, *lines, rule])


def _text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
