"""What `neuron bench` does, as data: the list of cases and the prompts of each; pure, must not know engines or clocks."""

import random
from collections.abc import Sequence

from attrs import frozen

LONG_PROMPT = 4000
LONG_STREAMS = 4
"""Streams that run while a prompt of that many tokens enters."""


@frozen
class Decode:
    """`streams` requests of `prompt` tokens, sent at once, that generate `generate` tokens each."""

    streams: int
    prompt: int
    generate: int

    def __str__(self) -> str:
        return f"{self.streams} stream{'s' * (self.streams > 1)}"

    @property
    def context(self) -> int:
        return self.prompt + self.generate


@frozen
class Prefill:
    """One prompt of `prompt` tokens, up to its first token."""

    prompt: int

    def __str__(self) -> str:
        return f"prefill {self.prompt:,}"

    @property
    def streams(self) -> int:
        return 1

    @property
    def context(self) -> int:
        return self.prompt + 1


@frozen
class LongPrompt:
    """`streams` requests that generate while a prompt of `long` tokens enters."""

    streams: int
    prompt: int
    long: int

    def __str__(self) -> str:
        return f"{self.streams} streams + {self.long:,}"

    @property
    def context(self) -> int:
        return self.long + 1


Case = Decode | Prefill | LongPrompt


@frozen
class Options:
    """What was asked for; the flags of `neuron bench`. `long_prompt` 0 leaves that case out."""

    streams: tuple[int, ...]
    prompt: int
    generate: int
    prefill: tuple[int, ...]
    long_prompt: int
    rounds: int


def cases(options: Options) -> list[Case]:
    """Every case once, in the order it is measured."""
    found: list[Case] = [Decode(streams, options.prompt, options.generate) for streams in options.streams]
    found += [Prefill(prompt) for prompt in options.prefill]
    if options.long_prompt:
        found.append(LongPrompt(LONG_STREAMS, options.prompt, options.long_prompt))
    return list(dict.fromkeys(found))


def misfits(cases: Sequence[Case], *, max_context: int, max_slots: int) -> list[str]:
    """Why some of `cases` cannot run on an engine of that size; empty when all can."""
    found = [
        f"{case}: {case.context:,} tokens, the engine holds {max_context:,} of one request"
        for case in cases
        if case.context > max_context
    ]
    slots = [case.streams + isinstance(case, LongPrompt) for case in cases]
    return found + [
        f"{case}: {needed} requests at once, the engine runs {max_slots}"
        for case, needed in zip(cases, slots, strict=True)
        if needed > max_slots
    ]


def prompt(case: Case, attempt: int, stream: int, *, length: int, vocab: int) -> list[int]:
    """Random ids, the same in every run, and different for every attempt and stream: no prefix cache can help."""
    seeded = random.Random(f"{case} {attempt} {stream}")  # noqa: S311 - not for secrets
    return [seeded.randrange(vocab) for _ in range(length)]
