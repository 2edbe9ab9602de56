"""The NVIDIA cards that a model can be planned for, as data sheets give them; knows figures and names, no device.

The figures are in cards.toml, with their sources.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from attrs import frozen

MIB = 2**20


@frozen
class Capability:
    """What all cards of a compute capability have: bytes of shared memory that a block may ask for, bytes, threads and float32
    units of a multiprocessor."""

    shared_block: int
    shared_core: int
    threads_core: int
    units: int


@frozen
class Card:
    """One card. Bytes, bytes a second, Hz; rates are operations a second, by dtype, of which a multiply-add is two."""

    key: str
    name: str  # as the driver calls it
    aliases: tuple[str, ...]
    capability: tuple[int, int]
    generation: Capability
    cores: int
    memory: int
    bandwidth: float
    l2: int
    clock: float
    rates: Mapping[str, float]  # bfloat16, int8, fp8, float32; none of what it does not multiply
    pcie: float
    link: float
    source: str

    @property
    def exchange(self) -> float:
        """Bytes a second, in one direction, to the other cards beside it."""
        return self.link or self.pcie


class UnknownCardError(ValueError):
    """No card has this name; the message lists those that there are."""


@cache
def cards() -> Mapping[str, Card]:
    """Every card by its key, those with the least memory first."""
    told = tomllib.loads(files(__package__).joinpath("cards.toml").read_text(encoding="utf-8"))
    generations = {name: Capability(**figures) for name, figures in told["generation"].items()}
    found = [_card(key, figures, generations) for key, figures in told["card"].items()]
    return {card.key: card for card in sorted(found, key=lambda card: (card.memory, card.bandwidth))}


def card(name: str) -> Card:
    """The card of a key, an alias, or the driver's own name. Raises UnknownCardError."""
    asked = name.strip().lower()
    for one in cards().values():
        if asked in (one.key, one.name.lower(), *one.aliases):
            return one
    raise UnknownCardError(f"no card is called {name!r}; known are {', '.join(cards())}")


def _card(key: str, told: Mapping[str, Any], generations: Mapping[str, Capability]) -> Card:
    major, minor = map(int, told["capability"].split("."))
    return Card(
        key=key,
        name=told["name"],
        aliases=tuple(told.get("aliases", ())),
        capability=(major, minor),
        generation=generations[told["capability"]],
        cores=told["cores"],
        memory=told["memory_mib"] * MIB,
        bandwidth=told["bandwidth"] * 1e9,
        l2=told["l2_mib"] * MIB,
        clock=told["clock"] * 1e9,
        rates={dtype: told[dtype] * 1e12 for dtype in ("bfloat16", "int8", "fp8", "float32") if told[dtype]},
        pcie=told["pcie"] * 1e9,
        link=told["link"] * 1e9,
        source=told["source"],
    )
