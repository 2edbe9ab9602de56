#!/bin/sh
# Make the virtual environment $1 from the lock: with uv where it is installed, else with venv and pip. Every package is
# checked against its hash. With an NVIDIA driver on the machine JAX comes with CUDA, unless LOCK names another lock. The
# Makefile calls it only on change.
set -eu
venv=$1

# The one that was named, else python3, else the newest; every one of those at least 3.11.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || {
            echo "cortex needs Python 3.11 or newer, and PYTHON=$PYTHON is none or does not run." >&2
            exit 1
        }
        command -v "$PYTHON"
        return
    fi
    found=$(sh "$(dirname "$0")/pythons.sh") || {
        echo "cortex needs Python 3.11 or newer, with venv; none was found (python3 is $(python3 --version 2>&1))." >&2
        echo "Install one (on Debian and Ubuntu with python3-venv), or name it: make PYTHON=/path/to/python3.12 demo" >&2
        exit 1
    }
    usual=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
    echo "$found" | awk -v usual="$usual" '{ path = substr($0, length($1) + 2); if ($1 == usual) exit } END { print path }'
}

lock=${LOCK:-requirements.lock}
if [ -z "${LOCK:-}" ] && command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    lock=requirements-cuda12.lock
fi
python=$(choose_python)
echo "setting up $venv with $("$python" --version) from $lock ..."
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --allow-existing --python "$python" "$venv"
    uv pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
else
    "$python" -m venv "$venv" || {
        echo "$python makes no environment; on Debian and Ubuntu, apt install python3-venv" >&2
        exit 1
    }
    pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
    $pip install --progress-bar on --require-hashes --requirement "$lock"
    $pip install --no-deps --no-build-isolation --editable .
fi
# The CPU kernels are built by the machine's own compiler, for its own processor; without one everything still works.
if [ "${CORTEX_NATIVE:-}" != 0 ] && ! "$venv/bin/python" -m models.native.library; then
    echo "the CPU kernels are left out; everything works without them" >&2
fi
touch "$venv/.ready"
