"""The declared list of compiled programs: every shape the engine can run, as data. Knows no JAX."""

from collections.abc import Container, Iterable, Sequence

from attrs import define, field, frozen


@frozen(order=True, cache_hash=True)
class DecodeKey:
    """The next `steps` tokens of each of `rows` requests, fed back on the device."""

    rows: int
    steps: int

    def __str__(self) -> str:
        return f"decode {self.rows}" + (f"x{self.steps}" if self.steps > 1 else "")


@frozen(order=True, cache_hash=True)
class ExtendKey:
    """Up to `chunk` tokens of one request's prompt, and the token after them."""

    chunk: int

    def __str__(self) -> str:
        return f"extend {self.chunk}"


@frozen(order=True, cache_hash=True)
class VerifyKey:
    """The next token of each of `rows` requests and, as far as they were guessed right, up to `width` after it."""

    rows: int
    width: int

    def __str__(self) -> str:
        return f"verify {self.rows}+{self.width}"


@frozen(order=True, cache_hash=True)
class TogetherKey:
    """`rows` tokens, each a row of its own: the next ones of requests that decode, and those of prompts."""

    rows: int

    def __str__(self) -> str:
        return f"together {self.rows}"


@frozen(order=True, cache_hash=True)
class SeatKey:
    """What penalties and biases must know of a request that was admitted, put into its slot."""

    def __str__(self) -> str:
        return "seat"


StepKey = DecodeKey | ExtendKey | VerifyKey | TogetherKey
Key = StepKey | SeatKey


GUESSING_ROWS = 4
"""Most rows of a step that verifies guesses. With more of them a step is bound by arithmetic, and guesses cost their share."""


@frozen
class Buckets:
    """Row counts and tokens of decode steps, chunk lengths of prompt steps; ascending. A step is padded up to the next.

    `guesses` is how many tokens ahead are guessed for a row; 0 for none. With `exact`, programs skip what is padding, so
    the largest of each kind serves all of its sizes, which are but what steps are planned and timed by. With `together`,
    there is one program of so many rows and nothing else.
    """

    rows: tuple[int, ...]
    steps: tuple[int, ...]
    chunks: tuple[int, ...]
    guesses: int = 0
    exact: bool = False
    together: int = 0

    def program(self, size: Key) -> Key:
        """The program that computes a step of `size`."""
        if not self.exact:
            return size
        match size:
            case DecodeKey(_, steps):
                return DecodeKey(self.rows[-1], steps)
            case VerifyKey(_, width):
                return VerifyKey(max(rows for rows in self.rows if rows <= GUESSING_ROWS), width)
            case ExtendKey():
                return ExtendKey(self.chunks[-1])
        return size

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
        """The fewest programs that serve anything, padded more than one would like, and the decode step of one stream."""
        if self.together:
            return [TogetherKey(self.together), SeatKey()]
        most = ExtendKey(self.chunks[-1])
        # A prompt step of a moderate size, or short prompts and those beside running streams would all pay for the longest.
        some = ExtendKey(self.chunks[len(self.chunks) // 2])
        return list(dict.fromkeys([most, DecodeKey(self.rows[-1], 1), DecodeKey(1, 1), some, SeatKey()]))

    def _sizes(self) -> list[Key]:
        """Every size of a step, those that are missed soonest first."""
        if self.together:
            return self._first()
        keys: list[Key] = [*self._first(), ExtendKey(self.chunks[0])]
        keys += [DecodeKey(rows, 1) for rows in self.rows]
        keys += [VerifyKey(rows, self.guesses) for rows in self.rows if self.guesses and rows <= GUESSING_ROWS]
        keys += [ExtendKey(chunk) for chunk in self.chunks]
        keys += [DecodeKey(rows, steps) for steps in self.steps for rows in self.rows]
        return list(dict.fromkeys(keys))


def declare(
    *,
    max_slots: int,
    chunk_tokens: int,
    least_chunk: int = 8,
    decode_steps: int = 1,
    guesses: int = 0,
    exact: bool = False,
    together: int = 0,
) -> Buckets:
    """Powers of two: at most half of a step is padding. Chunks from `least_chunk` up to `chunk_tokens`."""
    rows = [2**i for i in range(max_slots.bit_length()) if 2**i < max_slots] + [max_slots]
    chunks = [2**i for i in range(chunk_tokens.bit_length()) if least_chunk <= 2**i < chunk_tokens] + [chunk_tokens]
    return Buckets(tuple(rows), tuple(dict.fromkeys((1, decode_steps))), tuple(chunks), guesses, exact, together)


@define(eq=False)
class Menu:
    """The step programs that are compiled so far: what a step may be padded up to."""

    chunks: list[int] = field(factory=list, init=False)
    _verify: list[VerifyKey] = field(factory=list, init=False)
    _rows: dict[int, list[int]] = field(factory=dict, init=False)  # by steps

    def add(self, keys: Iterable[Key]) -> None:
        for key in keys:
            match key:
                case ExtendKey(chunk):
                    self.chunks = sorted([*self.chunks, chunk])
                case DecodeKey(rows, steps):
                    self._rows[steps] = sorted([*self._rows.get(steps, []), rows])
                case VerifyKey():
                    self._verify = sorted([*self._verify, key])

    def most_steps(self, rows: int) -> int:
        """The most tokens that a decode step of `rows` requests can make; 1 is always there."""
        return max(steps for steps, able in self._rows.items() if able[-1] >= rows)

    def verify(self, rows: int) -> VerifyKey | None:
        """The smallest program that verifies guesses of `rows` requests, if there is one."""
        return next((key for key in self._verify if key.rows >= rows), None)

    def decode(self, rows: int, steps: int) -> DecodeKey:
        """The smallest program for `rows` requests. `steps` is 1 or what `most_steps` said."""
        return DecodeKey(fit(rows, self._rows[steps]), steps)


def fit(size: int, available: Sequence[int]) -> int:
    """The smallest of `available`, which ascends, that holds `size`."""
    return next(bucket for bucket in available if bucket >= size)
