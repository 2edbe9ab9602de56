"""Runs the leader's steps on all ranks: it announces each by its program's place in a list; must not know requests.

The state of a step is that which the step before left, on every rank: so programs, and the collectives in them, run in the
same order everywhere, whenever each rank hears of them.
"""

from collections.abc import Sequence
from typing import Any, NoReturn

from attrs import define, field

from neuron_jax.workers.heart import Heart
from neuron_jax.workers.rendezvous import Leader, Member, Run, Words
from neuron_jax.workers.start import forget_tracing

LOOK_SECONDS = 0.25
"""How often an idle rank looks for programs that were compiled in the background, and whether its last step went well."""


@define(eq=False)
class LeaderLinks:
    """`engine.runner.Others` over the links of a leader. `keys` is the list of programs that all ranks have in common."""

    leader: Leader
    keys: Sequence[Any]
    _place: dict[Any, int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._place = {key: place for place, key in enumerate(self.keys)}

    def announce(self, key: Any, packed: Words, masks: Words | None = None) -> None:
        self.leader.run(self._place[key], packed, masks)

    def able(self) -> set[Any]:
        return {self.keys[place] for place in self.leader.able()}

    def dropped(self) -> set[Any]:
        return {self.keys[place] for place in self.leader.dropped()}


def follow(member: Member, runner: Any, keys: Sequence[Any], heart: Heart) -> NoReturn:
    """Run what the leader says for as long as it lives. `runner` is an `engine.runner.Runner` with `keys` to compile.

    Raises what a step raises: a step is known to have gone well when the next one is under way, or after a moment.
    """
    told: set[Any] = set()
    flight: Any = None
    while True:
        _tell_able(member, runner, keys, told)
        message = member.next(LOOK_SECONDS if flight is not None or len(told) < len(keys) else None)
        before, flight = flight, None
        if message is not None:
            with heart.work(str(keys[message.program])):
                flight = _run(runner, keys[message.program], message)
        if before is not None:
            with heart.work("a step's end"):
                before.block_until_ready()


def _run(runner: Any, key: Any, message: Run) -> Any:
    """Start a program; returns an array that is there when it has ended, if it is a step's."""
    from neuron_jax.engine.buckets import SlotKey

    if key == SlotKey():
        runner.fill_slot(message.array())
        return None
    return runner.run(key, message.array(), message.bits()).tokens


def _tell_able(member: Member, runner: Any, keys: Sequence[Any], told: set[Any]) -> None:
    """Tell the leader of programs that became usable since, and of those that never will be."""
    if len(told) == len(keys):
        return
    runner.collect()
    new = {key: place for place, key in enumerate(keys) if key in runner.usable | runner.dropped and key not in told}
    if not new:
        return
    told.update(new)
    dropped = [place for key, place in new.items() if key in runner.dropped]
    member.tell_able([place for place in new.values() if place not in dropped], dropped)
    if len(told) == len(keys):
        forget_tracing()
