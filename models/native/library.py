"""Registers the kernels with JAX, as `build.py` found or made them; must not know what they compute."""

import ctypes
import logging
import os
import sys
from functools import cache

import jax

from models.native.build import DISABLE, BuildError, cache_folder, here

log = logging.getLogger("neuron.native")

_NAMES = ("linear", "rows", "norm", "centre", "attention", "sample", "route", "gathered", "summed")
_RECURRENT = ("short_convolution", "gated_delta", "mamba")
TARGETS = tuple(f"cortex_{name}" for name in (*_NAMES, *_RECURRENT))
THREADS = "CORTEX_THREADS"
"""Environment variable; how many threads share a kernel's work, as many as there are processors without it."""


@cache
def unavailable() -> str | None:
    """None when the kernels are registered and ready for `ops`; else why they are not. Builds them on the first call."""
    if os.environ.get(DISABLE) == "0":
        return f"{DISABLE}=0"
    try:
        library = ctypes.CDLL(str(here(cache_folder())))
        for name in TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except (BuildError, OSError, jax.errors.JaxRuntimeError) as error:  # the last: an interface that XLA has no more
        log.warning("no native kernels, XLA computes everything: %s", error)
        return str(error)
    return None


def threads() -> int:
    """How many share a kernel's work, the caller among them."""
    told = os.environ.get(THREADS, "")
    return int(told) if told.isdigit() and int(told) > 0 else len(os.sched_getaffinity(0))


def scratch_kept() -> int:
    """Bytes that the kernels of this process keep now to work in. Only where they are not `unavailable`."""
    count = ctypes.CDLL(str(here(cache_folder()))).cortex_scratch_kept
    count.restype = ctypes.c_int64
    return int(count())


def main() -> int:
    """Build the kernels ahead of their first use, and say so. Returns a process's exit status."""
    sys.stdout.write("building the CPU kernels ...\n")
    sys.stdout.flush()
    why = unavailable()
    if why is not None:
        sys.stdout.write(f"no CPU kernels, so models run several times slower on a CPU: {why}\n")
    return 0 if why is None else 1


if __name__ == "__main__":
    sys.exit(main())
