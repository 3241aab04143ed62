# shellcheck shell=bash
# Sourced by the start scripts. Goes to the repository's root and offers:
#
#   prepare_environment LOCK   makes .venv hold requirements/LOCK.lock, or ends the script
#   default_device DEVICE      sets COMPUTE_DEVICE, unless the environment or .env does
#
# Written for bash 3.2, which is what macOS brings.
set -euo pipefail
CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

# A name on the PATH proves nothing: a version manager's shim may stand for no Python at all.
runs() { "$1" -I -c "$2" >/dev/null 2>&1; }

# Prints the first Python that can make an environment.
find_python() {
    local name incomplete=''
    for name in python3.13 python3.12 python3.11 python3 python; do
        runs "$name" 'import sys; sys.exit(sys.version_info < (3, 11))' || continue
        if runs "$name" 'import ensurepip, venv'; then
            echo "$name"
            return
        fi
        incomplete=${incomplete:-$name}
    done
    if [ -n "$incomplete" ]; then
        fail "$incomplete has no 'venv' module. Debian and Ubuntu keep it in a package of its own:" \
            "run 'apt-get install python3-venv' as root and try again."
    fi
    fail "Python 3.11 or newer is needed, and none of python3.13, python3.12, python3.11, python3 and python is one." \
        "Install it from https://www.python.org/downloads/ or with the system's package manager and try again."
}

prepare_environment() {
    local python
    # The quick way, and the only one from the second start on: no search, no network.
    if [ -x .venv/bin/python ] && .venv/bin/python -I -S scripts/environment.py --check "$1" 2>/dev/null; then
        return
    fi
    python=$(find_python)
    "$python" -I scripts/environment.py "$1"
}

# The variable's value in .env, without quotes; empty where it says nothing.
value_in_dotenv() {
    [ -f .env ] || return 0
    sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=[[:space:]]*[\"']?([^\"'#[:space:]]*).*/\2/p" .env | tail -n 1
}

default_device() {
    local chosen=${COMPUTE_DEVICE:-} source='the environment'
    if [ -z "$chosen" ]; then
        chosen=$(value_in_dotenv COMPUTE_DEVICE)
        source=.env
        # No choice (and what a copy of .env.example says): the script that was started has one.
        [ "$chosen" != auto ] || chosen=''
    fi
    if [ -z "$chosen" ]; then
        export COMPUTE_DEVICE=$1
    elif [ "$chosen" != "$1" ]; then
        say "COMPUTE_DEVICE=$chosen from $source counts, not the $1 of this script."
    fi
}
