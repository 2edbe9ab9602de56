"""The declared list of compiled programs: every shape the engine can run, as data. Knows no JAX."""

from collections.abc import Container, Iterable
from enum import IntEnum

from attrs import define, field, frozen


class Draws(IntEnum):
    """What a program can draw by; each can do all that those before it can.

    A GPU would have to tell the host which branch to take, so there the host chooses, among programs without branches.
    """

    PLAIN = 0  # arg max, or temperature and nothing else
    CUT = 1  # top_k, top_p, min_p
    FULL = 2  # penalties, biases, bans, masks, log-probabilities
    ANY = 3  # all of that, of which the program itself does what its rows need


@frozen(order=True, cache_hash=True)
class StepKey:
    """A step of up to `tokens` tokens in up to `rows` rows, each of which may draw after its last token.

    With `steps` above 1 every row has one token, and the step goes on with the drawn ones, so many times in all.
    """

    tokens: int
    rows: int
    steps: int = 1
    draws: Draws = Draws.ANY

    @property
    def everything(self) -> bool:
        """Whether penalties count what is drawn, and log-probabilities come back."""
        return self.draws >= Draws.FULL

    @property
    def masked(self) -> bool:
        """Whether it is given masks of what may be drawn: of several tokens at once nobody can say so."""
        return self.steps == 1 and self.everything

    def __str__(self) -> str:
        drawn = f" of {self.rows} rows" if self.rows < self.tokens else ""
        kind = "" if self.draws == Draws.ANY else f" {self.draws.name.lower()}"
        return f"step {self.tokens}" + (f"x{self.steps}" if self.steps > 1 else drawn) + kind


@frozen(order=True, cache_hash=True)
class SlotKey:
    """All that the device must know of a request that was admitted, put into its slot."""

    def __str__(self) -> str:
        return "slot"


Key = StepKey | SlotKey

GUESSING_ROWS = 4
"""Most streams that are guessed for. With more of them a step is bound by arithmetic, and guesses cost their share."""


@frozen
class Buckets:
    """The sizes of steps: `tokens` ascending, of at most `rows` rows. A step is padded up to the next.

    `steps` is how many tokens each of at most `slots` streams may make in one step. `guesses` is how many tokens ahead are
    guessed for a stream; 0 for none. With `exact`, programs skip what is padding, so that a few serve all sizes, which are
    but what steps are planned and timed by. With `by_draws` there is a program for each of `Draws` that is common enough.
    """

    tokens: tuple[int, ...]
    rows: int
    slots: int
    steps: int = 1
    guesses: int = 0
    exact: bool = False
    by_draws: bool = False

    def program(self, size: Key) -> Key:
        """The program that computes a step of `size`."""
        if not self.exact or isinstance(size, SlotKey):
            return size
        if size.steps > 1:
            return self._key(self.slots, size.steps)
        return self._key(self.rows if size.tokens <= self.rows else self.tokens[-1])

    def sizes(self, programs: Container[Key]) -> list[Key]:
        """Every step that `programs` can compute."""
        return [size for size in self._sizes() if self.program(size) in programs]

    def essential(self) -> list[Key]:
        """The programs to begin with."""
        return list(dict.fromkeys(map(self.program, self._first())))

    def keys(self) -> list[Key]:
        """Every program, in the order of compiling: the essential ones, then by how soon they are likely to be missed."""
        return list(dict.fromkeys(map(self.program, self._sizes())))

    def _first(self) -> list[Key]:
        """The largest, which serves anything, padded more than one would like; one stream, all streams, a middling prompt."""
        streams = self.tokens.index(self.rows)
        some = self.tokens[(streams + len(self.tokens)) // 2] if self.rows < self.tokens[-1] else self.rows
        return [self._key(self.tokens[-1]), self._key(self.tokens[0]), self._key(self.rows), self._key(some), SlotKey()]

    def _sizes(self) -> list[Key]:
        """Every size of a step, those that are missed soonest first."""
        keys, streams = self._first(), (self.tokens[0], self.rows)
        keys += [self._key(tokens, draws=draws) for tokens in streams for draws in self._kinds(tokens)]
        keys += [self._key(tokens, draws=draws) for tokens in self.tokens for draws in self._kinds(tokens)]
        several = [tokens for tokens in self.tokens if tokens <= self.slots]
        keys += [
            self._key(tokens, self.steps, draws) for tokens in several for draws in self._kinds(tokens, self.steps)
        ]
        return list(dict.fromkeys(keys))

    def _kinds(self, tokens: int, steps: int = 1) -> tuple[Draws, ...]:
        """What steps of a size are compiled for. Beside a prompt of many tokens cuts cost little; and who wants everything
        makes one token at a time."""
        if not self.by_draws:
            return (Draws.ANY,)
        if steps > 1:
            return (Draws.PLAIN, Draws.CUT)
        return (Draws.PLAIN, Draws.FULL) if tokens > self.rows else (Draws.PLAIN, Draws.CUT, Draws.FULL)

    def _key(self, tokens: int, steps: int = 1, draws: Draws | None = None) -> StepKey:
        """Of the kind that can do everything, unless another is named."""
        kind = self._kinds(tokens)[-1] if draws is None else draws
        return StepKey(tokens, min(tokens, self.rows), steps, kind)


def declare(
    *,
    max_slots: int,
    chunk_tokens: int,
    decode_steps: int = 1,
    guesses: int = 0,
    exact: bool = False,
    by_draws: bool = False,
) -> Buckets:
    """Powers of two: at most half of a step is padding. With `exact` four sizes to each, since they cost nothing."""
    rows = max_slots + guesses * min(max_slots, GUESSING_ROWS)
    most = max(chunk_tokens, rows)
    finer = (4, 5, 6, 7) if exact else (4,)
    sizes = {part * 2**octave // 4 for octave in range(most.bit_length() + 2) for part in finer}
    tokens = sorted({size for size in sizes if 0 < size < most} | {max_slots, rows, most})
    return Buckets(tuple(tokens), rows, max_slots, decode_steps, guesses, exact, by_draws)


def one_size(rows: int) -> Buckets:
    """Every step of one program, of `rows` tokens each of which may be a row."""
    return Buckets((rows,), rows, rows)


@define(eq=False)
class Menu:
    """The steps that can be computed so far: what a step may be padded up to. `tokens`: those that draw once, ascending."""

    _sizes: dict[int, list[StepKey]] = field(factory=dict, init=False)  # by steps, ascending

    def add(self, keys: Iterable[Key]) -> None:
        for key in keys:
            if isinstance(key, StepKey):
                self._sizes[key.steps] = sorted({*self._sizes.get(key.steps, []), key})

    @property
    def tokens(self) -> list[int]:
        return list(dict.fromkeys(key.tokens for key in self._sizes[1]))

    def most_steps(self, rows: int, draws: Draws = Draws.PLAIN) -> int:
        """The most tokens that each of `rows` streams can make in one step that can draw so; 1 is always there."""
        return max(
            steps for steps, able in self._sizes.items() if any(key.rows >= rows and key.draws >= draws for key in able)
        )

    def fit(self, tokens: int, steps: int = 1, draws: Draws = Draws.PLAIN) -> StepKey:
        """The smallest step of so many tokens that can draw so. `steps` is 1 or what `most_steps` said."""
        return next(key for key in self._sizes[steps] if key.tokens >= tokens and key.draws >= draws)
