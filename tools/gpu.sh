#!/bin/sh
# All that a card is asked, in one command on a bare machine: `make gpu`, ARGS for `python -m bench.gpu`. It takes the first of
# these Pythons: .venv-cuda, where it is ready; python3, where its JAX sees the card, with what wheels/ has beside it; a new
# .venv-cuda from requirements-cuda12.lock. `sh tools/gpu.sh wheels` fetches into wheels/ what such a python3 has been seen to lack.
set -eu
carried="cattrs llguidance msgspec"

if [ "${1:-}" = wheels ]; then
    set -- --no-deps --only-binary=:all: --python-version "${2:-3.12}" --implementation cp --dest wheels
    for glibc in 17 24 27 28 31 34 35; do # pip takes wheels for these exactly
        set -- "$@" --platform "manylinux_2_${glibc}_x86_64"
    done
    set -- "$@" --platform manylinux2014_x86_64
    for name in $carried; do
        python3 -m pip download --quiet "$@" "$(sed -n "s/^\($name==[^ ]*\).*/\1/p" requirements-cuda12.lock)"
    done
    exit
fi

case " $* " in
*" --shape tiny "*)
    python=.venv/bin/python
    [ -x "$python" ] || { echo "gpu: make .venv first (make check)" && exit 1; }
    ;;
*)
    if ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
        echo "gpu: SKIPPED, no NVIDIA card is here and nothing was measured (make gpu ARGS='--shape tiny' tries the script on a CPU)."
        exit 0
    fi
    sees='import jax; jax.devices("cuda")'
    if [ -e .venv-cuda/.ready ]; then
        python=.venv-cuda/bin/python
    elif python3 -c "$sees" >/dev/null 2>&1; then
        python=python3
        if ls wheels/*.whl >/dev/null 2>&1; then
            python3 -m pip install --quiet --no-index --no-deps --upgrade --target build/site wheels/*.whl
            PYTHONPATH=$PWD/build/site${PYTHONPATH:+:$PYTHONPATH}
        fi
    else
        LOCK=requirements-cuda12.lock CORTEX_NATIVE=0 sh tools/setup.sh .venv-cuda
        touch .venv-cuda/.ready
        python=.venv-cuda/bin/python
    fi
    ;;
esac
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m bench.gpu "$@"
