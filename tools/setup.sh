#!/bin/sh
# Make the virtual environment $1 from the lock: with uv where it is installed, else with venv and pip. Every package is
# checked against its hash. With an NVIDIA driver on the machine JAX comes with CUDA. The Makefile calls it only on change.
set -eu
venv=$1

newest_python() {
    for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    echo "cortex needs Python 3.11 or newer; none was found (python3 is $(python3 --version 2>&1))." >&2
    echo "Install one, or name it: make PYTHON=/path/to/python3.12 demo" >&2
    exit 1
}

lock=requirements.lock
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    lock=requirements-cuda12.lock
fi
python=$(newest_python)
echo "setting up $venv with $("$python" --version) from $lock ..."
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --allow-existing --python "$python" "$venv"
    uv pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"
    uv pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
else
    "$python" -m venv "$venv" || {
        echo "python3-venv is missing: on Debian and Ubuntu, apt install python3-venv" >&2
        exit 1
    }
    pip="$venv/bin/python -m pip --disable-pip-version-check --quiet"
    $pip install --progress-bar on --require-hashes --requirement "$lock"
    $pip install --no-deps --no-build-isolation --editable .
fi
# The CPU kernels are built by the machine's own compiler, for its own processor; without one everything still works.
"$venv/bin/python" -m models.native.library || true
touch "$venv/.ready"
