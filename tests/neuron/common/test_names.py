"""A wrong word is told the nearest right one, and costs no more than it is worth."""

import time

from neuron_jax.common.names import nearest


def test_the_nearest_word() -> None:
    """Of what is alike enough, the nearest first."""
    assert nearest("int9", ["auto", "int8", "int4"], 1, 0.5) == ["int8"]
    assert nearest("zebra", ["auto", "int8"], 1, 0.5) == []


def test_a_word_of_megabytes_is_not_compared() -> None:
    """difflib took a second a megabyte and forty times the memory, whatever it was compared with."""
    began = time.process_time()

    assert nearest("demo" * 1_000_000, ["demo", "smollm2-135m-instruct"], 3, 0.3) == []
    assert time.process_time() - began < 0.1
