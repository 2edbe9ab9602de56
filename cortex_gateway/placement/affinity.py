"""Which replica a conversation was served by last, and when it is worth going back to. Pure."""

from collections import OrderedDict
from collections.abc import Collection

from attrs import define, field

from cortex_gateway.placement.route import Candidate, least_wait, waits

STAY = 3.0
"""A conversation goes elsewhere when it would wait more than so many times as long where its pages are."""
MOST = 8192


@define
class Homes:
    """(model, conversation) -> node, the `most` last ones."""

    most: int = MOST
    _nodes: OrderedDict[tuple[str, str], str] = field(factory=OrderedDict, init=False)

    def note(self, model: str, conversation: str, node: str) -> None:
        """It is served there now."""
        self._nodes[model, conversation] = node
        self._nodes.move_to_end((model, conversation))
        if len(self._nodes) > self.most:
            self._nodes.popitem(last=False)

    def of(self, model: str, conversation: str) -> str | None:
        return self._nodes.get((model, conversation))


def choose(candidates: Collection[Candidate], home: str | None) -> str | None:
    """The node for the next request of a conversation whose last one was served at `home`; None where nobody serves.

    Home, unless it is ailing, has no free slot where another has, or is much busier.
    """
    best = least_wait(candidates)
    expected = waits(candidates)
    if best is None or home not in expected or home == best:
        return best
    at_home, elsewhere = expected[home], expected[best]
    stays = at_home[:2] == elsewhere[:2] and at_home[2] <= STAY * elsewhere[2]
    return home if stays else best
