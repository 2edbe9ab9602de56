"""What one engine step does, as data: the words between scheduler and runner. Knows neither policy nor device."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from attrs import Factory, define

from neuron_jax.engine.buckets import Draws, StepKey
from neuron_jax.engine.requests import Request, draws_by


@define(eq=False)
class Row:
    """One request's part of a step: `count` tokens from position `start` on, after which it draws `draws` tokens.

    A prompt's tokens are `fed` by the host, and it draws one token where it ends with them. Else the first token is the
    newest, which the device knows. With `guesses` for those that come next, each token is drawn after; what counts ends
    with the first that was guessed wrong, so it is at most `draws`. Without, in a step of several, each token is what was
    drawn before it. `stay` tells whether the request is still the one planned for. `states` are the snapshots of recurrent
    state that the row begins from and that it leaves, 0 for none: see `Cache.states`. Of one with guesses `marks` are those
    of the state behind each of its tokens but the last. The model guesses `drafts` tokens behind what it draws; `drafted`: its
    own guesses are such.
    """

    request: Request
    stay: int
    start: int
    count: int
    draws: int
    guesses: Sequence[int] = ()
    fed: bool = False
    states: tuple[int, int] = (0, 0)
    marks: Sequence[int] = ()
    drafts: int = 0
    drafted: bool = False

    @property
    def behind(self) -> int:
        """The token behind its last where it draws none."""
        return 0 if self.draws else self.request.tokens[self.start + self.count]

    def draws_by(self, *, masked: bool) -> Draws:
        """What a program must be able to do to draw for it; `masked`: where bound requests get masks."""
        if not self.draws:
            return Draws.PLAIN
        if masked and self.request.bound:
            return Draws.FULL
        return draws_by(self.request, self.start + self.count - self.draws + 1)


@define(eq=False)
class Step:
    """Rows that are computed side by side in a step of size `key`."""

    key: StepKey
    rows: Sequence[Row]

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)

    @property
    def prompt_tokens(self) -> int:
        return sum(row.count for row in self.rows if row.fed)

    @property
    def depth(self) -> float:
        """At which position its tokens stand, on average."""
        return sum(row.count * row.start for row in self.rows) / self.tokens

    @property
    def open_ended(self) -> bool:
        """Whether only its result tells how far it got, or what may come next: nothing can be planned before that."""
        return any(row.guesses or row.drafts or (row.draws and row.request.binds()) for row in self.rows)

    @property
    def wants_logprobs(self) -> bool:
        return any(row.draws and row.request.wants_logprobs for row in self.rows)


@define(eq=False)
class Drawn:
    """What came back of a step, row by row: its tokens, -1 for what does not count; and where a row wants them, their
    log-probabilities as `packing` has them, [tokens, LOGPROBS]; and what the model guesses to follow."""

    tokens: list[list[int]]
    logprobs: list[npt.NDArray[np.int32]] | None
    drafts: list[list[int]] = Factory(list)
