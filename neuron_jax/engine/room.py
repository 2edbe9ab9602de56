"""For how many tokens of prompts a step has room: arithmetic on sizes and seconds; knows no requests, pages or clock."""

from attrs import frozen

from neuron_jax.engine.buckets import Menu
from neuron_jax.engine.pace import Pace

GAP = 2.6
"""What a step with prompts may take, in steps without: a stream's slowest gap is then under three times its median gap, with
a little room for error."""

SHARE = 5
"""Tokens of prompts to each of a stream in a step, so that a prompt takes hardly longer than alone: for that, streams that
come in bursts wait `GAP` bursts, if need be."""

LEAST = 8
"""Tokens of prompts that each step beside running streams brings on, however slow that is."""


@frozen
class Streams:
    """`count` tokens of streams in a step, at position `at` on average; `coming` streams run once all prompts are through."""

    count: int
    at: float
    coming: int


@frozen
class Prompts:
    """`wanted` tokens of prompts, `first` of them of the first, from position `at` on."""

    wanted: int
    first: int
    at: int


def room(streams: Streams, prompts: Prompts, menu: Menu, pace: Pace) -> int:
    """For how many of the tokens of `prompts` there is room in a step with `streams`; 0 or less where that must come first."""
    sizes, running = menu.tokens, streams.count
    # Streams compare a pause with the gaps that they will have when all those run that come behind this prompt.
    coming = menu.fit(min(max(streams.coming, 1), sizes[-1])).tokens
    if running and pace.measured and not pace.bounds(coming):
        return 0  # a step of streams alone tells what they are used to

    def stand(size: int) -> float:
        return (running * streams.at + (size - running) * prompts.at) / size

    plain = pace.seconds(coming, at=streams.at if running else prompts.at)
    size = pace.most(GAP * plain, sizes, stand)
    if running:
        shared = [size for size in sizes if size <= (1 + SHARE) * running]
        least = next((size for size in sizes if size >= running + LEAST), sizes[-1])
        size = max(size, pace.most(GAP * pace.gap, shared, stand), least)
    else:  # nobody is kept waiting
        size = max(size, pace.cut(prompts.first, sizes, at=prompts.at))
    return (
        pace.cut(running + prompts.wanted, [allowed for allowed in sizes if allowed <= size], at=prompts.at) - running
    )
