"""`python -m benchmarks {run,guard,real,context,speech,reliability,setup-peers}`."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

try:
    from benchmarks import context, guard, peers, real, report, speech, suite
    from benchmarks.measure import machine
    from benchmarks.processes import ROOT, BenchmarkFailed
    from benchmarks.reliability import parts
    from benchmarks.systems import SYSTEMS, chosen
except ModuleNotFoundError as missing:
    sys.exit(
        f"error: {missing}: the benchmarks need the tools for development; ./run-tests.sh --version installs them into "
        ".venv, whose Python is to be used: .venv/bin/python -m benchmarks"
    )


def main() -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Unwinds, so that no child is left behind.
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        status: int = options.run(options)
    except (BenchmarkFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.SubprocessError as error:
        print(f"error: a peer could not be installed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="measure everything; print a table, write JSON and plots")
    run.add_argument("--quick", action="store_true", help="one short round without LiteLLM, under 90 seconds")
    run.add_argument("--only", default="", help=f"of {', '.join(system.name for system in SYSTEMS)}; comma-separated")
    run.add_argument(
        "--out", type=Path, help="where results are written; default: docs/benchmarks for all of it, else nowhere"
    )
    run.set_defaults(run=_run)
    check = commands.add_parser("guard", help="fail if CPU per word ÷ the floor's has grown by more than 25 %%")
    check.add_argument("--write", action="store_true", help="write the value that later runs are compared with")
    check.set_defaults(run=lambda options: guard.guard(write=options.write))
    real.add_to(commands)
    context.add_to(commands)
    speech.add_to(commands)
    parts.add_to(commands)
    setup = commands.add_parser("setup-peers", help="install LiteLLM in an environment of its own")
    setup.set_defaults(run=_setup)
    return parser


def _run(options: argparse.Namespace) -> int:
    systems = chosen(options.only or ("service,floor,naive,engine" if options.quick else ""))
    described = machine()
    rows, idle = suite.run(systems, suite.QUICK if options.quick else suite.FULL)
    described["load_after"] = f"{os.getloadavg()[0]:.2f}"
    print(report.table(rows, idle))
    # What is committed is one whole run: a part of one must not take its place unasked.
    folder = options.out or (None if options.quick or options.only else ROOT / "docs" / "benchmarks")
    if folder is not None:
        for path in report.write(folder, rows, idle, described, sys.argv[1:]):
            print(f"wrote {report.show(path)}", file=sys.stderr)
    # That a peer fails is a figure; that the service does is not to be overlooked.
    return int(not rows or any(row.failed for row in rows if row.system.startswith("service")))


def _setup(_: argparse.Namespace) -> int:
    peers.setup()
    print(f"LiteLLM {peers.LITELLM} is installed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
