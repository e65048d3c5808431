#!/bin/sh
# Makes .venv from the hash-locked requirements: once, and again only when the lock or the checkout's path changed.
set -eu
cd "$(dirname "$0")"
wanted=$( { cat locks/requirements.txt pyproject.toml; pwd -P; } | sha256sum | cut -d' ' -f1)
[ "$(cat .venv/.made-from 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null && exit 0

say() { printf '%s\n' "$*" >&2; }
fail() { say "Error: $1"; say "  -> $2"; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

python=
for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ] && command -v apt-get >/dev/null; then
    say "Installing python3 and python3-venv (apt) ..."
    as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -q update && apt-get -q -y install python3 python3-venv' >&2
    python=python3
fi
[ -n "$python" ] || fail "Python 3.10 to 3.13 is needed and was not found" "install one of them, then run make again"

say "Preparing .venv (once, about half a minute) ..."
rm -rf .venv
if command -v uv >/dev/null; then
    uv venv -q --python "$python" .venv
    # As pip does: under PYTHONDONTWRITEBYTECODE each command would compile what it imports again.
    UV_LINK_MODE=copy uv pip install -q --compile-bytecode --python .venv/bin/python --require-hashes -r locks/requirements.txt
    uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
else
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        command -v apt-get >/dev/null || fail "this Python cannot make virtual environments" "install its venv module"
        say "Installing python3-venv (apt) ..."
        as_root env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -q update && apt-get -q -y install python3-venv' >&2
    fi
    "$python" -m venv .venv
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r locks/requirements.txt
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
printf '%s\n' "$wanted" >.venv/.made-from
