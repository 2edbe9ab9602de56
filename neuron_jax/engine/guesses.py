"""Whether it pays to guess a request's next tokens, from how often guesses were right; pure arithmetic, no clock."""

from collections.abc import Sequence

from attrs import define, field

from neuron_jax.engine.lookup import Lookup

HOPE = 0.7
"""What part of the guesses is taken to be right before any was tried."""

NEWEST = 0.2
"""Weight of the newest step in the estimate of that."""

RECOVERY = 0.02
"""How far the estimate goes back to HOPE with every look: text that did not repeat itself may do so later."""


LEAST_REST, LONGEST_REST = 4, 32
"""Steps of one token that a bound text takes before it is hoped for again: after the first disappointment, and at most."""


@define(eq=False)
class Hope:
    """Whether a text that is bound may make several tokens in a step as if it were free: those before the first that may not
    come are what it would have drawn, the others are computed again. After each disappointment it rests twice as long.
    """

    rest: int = field(default=0, init=False)
    _next: int = field(default=LEAST_REST, init=False)

    def learn(self, drawn: int, right: int) -> None:
        """Of `drawn` tokens the first `right` may come."""
        if drawn == right:
            self.rest, self._next = 0, LEAST_REST
        else:
            self.rest, self._next = self._next, min(2 * self._next, LONGEST_REST)

    def wait(self) -> None:
        """It takes a step of one token."""
        self.rest = max(self.rest - 1, 0)


@define(eq=False)
class Guesser:
    """Guesses for one request. `trust` is the estimated chance that a token after a right one is guessed right."""

    trust: float = field(default=HOPE, init=False)
    _lookup: Lookup = field(factory=Lookup, init=False)

    def guess(self, tokens: Sequence[int], *, ahead: int, most: int) -> list[int]:
        """At most `most` tokens to come after `tokens` and `ahead` more that are on their way.

        It guesses those too, so that nobody has to wait for them.
        """
        if most <= 0:
            return []
        self.look()
        return self._lookup.propose(tokens, ahead + most)[ahead:]

    def look(self) -> None:
        """There may be something to guess, and what was seen of that before grows old."""
        self.trust += RECOVERY * (HOPE - self.trust)

    def expected(self, count: int) -> float:
        """How many of `count` guesses one after another are right, on average."""
        chance, total = 1.0, 0.0
        for _ in range(count):
            chance *= self.trust
            total += chance
        return total

    def learn(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were; those behind the first wrong one tell nothing."""
        tried = min(right + 1, guessed)
        if tried:
            self.trust += NEWEST * (right / tried - self.trust)
