"""Makes `.venv` hold what a lock in requirements/ names; the start scripts of every platform call it.

    python scripts/environment.py {service|dev}           install what is missing
    python scripts/environment.py --check {service|dev}   say by the exit code whether anything is

Needs nothing but Python's standard library. Once an environment is complete a stamp in it says so, with
the lock's checksum: the next start compares the two and asks no network. The stamp is removed before
anything is changed and written last, so that whatever was interrupted is done again.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# There while packages are being installed. pip undoes what it fails at, but after a kill a package can be there by
# half and pass for installed: an environment in which this is found is made anew.
UNFINISHED = VENV / ".unfinished"

# What each lock covers: all that the service needs stands in dev.lock, too, in the same versions.
COVERS = {"service": ("service",), "dev": ("service", "dev")}


class SetupFailed(Exception):
    """The environment can't be made; the message says what to do."""


def stamp(name: str) -> Path:
    return VENV / f".{name}-installed"


def fingerprint(name: str, interpreter: str) -> str:
    lock = (ROOT / "requirements" / f"{name}.lock").read_bytes()
    return f"{interpreter} {hashlib.sha256(lock).hexdigest()}\n"


def interpreter_tag() -> str:
    """What installed packages are made for: another Python or platform needs others."""
    return f"{sys.implementation.cache_tag} {sysconfig.get_platform()}"


def is_current(name: str, interpreter: str) -> bool:
    try:
        return stamp(name).read_text(encoding="utf-8") == fingerprint(name, interpreter)
    except FileNotFoundError:
        return False


def say(message: str) -> None:
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def in_venv(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the environment's own Python, unmoved by PYTHONPATH and the like, and keep what it says."""
    return subprocess.run([PYTHON, "-I", *arguments], capture_output=True, text=True, check=False)  # noqa: S603


def tag_in_venv() -> str | None:
    """The tag of the environment's Python; None if there is none that runs or it is too old."""
    try:
        answer = in_venv("-S", __file__, "--tag")
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def make_venv() -> str:
    """Make the environment where it is missing or broken, and return its Python's tag."""
    tag = None if UNFINISHED.exists() else tag_in_venv()
    if tag is not None:
        return tag
    say(f"Making a Python environment in {VENV}")
    try:
        venv.create(VENV, clear=True, with_pip=False, symlinks=os.name != "nt")
    except (OSError, ValueError) as error:
        raise SetupFailed(f"The environment could not be made: {error}") from error
    tag = tag_in_venv()
    if tag is None:
        raise SetupFailed(f"The Python in {VENV} does not run. Remove that folder and try again.")
    return tag


def install(name: str) -> None:
    """Install a lock's packages, and stamp the environment as complete."""
    tag = make_venv()
    if is_current(name, tag):
        return
    say(f"Installing requirements/{name}.lock; this takes a minute or two, once")
    UNFINISHED.touch()
    for other in COVERS:
        stamp(other).unlink(missing_ok=True)
    problem = run_pip(ROOT / "requirements" / f"{name}.lock")
    UNFINISHED.unlink()
    if problem is not None:
        raise SetupFailed(problem)
    for covered in COVERS[name]:
        stamp(covered).write_text(fingerprint(covered, tag), encoding="utf-8")


def run_pip(lock: Path) -> str | None:
    """Install what the lock names; what went wrong, if anything did."""
    # A new environment has no pip yet, nor has one that uv made.
    if in_venv("-m", "pip", "--version").returncode != 0:
        bootstrap = in_venv("-m", "ensurepip", "--default-pip")
        if bootstrap.returncode != 0:
            return f"pip could not be put into {VENV}:\n{bootstrap.stderr.strip()}"
    command: list[str | Path] = [PYTHON, "-I", "-m", "pip", "install", "--no-deps", "--require-hashes"]
    command += ["--requirement", lock]
    if not sys.stderr.isatty():
        command.append("--quiet")
    # A user's pip configuration that says `user = true` can't hold in a virtual environment.
    environment = os.environ | {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # What the caller prints on standard output is its own; pip's words go where the messages go.
    if subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode == 0:  # noqa: S603
        return None
    return (
        "The packages could not be installed; pip says above why.\n"
        "If it can't reach the package index, check the network (behind a proxy, set HTTPS_PROXY; for an index of\n"
        "your own, PIP_INDEX_URL). Then run the same command again: it goes on where this one stopped."
    )


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let a second start wait for the first, so that no two install into one folder."""
    if sys.platform == "win32":
        yield  # its locks are mandatory: this file could not be read meanwhile
        return
    import fcntl

    with Path(__file__).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes .venv hold what a lock in requirements/ names.")
    parser.add_argument("--check", action="store_true", help="install nothing; exit with 1 if something is missing")
    parser.add_argument("--tag", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("lock", choices=sorted(COVERS), nargs="?", default="service")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 -- an environment that is there may be of any Python
        return 1
    if arguments.tag:
        sys.stdout.write(interpreter_tag())
        return 0
    if arguments.check:
        return 0 if is_current(arguments.lock, interpreter_tag()) else 1
    try:
        with one_at_a_time():
            install(arguments.lock)
    except SetupFailed as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
