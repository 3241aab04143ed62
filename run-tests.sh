#!/usr/bin/env bash
# Runs the tests: ./run-tests.sh [options of pytest]
#
# The first run makes .venv and installs requirements/dev.lock into it. Without options there are three
# runs, counted apart: the tests that need no engine, the pure core's, then those of real engines.
# With options, pytest is run once with them.
#
# The tests marked 'ollama' run where an Ollama is found: on the PATH, or built by
# scripts/build-ollama.sh; those marked 'redis' where a redis-server is: on the PATH, or fetched by
# scripts/fetch-redis.sh.
#
# FASTTALK_TEST_OLLAMA     the Ollama to test with
# FASTTALK_REQUIRE_OLLAMA  1: fail where none is found
# FASTTALK_TEST_REDIS      the redis-server to test with
# FASTTALK_REQUIRE_REDIS   1: fail where none is found
# shellcheck source=scripts/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/scripts/environment.sh"

prepare_environment dev

if [ -z "${FASTTALK_TEST_OLLAMA:-}" ]; then
    FASTTALK_TEST_OLLAMA=$(scripts/build-ollama.sh --find) || FASTTALK_TEST_OLLAMA=''
fi
[ -z "$FASTTALK_TEST_OLLAMA" ] || [ -x "$FASTTALK_TEST_OLLAMA" ] ||
    fail "FASTTALK_TEST_OLLAMA is $FASTTALK_TEST_OLLAMA, which is no program."

engines='embedded or ollama'
missing=''
if [ -n "$FASTTALK_TEST_OLLAMA" ]; then
    export FASTTALK_TEST_OLLAMA
elif [ "${FASTTALK_REQUIRE_OLLAMA:-}" = 1 ]; then
    fail "No Ollama was found, and FASTTALK_REQUIRE_OLLAMA is 1. Build one: scripts/build-ollama.sh"
else
    engines='embedded and not ollama'
    missing='not ollama'
    unset FASTTALK_TEST_OLLAMA
fi

if [ -z "${FASTTALK_TEST_REDIS:-}" ]; then
    FASTTALK_TEST_REDIS=$(scripts/fetch-redis.sh --find) || FASTTALK_TEST_REDIS=''
fi
[ -z "$FASTTALK_TEST_REDIS" ] || [ -x "$FASTTALK_TEST_REDIS" ] ||
    fail "FASTTALK_TEST_REDIS is $FASTTALK_TEST_REDIS, which is no program."

others='not pure and not embedded and not ollama'
if [ -n "$FASTTALK_TEST_REDIS" ]; then
    export FASTTALK_TEST_REDIS
elif [ "${FASTTALK_REQUIRE_REDIS:-}" = 1 ]; then
    fail "No redis-server was found, and FASTTALK_REQUIRE_REDIS is 1. Fetch one: scripts/fetch-redis.sh"
else
    others="$others and not redis"
    missing="${missing:+$missing and }not redis"
    unset FASTTALK_TEST_REDIS
fi

# Without bytecode pytest would work every test file out anew in each of the runs.
unset PYTHONDONTWRITEBYTECODE

tests() { .venv/bin/python -m pytest "$@"; }

status=0
if [ $# -gt 0 ]; then
    # A later -m takes the place of this one.
    if [ -z "$missing" ]; then tests "$@"; else tests -m "$missing" "$@"; fi || status=$?
else
    # This one compiles all tests: after it the pure ones take what they take, in a fresh clone, too.
    tests -m "$others" || status=$?
    tests --pure || status=$?
    tests -m "$engines" || status=$?
fi

if [ -z "${FASTTALK_TEST_OLLAMA:-}" ]; then
    say "" "The tests marked 'ollama' were left out: no Ollama was found." \
        "Install it (https://ollama.com/download) or build one for the tests alone, in about five minutes:" \
        "scripts/build-ollama.sh"
fi
if [ -z "${FASTTALK_TEST_REDIS:-}" ]; then
    say "" "The tests marked 'redis' were left out: no redis-server was found." \
        "Install it, or fetch Debian's for the tests alone, in seconds: scripts/fetch-redis.sh"
fi
exit "$status"
