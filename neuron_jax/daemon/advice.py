"""What a model's authors advise for sampling, held to a request's own rules; knows generation_config.json, no requests."""

from collections.abc import Mapping
from typing import Any

from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.params_schema import read_sampling
from neuron_jax.daemon.problems import Problem

ADVISED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Keys of a generation_config that are used where the request says nothing."""


def read_advice(config: Mapping[str, Any]) -> tuple[dict[str, float | int], list[str]]:
    """The advice that can be followed, and in words what of it cannot: a value that a request would be refused for."""
    advice: dict[str, float | int] = {}
    refused = []
    for key in ADVISED:
        try:
            advice |= read_sampling(Fields({key: config.get(key)}))
        except Problem as problem:
            refused.append(problem.message)
    return advice, refused
