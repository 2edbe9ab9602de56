"""Texts that wait to be read, of several requests, and which of them are next; pure but for the line that it owns."""

from collections.abc import Sequence

from attrs import define, field, frozen

from neuron_jax.engine.embedding.sizes import CallSize, choose
from neuron_jax.workers.frames import Embed

LOOK = 4096
"""Texts that are looked at for a call: it has room for far fewer."""


@frozen(eq=False)
class TextOfRequest:
    """Text number `index` of `request`. `second`: the place of the first token of its second part, 0 where it has one."""

    request: int
    index: int
    ids: Sequence[int]
    second: int


@frozen
class Call:
    """What is computed at once: texts behind each other in rows."""

    size: CallSize
    rows: Sequence[Sequence[TextOfRequest]]

    @property
    def texts(self) -> list[TextOfRequest]:
        """All of them, row by row."""
        return [text for row in self.rows for text in row]

    @property
    def tokens(self) -> int:
        """Of all texts."""
        return sum(len(text.ids) for text in self.texts)


@define(eq=False)
class _Asked:
    """One request. `waiting`: its texts that are in no call yet, the longest last, since they are taken from the end."""

    number: int
    waiting: list[TextOfRequest]
    left: int  # texts that have no vector yet
    served: int  # tokens that went into calls, on from what the others had when it came


@define(eq=False)
class Line:
    """Who had the fewest tokens computed is next, with its longest text, and others' texts fill the call up: so one short
    text need not wait for the thousand of somebody else. Texts of about one length are computed together.
    """

    sizes: Sequence[CallSize]
    _asked: dict[int, _Asked] = field(factory=dict, init=False)

    def add(self, asked: Embed) -> None:
        """A request that comes last."""
        seconds = asked.seconds or [0] * len(asked.texts)
        texts = [
            TextOfRequest(asked.request, *row) for row in zip(range(len(seconds)), asked.texts, seconds, strict=True)
        ]
        texts.sort(key=lambda text: len(text.ids))
        served = min((other.served for other in self._asked.values()), default=0)
        self._asked[asked.request] = _Asked(asked.request, texts, len(texts), served)

    def cancel(self, request: int) -> None:
        """Nothing more of it is computed."""
        self._asked.pop(request, None)

    def next_call(self) -> Call | None:
        """The next texts, which do not wait any more; None where none does."""
        waiting = sorted((one for one in self._asked.values() if one.waiting), key=lambda one: (one.served, one.number))
        if not waiting:
            return None
        texts = [text for one in waiting for text in one.waiting[-1 : -LOOK - 1 : -1]][:LOOK]
        size, rows = choose(self.sizes, [len(text.ids) for text in texts])
        call = Call(size, [[texts[place] for place in row] for row in rows])
        self._take(call)
        return call

    def computed(self, text: TextOfRequest) -> bool | None:
        """`text` has its vector. Whether its request is whole by that; None where nobody waits for it any more."""
        asked = self._asked.get(text.request)
        if asked is None:
            return None
        asked.left -= 1
        if not asked.left:
            del self._asked[text.request]
        return not asked.left

    @property
    def requests(self) -> int:
        """Those that are not whole."""
        return len(self._asked)

    @property
    def waiting(self) -> int:
        """Texts that are in no call yet."""
        return sum(len(one.waiting) for one in self._asked.values())

    def _take(self, call: Call) -> None:
        taken = set(map(id, call.texts))
        for number in {text.request for text in call.texts}:
            one = self._asked[number]
            one.served += sum(len(text.ids) for text in call.texts if text.request == number)
            one.waiting = [text for text in one.waiting if id(text) not in taken]
