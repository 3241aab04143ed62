#!/usr/bin/env bash
# Prints the path of a redis-server: the one on the PATH, or Debian's, unpacked and not installed.
#
# For the tests that talk to a real Redis, on machines where none is installed: the installed package
# would start a server of its own. Needs apt-get and dpkg. A second call finds it and does nothing.
#
#   REDIS=$(scripts/fetch-redis.sh)
#   REDIS=$(scripts/fetch-redis.sh --find)   fetches nothing: exits with 1 if there is none
#
# REDIS_DIR  where it is kept (default: ~/.cache/fasttalk/redis)
set -euo pipefail

DIR=${REDIS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/fasttalk/redis}

say() { printf 'fetch-redis: %s\n' "$*" >&2; }
works() { [ -x "$1" ] && "$1" --version >/dev/null 2>&1; }

find_only=
case ${1:-} in
    '') ;;
    --find) find_only=1 ;;
    *)
        say "usage: scripts/fetch-redis.sh [--find]"
        exit 2
        ;;
esac

for found in "$(command -v redis-server || true)" "$DIR/redis-server"; do
    if works "$found"; then
        echo "$found"
        exit 0
    fi
done

[ -z "$find_only" ] || exit 1

for tool in apt-get dpkg; do
    command -v "$tool" >/dev/null || {
        say "needs '$tool', which is not on the PATH. Install Redis itself: https://redis.io/docs/latest/operate/oss_and_stack/install/"
        exit 1
    }
done

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
# The last two are what the others need and a small system lacks. Apt fetches as another user, who may not write here.
chmod 755 "$unpacked"
(cd "$unpacked" && apt-get -qq -o APT::Sandbox::User=root download redis-server redis-tools libjemalloc2 liblzf1)
mkdir -p "$DIR"
for package in "$unpacked"/*.deb; do
    dpkg -x "$package" "$DIR/files"
done
libraries=$(dirname "$(find "$DIR/files" -name 'liblzf.so.1' | head -n 1)")
cat >"$DIR/redis-server" <<EOF
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$DIR/files/usr/bin/redis-server' "\$@"
EOF
chmod 755 "$DIR/redis-server"
works "$DIR/redis-server" || {
    say "what was unpacked to $DIR does not run"
    exit 1
}
echo "$DIR/redis-server"
