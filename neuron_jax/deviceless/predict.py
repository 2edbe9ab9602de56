"""How long a step would take on a card, from what its kernels move and multiply; arithmetic, no JAX and no device.

A prediction, and labelled so: nothing of it was measured. `ASSUMED` says in words what it takes for granted.
"""

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from neuron_jax.deviceless.census import COLLECTIVES, WAITS, Census, Launch, level
from neuron_jax.hardware.cards import Card

BANDWIDTH, PRODUCTS = 0.85, 0.7
"""Of the data sheet's rates: what large copies and large products reach."""

LAUNCH, WAIT = 2e-6, 15e-6
"""Seconds that a kernel takes besides its work, and that the host takes to hear from the device and launch what follows."""

EXCHANGE = {True: 8e-6, False: 30e-6}
"""Seconds of a collective besides its bytes, over NVLink or over the PCIe bus."""

ASSUMED = (
    f"the card's bandwidth is used to {BANDWIDTH:.0%}, its tensor cores to {PRODUCTS:.0%}",
    f"a kernel costs {LAUNCH * 1e6:.0f} µs besides its work, a choice that the host must read {WAIT * 1e6:.0f} µs",
    f"a sum over cards costs {EXCHANGE[True] * 1e6:.0f} µs by NVLink, {EXCHANGE[False] * 1e6:.0f} µs by PCIe, and its bytes",
    "keys and values are read once, each text has as many as said, and the host is never late",
    "XLA's default kernels are used: on the card it would time several and take the best",
)


class Reads(Protocol):
    """What a text costs on one card besides kernels' own bytes."""

    def text_bytes(self, context: int) -> int:
        """Keys, values and states that a step reads of a text of so many tokens."""
        ...

    def pair_flops(self) -> int:
        """Operations for each pair of tokens that attend, over all layers."""
        ...


@frozen
class Prediction:
    """Seconds of a step, and of these what goes to memory and products, to launching, to waiting and to other cards."""

    work: float
    launching: float
    waiting: float
    exchanging: float

    @property
    def seconds(self) -> float:
        return self.work + self.launching + self.waiting + self.exchanging


def whole(found: Census, like: Sequence[int]) -> list[Launch]:
    """The kernels of the whole model, of which `found` has the first layers; `like` as in `programs.Depth`."""
    parts = found.parts()
    layers = [kernel for number in like for kernel in parts.layers[number]]
    return [*parts.before, *layers, *parts.behind]


def decode(kernels: Sequence[Launch], card: Card, reads: Reads, streams: int, context: int) -> Prediction:
    """A step in which each of `streams` texts of `context` tokens gets one more."""
    return _step(kernels, card, streams * reads.text_bytes(context) / (card.bandwidth * BANDWIDTH))


def prefill(kernels: Sequence[Launch], card: Card, reads: Reads, tokens: int) -> Prediction:
    """A step that reads the first `tokens` of a text."""
    flops = reads.pair_flops() * tokens * (tokens + 1) / 2
    return _step(kernels, card, flops / (card.rates["bfloat16"] * PRODUCTS))


def _step(kernels: Sequence[Launch], card: Card, attention: float) -> Prediction:
    own = [kernel for kernel in kernels if kernel.what not in (*WAITS, *COLLECTIVES)]
    sent = [kernel for kernel in kernels if kernel.what in COLLECTIVES]
    return Prediction(
        work=attention + sum(kernel.times * _work(kernel, card) for kernel in own),
        launching=LAUNCH * sum(kernel.times for kernel in own),
        waiting=WAIT * sum(kernel.times for kernel in kernels if kernel.what in WAITS),
        exchanging=sum(one.times * (EXCHANGE[card.link > 0] + one.exchanged / card.exchange) for one in sent),
    )


def _work(kernel: Launch, card: Card) -> float:
    """Memory or products, whichever takes longer."""
    rate = card.rates.get(level(kernel.dtype), card.rates["bfloat16"])
    return max(kernel.moved / (card.bandwidth * BANDWIDTH), kernel.flops / (rate * PRODUCTS))
