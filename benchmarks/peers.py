"""LiteLLM's proxy as a peer: in a virtual environment of its own, since it pins half of what we use elsewhere."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, Started, free_port, listens

LITELLM = "1.106.2"
# It does not start without a good key. One for each run: who else is on this machine can't use the proxy.
KEY = f"sk-{secrets.token_hex(32)}"
_FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fasttalk" / "bench-litellm"
_LOCK = ROOT / "requirements" / "bench-litellm.lock"
_SECONDS = 600


def setup() -> None:
    """Install the peer, as locked.

    Raises:
        subprocess.CalledProcessError: it cannot be installed.
    """
    uv = shutil.which("uv")
    wanted = ["--require-hashes", "-r", str(_LOCK)]
    python = _FOLDER / "bin" / "python"
    if uv is not None:
        commands = [
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(_FOLDER)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *wanted],
        ]
    else:
        commands = [
            [sys.executable, "-m", "venv", str(_FOLDER)],
            [str(python), "-m", "pip", "install", "--quiet", *wanted],
        ]
    for command in commands:
        subprocess.run(command, check=True, timeout=_SECONDS)


def missing_litellm() -> str:
    """Return why LiteLLM can't be measured, or an empty text."""
    if (_FOLDER / "bin" / "litellm").exists():
        return ""
    return "not installed: python -m benchmarks setup-peers"


def start_litellm(engine_port: int, folder: Path) -> Started:
    """One worker, no database, no telemetry, no price list from the network."""
    port = free_port()
    model = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "bench"}
    config = {
        "model_list": [{"model_name": "bench", "litellm_params": model}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    folder.mkdir(parents=True, exist_ok=True)
    # JSON is YAML.
    (folder / "litellm.yaml").write_text(json.dumps(config))
    command = [str(_FOLDER / "bin" / "litellm"), "--config", str(folder / "litellm.yaml")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    variables = {
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "PYTHONPATH": "",
    }
    return Started(command, port, lambda: listens(port), variables)
