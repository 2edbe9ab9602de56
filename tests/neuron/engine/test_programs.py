"""The compiled programs: the list is the declaration, the pool is donated, and serving adds none."""

import attrs
import jax

from neuron_jax.engine.buckets import ForwardKey, SampleKey, Sampler, declare
from neuron_jax.engine.runner import Runner


def test_the_list_names_every_program_once_with_the_essential_ones_first() -> None:
    buckets = declare(max_slots=6, chunk_tokens=100)
    keys = buckets.keys()

    assert buckets.rows == (1, 2, 4, 6)
    assert buckets.chunks == (16, 64, 100)
    assert keys[: len(buckets.essential())] == buckets.essential()
    assert len(keys) == len(set(keys)) == 3 + 4 + 4 * len(Sampler)


def test_the_essential_programs_serve_anything() -> None:
    buckets = declare(max_slots=32, chunk_tokens=256)
    essential = buckets.essential()

    assert {ForwardKey(1, 256), ForwardKey(32, 1)} <= set(essential)
    assert {SampleKey(1, Sampler.FULL), SampleKey(32, Sampler.FULL)} <= set(essential)


def test_the_pool_is_donated_and_not_copied(runner: Runner) -> None:
    """alias bytes >= KV bytes, and temporaries that do not grow with the pool (openxla/xla#45912)."""
    larger = attrs.evolve(runner.program, shapes=attrs.evolve(runner.program.shapes, pages=1000))
    for program in (runner.program, larger):
        pool = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract_pool()))
        memory = program.lower(ForwardKey(4, 1)).compile().memory_analysis()

        assert memory.alias_size_in_bytes >= pool
        assert memory.temp_size_in_bytes == runner.compiler.ready[ForwardKey(4, 1)].memory_analysis().temp_size_in_bytes
