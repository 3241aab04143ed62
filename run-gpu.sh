#!/usr/bin/env bash
# Starts the service on an NVIDIA GPU: ./run-gpu.sh [options of `main.py websocket`]
#
# The first start makes .venv and installs requirements/service.lock into it; later ones just start.
# shellcheck source=scripts/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/scripts/environment.sh"

# Only a hint: the service itself looks for the device when it starts, and says what it found.
command -v nvidia-smi >/dev/null ||
    say "nvidia-smi is not on the PATH: NVIDIA's driver seems to be missing. Without a GPU, use ./run-cpu.sh."

prepare_environment service
default_device cuda
exec .venv/bin/python main.py websocket "$@"
