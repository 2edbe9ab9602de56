"""`engine.threads` counted where it takes effect: the threads that a process has, in XLA's pool and in the kernels' team."""

import subprocess
import sys

import pytest

from models.native import library

PROGRAM = """
import os, sys

from neuron_jax.workers.frames import EngineSpec
from neuron_jax.workers.start import configure

configure(EngineSpec("tiny", "", threads=int(sys.argv[1])))

import jax.numpy as jnp
import numpy as np

from models.storage import FLOAT32
from models.native import library, ops
from models.native.tiles import Tiles

def count():
    return len(os.listdir("/proc/self/task"))

x = jnp.ones((16, 64))
(x @ x.T).block_until_ready()
pool, tiles = count(), Tiles.plan(4096, 64, FLOAT32)
matrix = jnp.asarray(tiles.pack(np.ones((4096, 64), np.float32)))
assert library.unavailable() is None
jnp.zeros(1).block_until_ready()
before = count()
ops.linear(x, tiles, matrix).block_until_ready()
print(pool, count() - before)
"""


def counted(threads: int) -> tuple[int, int]:
    """Threads of a process whose XLA has computed, and those that the first kernel added."""
    command = [sys.executable, "-c", PROGRAM, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pool, team = map(int, done.stdout.split())
    return pool, team


@pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")
def test_there_are_as_many_threads_as_were_asked_for() -> None:
    """The caller is one of a kernel's; XLA's pool grows by as many as more are asked for, or by a multiple of it."""
    (few, alone), (many, team) = counted(1), counted(5)

    assert (alone, team) == (0, 4)
    assert many - few >= 4
