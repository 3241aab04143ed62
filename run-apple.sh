#!/usr/bin/env bash
# Starts the service on Apple Silicon: ./run-apple.sh [options of `main.py websocket`]
#
# The first start makes .venv and installs requirements/service.lock into it; later ones just start.
# shellcheck source=scripts/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/scripts/environment.sh"

case "$(uname -s) $(uname -m)" in
    'Darwin arm64') ;;
    'Darwin x86_64')
        fail "This is an Intel Mac, or a terminal that runs under Rosetta; Metal needs Apple Silicon and a native" \
            "terminal (Get Info > Open using Rosetta: off). For the CPU, use ./run-cpu.sh."
        ;;
    *) fail "run-apple.sh is for macOS on Apple Silicon; this is $(uname -sm). Use ./run-cpu.sh or ./run-gpu.sh." ;;
esac

prepare_environment service
default_device mps
exec .venv/bin/python main.py websocket "$@"
