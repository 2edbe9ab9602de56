#!/bin/sh
# An engine's programs compiled for NVIDIA cards that are not here, and held to what they were: with JAX's CUDA wheels (6 GB)
# in an environment of its own, without a driver or a device. Where the wheels cannot be had it says that it was skipped.
set -eu
venv=.venv-cuda
if [ ! -e "$venv/.ready" ] || [ requirements-cuda12.lock -nt "$venv/.ready" ]; then
    # No kernels for this machine's processor: nothing is computed here.
    LOCK=requirements-cuda12.lock CORTEX_NATIVE=0 sh tools/setup.sh "$venv" || {
        echo "gpu-check: SKIPPED, nothing was checked: JAX's CUDA wheels could not be installed (above is why)."
        exit 0
    }
fi
export JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1
exec "$venv/bin/python" -m pytest --numprocesses 2 --dist load tests/deviceless "$@"
