"""Words for tests of the engine: submit a request, drain an engine, read its tokens."""

from typing import Any

from neuron_jax.engine.engine import Engine
from neuron_jax.workers.frames import Output, Sampling, Submit


def submit(
    request: int, prompt: list[int], *, max_tokens: int = 12, stop: tuple[int, ...] = (), **sampling: Any
) -> Submit:
    sampling = {"temperature": 0.0} | sampling
    return Submit(request, prompt, Sampling(**sampling), max_tokens, stop_ids=stop)


def drain(engine: Engine) -> dict[int, list[Output]]:
    """Step until idle; the outputs of each request. Checks the books after every step."""
    outputs: dict[int, list[Output]] = {}
    while not engine.idle:
        for output in engine.step():
            outputs.setdefault(output.request, []).append(output)
        engine.check_integrity()
    return outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.tokens]
