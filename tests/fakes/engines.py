"""Words for tests of the engine: submit a request, drain an engine, read its tokens; and traffic of all kinds."""

import random
from typing import Any

from attrs import define
from msgspec.structs import replace

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


def words(count: int, seed: int) -> list[int]:
    """Tokens of a tiny model's text."""
    rng = random.Random(seed)
    return [rng.randrange(300) for _ in range(count)]


def ask(engine: Engine, prompt: list[int], **options: Any) -> tuple[list[int], int]:
    """The answer, and what was cached of the prompt."""
    engine.submit(submit(1, prompt, **options))
    outputs = drain(engine)[1]
    return tokens(outputs), outputs[0].cached_tokens


@define
class Client:
    """One request of the mixed traffic: it comes before step `begin`, and leaves before step `leave` if it is still there."""

    submit: Submit
    begin: int
    leave: int | None


def mixed(seed: int, count: int = 24) -> list[Client]:
    """Traffic with something of everything: lengths, samplers, penalties, biases, stops, bans, log-probabilities, leaving."""
    rng = random.Random(seed)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "logprobs": 3},
        {"temperature": 0.0, "logprobs": 0},
        {"temperature": 0.9, "presence_penalty": 0.6, "frequency_penalty": 0.3},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 1.0, "logit_bias": {7: 4.0, 8: -100.0}, "min_p": 0.02},
    ]
    clients = []
    for i in range(count):
        prompt = [rng.randrange(300) for _ in range(rng.choice([1, 2, 15, 16, 17, 40, 80]))]
        stop = tuple(rng.randrange(300) for _ in range(rng.choice([0, 0, 1, 9])))
        sampling = {"seed": rng.randrange(2**63)} | rng.choice(kinds)
        begin = rng.randrange(40)
        clients.append(
            Client(
                replace(
                    submit(i, prompt, max_tokens=rng.choice([1, 9, 50, 60]), stop=stop, **sampling),
                    min_tokens=rng.choice([0, 0, 4, 9]),
                ),
                begin,
                begin + rng.randrange(30) if rng.random() < 0.2 else None,
            )
        )
    return clients


def serve(engine: Engine, clients: list[Client]) -> dict[int, list[Output]]:
    """What each of them got. The books are checked after every step."""
    got: dict[int, list[Output]] = {client.submit.request: [] for client in clients}
    gone: set[int] = set()
    step = 0
    while not engine.idle or step < 100:
        for client in clients:
            if client.begin == step:
                engine.submit(client.submit)
            if client.leave == step:
                engine.cancel(client.submit.request)
                gone.add(client.submit.request)
        for output in engine.step():
            assert output.request not in gone
            assert output.tokens
            got[output.request].append(output)
        engine.check_integrity()
        step += 1
    return got


def said(outputs: list[Output]) -> list[int | str | None]:
    """The tokens, and how it ended."""
    return [*tokens(outputs), outputs[-1].finish] if outputs else []


def logprobs(outputs: list[Output]) -> list[list[float]]:
    """Of each token: its log-probability and those of the alternatives."""
    rows = []
    for output in outputs:
        for logprob, others in zip(output.logprobs or [], output.alternatives or [], strict=True):
            rows.append([logprob, *(other.logprob for other in others)])
    return rows
