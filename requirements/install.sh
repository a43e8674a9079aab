#!/bin/sh
# Puts the packages of the given requirement files into .venv, and the project itself on top.
#
# usage: requirements/install.sh requirements/run.txt [requirements/test.txt ...]
#
# Debian's python3 comes without pip and without ensurepip (they are in python3-venv). Where that is so and apt exists,
# pip is taken from Debian's package python3-pip-whl, unpacked into .cache; nothing is installed on the system.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 || { echo "error: $python was not found; install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $("$python" --version) is too old; Python 3.11 or newer is needed, name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }

if [ ! -x .venv/bin/python ]; then
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv
    elif command -v apt-get >/dev/null 2>&1 && command -v dpkg >/dev/null 2>&1; then
        mkdir -p .cache/pip-wheel
        (cd .cache/pip-wheel && apt-get download -q python3-pip-whl >/dev/null && dpkg -x python3-pip-whl_*.deb .) || {
            echo "error: $python has no ensurepip, and Debian's python3-pip-whl could not be fetched; run 'apt-get update' or install python3-venv" >&2; exit 2; }
        "$python" -m venv --without-pip .venv
        wheel=$(ls .cache/pip-wheel/usr/share/python-wheels/pip-*.whl)
        PYTHONPATH="$wheel" .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-index "$wheel"
    else
        echo "error: $python has no ensurepip, so no virtual environment can be made; install its venv package" >&2; exit 2
    fi
fi

set -- -r requirements/build.txt $(printf -- '-r %s ' "$@")
.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: "$@"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index --editable .
