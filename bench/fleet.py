"""How long one event holds the gateway's loop while many requests wait: the decisions about models and nodes alone.

Method. No process and no network: `Residency`, the owner of all decisions, is handed events as the fleet hands them in, and
the processor time of each call is taken, the question for the next wake included. 8 nodes of 4 devices have 20 models each,
4 loaded and in use, which fill them, and 16 that could be; 256 requests wait, for one of those or for all in turn. Then the
fleet is told, node by node, that one who waits has left, that the last request on a loaded model has ended, which lets a
waiting one begin, and what the next look shows; at the end, that all have waited so long that models in use may be drained.
Each case is built anew --rounds times; the median and the worst of all calls are printed, in milliseconds. No test runs this;
`tests/gateway/fleet/test_lines.py` counts the decisions.

    python bench/fleet.py [--rounds 5] [--json]
"""

import argparse
import json
import statistics
import time
from collections import defaultdict

from cortex_gateway.config import Config, Neuron
from cortex_gateway.fleet import messages as m
from cortex_gateway.fleet.history import PATIENCE_SECS
from cortex_gateway.fleet.residency import Residency
from cortex_gateway.placement.snapshot import Device, ModelConfig, ModelLoad, Replica
from tests.fakes.contexts import asked

NODES, MODELS, LOADED, WAITING = 8, 20, 4, 256
TOTAL_MB, PART_MB = 24_000, 22_000
Times = defaultdict[str, list[float]]


def main() -> None:
    """Measure both cases and print them."""
    parser = argparse.ArgumentParser(description="How long one event holds the gateway's loop.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    figures = {f"waiting for {wanted}": _case(wanted, told.rounds) for wanted in (1, MODELS - LOADED)}
    print(json.dumps(figures) if told.json else _table(figures))


def _case(wanted: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median and worst of each event, milliseconds."""
    taken: Times = defaultdict(list)
    for _ in range(rounds):
        _round(_waiting(wanted, taken), wanted, taken)
    return {name: (statistics.median(times), max(times)) for name, times in taken.items()}


def _waiting(wanted: int, taken: Times) -> Residency:
    """All nodes full and in use, and everybody in line."""
    models = tuple(ModelConfig(id=f"could-{index}", vram_mb=PART_MB) for index in range(MODELS - LOADED))
    neurons = tuple(Neuron(name=f"node-{index}", endpoint=f"http://node-{index}:13131") for index in range(NODES))
    residency = Residency(Config(models=models, neurons=neurons))
    for node in residency.hosts:
        _look(residency, node, taken)
        for index in range(LOADED):
            _tell(
                residency,
                m.Wanted(ticket=-1, model=_loaded(node, index), context=asked("first")),
                taken,
                "a warm request",
            )
    for number in range(WAITING):
        event = m.Wanted(ticket=number, model=f"could-{number % wanted}", context=asked(str(number)))
        _tell(residency, event, taken, "one more waits")
    assert len(residency.waiting.tickets) == WAITING, "nobody has room"
    return residency


def _round(residency: Residency, wanted: int, taken: Times) -> None:
    for number, node in enumerate(residency.hosts):
        _tell(residency, m.Left(ticket=number), taken, "one leaves")
        _tell(residency, m.Returned(node=node, model=_loaded(node, 0)), taken, "a model falls idle")
        _look(residency, node, taken)
        assert residency.hosts[node].operation or wanted == 1, "somebody's turn has come"
    _tell(residency, m.Ticked(), taken, "patience ends", now=PATIENCE_SECS + 1)


def _tell(residency: Residency, event: m.Event, taken: Times, name: str, now: float = 0.0) -> None:
    begun = time.thread_time()
    residency.handle(event, now)
    residency.next_wake()
    taken[name].append((time.thread_time() - begun) * 1000)


def _look(residency: Residency, node: str, taken: Times) -> None:
    devices = tuple(
        Device(index=index, vram_total_mb=TOTAL_MB, vram_free_mb=TOTAL_MB - PART_MB, vram_used_mb=PART_MB)
        for index in range(LOADED)
    )
    held = [_held(node, index) for index in range(LOADED)]
    could = [Replica(model=f"could-{index}", status="unloaded") for index in range(MODELS - LOADED)]
    seen = m.Observation(harnesses=("jax",), devices=devices, replicas=(*held, *could))
    residency.handle(m.Looking(node=node), 0.0)
    _tell(residency, m.Seen(node=node, observation=seen), taken, "a node was looked at")


def _held(node: str, index: int) -> Replica:
    load = ModelLoad(max_in_flight=8)
    return Replica(model=_loaded(node, index), status="loaded", devices=(index,), vram_used_mb=PART_MB, load=load)


def _loaded(node: str, index: int) -> str:
    return f"{node}-{index}"


def _table(figures: dict[str, dict[str, tuple[float, float]]]) -> str:
    lines = []
    for case, events in figures.items():
        lines.append(f"{case:30}{'median ms':>10}{'worst ms':>10}")
        lines += [f"  {name:28}{median:10.3f}{worst:10.3f}" for name, (median, worst) in events.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
