#!/usr/bin/env bash
# Starts the service on the CPU: ./run-cpu.sh [options of `main.py websocket`]
#
# The first start makes .venv and installs requirements/service.lock into it; later ones just start.
# shellcheck source=scripts/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/scripts/environment.sh"

prepare_environment service
default_device cpu
exec .venv/bin/python main.py websocket "$@"
