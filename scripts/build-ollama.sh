#!/usr/bin/env bash
# Builds a CPU-only Ollama from its Go module and prints the path of the binary.
#
# For the tests that talk to a real Ollama, on machines where none is installed. Needs Go, a C++
# compiler, python3 with pip, and apt-get (for two header-only packages; nothing is installed into
# the system). A second call finds the binary and does nothing.
#
#   OLLAMA=$(scripts/build-ollama.sh)
#   OLLAMA=$(scripts/build-ollama.sh --find)   builds nothing: exits with 1 if there is none
#
# OLLAMA_BUILD_DIR  where the binary is kept (default: ~/.cache/fasttalk/ollama-<version>)
set -euo pipefail

VERSION=0.24.0
MINIAUDIO_VERSION=1.71
BUILD_DIR=${OLLAMA_BUILD_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/fasttalk/ollama-$VERSION}

say() { printf 'build-ollama: %s\n' "$*" >&2; }
works() { [ -x "$1" ] && "$1" --version >/dev/null 2>&1; }

find_only=
case ${1:-} in
    '') ;;
    --find) find_only=1 ;;
    *)
        say "usage: scripts/build-ollama.sh [--find]"
        exit 2
        ;;
esac

if found=$(command -v ollama) && works "$found"; then
    [ -n "$find_only" ] || say "using $found"
    echo "$found"
    exit 0
fi
if works "$BUILD_DIR/ollama"; then
    echo "$BUILD_DIR/ollama"
    exit 0
fi

[ -z "$find_only" ] || exit 1

for tool in go g++ python3 apt-get dpkg; do
    command -v "$tool" >/dev/null || {
        say "needs '$tool', which is not on the PATH. Install it, or install Ollama itself: https://ollama.com/download"
        exit 1
    }
done

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
include=$work/include
mkdir -p "$include" "$BUILD_DIR"

# Go leaves folders called vendor out of module archives, and three header-only libraries with
# them. The packages are unpacked beside the build, so that no root is needed.
say "fetching headers"
(
    cd "$work"
    apt-get -qq download libstb-dev nlohmann-json3-dev 2>/dev/null || {
        say "apt-get download failed: the package lists may be missing; run 'apt-get update' and try again"
        exit 1
    }
    for package in ./*.deb; do dpkg -x "$package" unpacked; done
    cp -r unpacked/usr/include/. "$include/"
    python3 - "$MINIAUDIO_VERSION" "$include" <<'PY'
import pathlib, subprocess, sys, tarfile, tempfile

version, include = sys.argv[1], pathlib.Path(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
         "--dest", folder, f"miniaudio=={version}"],
        check=True, stdout=sys.stderr,
    )
    (archive,) = pathlib.Path(folder).glob("miniaudio-*.tar.gz")
    with tarfile.open(archive) as tar:
        member = next(m for m in tar if m.name.endswith("/miniaudio/miniaudio.h"))
        source = tar.extractfile(member)
        assert source is not None
        target = include / "miniaudio" / "miniaudio.h"
        target.parent.mkdir(parents=True)
        target.write_bytes(source.read())
PY
)

flags=-O3
case $(uname -m) in
    x86_64) grep -qw avx2 /proc/cpuinfo && flags="-O3 -mavx2 -mfma -mf16c" ;;
esac

say "building Ollama $VERSION (about five minutes on two cores; Go's cache makes the next build short)"
GOBIN=$work/bin CGO_ENABLED=1 CGO_CPPFLAGS="-I$include" CGO_CFLAGS=$flags CGO_CXXFLAGS=$flags \
    go install "github.com/ollama/ollama@v$VERSION" >&2
install -m 0755 "$work/bin/ollama" "$BUILD_DIR/ollama"
works "$BUILD_DIR/ollama" || { say "the build succeeded but the binary does not run"; exit 1; }
say "built $BUILD_DIR/ollama"
echo "$BUILD_DIR/ollama"
