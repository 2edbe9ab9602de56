"""What the kernels keep to work in: bounded by shapes, told, and planned."""

import subprocess
import sys
import textwrap

import pytest

from models.native import library

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

PROGRAM = textwrap.dedent("""
    import jax.numpy as jnp
    from models.native import library
    from models.native.scratch import scratch_bytes
    from neuron_jax.engine.attention.native import NativeAttend
    from models.spec import PagedLayer
    from neuron_jax.engine.attention.ragged import ragged, table

    assert library.unavailable() is None
    K, G, H, PAGE, LENGTH = 8, 8, 64, 16, 16384
    LAYER = PagedLayer(K, G, H, H)
    for rows, chunk in ((40, 1), (3, 128), (1, 1)):
        # All rows read the same pages: what they hold is not the point.
        pages = jnp.tile(jnp.arange(1, LENGTH // PAGE + 1, dtype=jnp.int32), (rows, 1))
        each = jnp.full(rows, chunk, jnp.int32)
        step = ragged({None: table(pages)}, jnp.arange(rows, dtype=jnp.int32), LENGTH - each, each, rows * chunk)
        q, k = jnp.ones((rows * chunk, K, G, H)), jnp.ones((rows * chunk, K, H))
        pool = jnp.zeros((LENGTH // PAGE + 1, K, H, PAGE)), jnp.zeros((LENGTH // PAGE + 1, K, PAGE, H))
        NativeAttend(LAYER, step)(q, k, k, pool)[0].block_until_ready()
    print(library.scratch_kept())
    print(scratch_bytes(LAYER, (384, 40), 0, 0, library.threads()))
""")


@pytest.mark.slow
def test_long_texts_of_many_rows_take_no_more_than_is_planned() -> None:
    """In a process of its own, since scratch is kept. With all 64 segments' parts at once 40 rows would keep 53 MB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kept, bound = map(int, done.stdout.split())

    assert 0 < kept <= bound < 24 << 20


WITHOUT_MEMORY = PROGRAM.replace(
    "    NativeAttend(LAYER, step)",
    textwrap.indent(
        textwrap.dedent("""
            if rows == 40:  # this much of address space is left: the arrays are there, the scratch is not
                import pathlib, resource
                size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), -1))
        """),
        "    ",
    )
    + "    NativeAttend(LAYER, step)",
).replace("((40, 1), (3, 128), (1, 1))", "((1, 1), (40, 1))")


def test_scratch_that_cannot_be_had_is_an_error_and_not_a_crash() -> None:
    """As when XLA has no memory: the daemon knows the words, and what helps."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=False)

    assert done.returncode == 1, done
    assert "RESOURCE_EXHAUSTED" in done.stderr
