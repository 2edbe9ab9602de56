"""Reads a config.json key by key and gathers all that is wrong with it; knows JSON values, must not know any family.

A key that is absent and one that is null are the same, as for the libraries that write such files.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from models.errors import ModelError

T = TypeVar("T")

MOST = 2**31 - 1
MOST_NUMBER = 2.0**127
"""Of what is no count, about as much as float32 has: with it can be computed."""
MOST_LAYERS = MOST_EXPERTS = 4096
MOST_HEADS = 65536
"""No model is near these, and what is made for each of them has to stay small."""


def architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in `architectures`; none where it is anything but a list of names."""
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        return ()
    return tuple(named)


class Keys:
    """The keys of one config. Where a value is wrong, what is returned is a stand-in of the right type, so that reading
    goes on to the other keys; `check` raises in the end.
    """

    def __init__(self, config: Mapping[str, Any], subject: str) -> None:
        self.config = config
        self.subject = subject
        self.misfits: list[str] = []

    def get(self, key: str) -> Any:
        """As it stands there; None where it does not."""
        return self.config.get(key)

    def size(self, key: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
        """A positive integer, or one from `least` on; without a default it has to be there."""
        found = default if self.get(key) is None else self.get(key)
        if isinstance(found, int) and not isinstance(found, bool) and least <= found <= most:
            return found
        kind = "a positive integer" if least == 1 else f"an integer from {least} on"
        self._wrong(key, kind if most == MOST else f"{kind} up to {most}")
        return 1

    def optional_size(self, key: str) -> int | None:
        """The same, or None where it is absent."""
        return None if self.get(key) is None else self.size(key)

    def number(self, key: str, default: float) -> float:
        """A positive number, and no more than MOST_NUMBER."""
        found = default if self.get(key) is None else self.get(key)
        if is_positive(found):
            return float(found)
        self._wrong(key, f"a positive number up to {MOST_NUMBER:.2g}" if _is_large(found) else "a positive number")
        return 1.0

    def optional_number(self, key: str) -> float | None:
        """The same, or None where it is absent."""
        return None if self.get(key) is None else self.number(key, 1.0)

    def flag(self, key: str, *, default: bool = False) -> bool:
        """true or false."""
        found = default if self.get(key) is None else self.get(key)
        if isinstance(found, bool):
            return found
        self._wrong(key, "true or false")
        return default

    def choice(self, key: str, choices: Mapping[str, T], default: str) -> T:
        """What `choices` has under the word that stands there."""
        found = default if self.get(key) is None else self.get(key)
        if isinstance(found, str) and found in choices:
            return choices[found]
        self._wrong(key, " or ".join(map(repr, choices)))
        return choices[default]

    def each(self, key: str, choices: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
        """A list of words, one for each item of `default`."""
        found = default if self.get(key) is None else self.get(key)
        if isinstance(found, list | tuple) and len(found) == len(default) and all(word in choices for word in found):
            return tuple(found)
        self._wrong(key, f"{len(default)} times {' or '.join(map(repr, choices))}")
        return tuple(default)

    def bits(self, key: str, default: Sequence[bool]) -> tuple[bool, ...]:
        """A list of 1 or 0, one for each item of `default`."""
        found = default if self.get(key) is None else self.get(key)
        if isinstance(found, list | tuple) and len(found) == len(default) and all(bit in (0, 1) for bit in found):
            return tuple(map(bool, found))
        self._wrong(key, f"{len(default)} times 0 or 1")
        return tuple(default)

    def places(self, key: str) -> tuple[int, ...]:
        """A list of numbers from 0 on, empty where it is absent."""
        found = [] if self.get(key) is None else self.get(key)
        if isinstance(found, list | tuple) and all(type(place) is int and 0 <= place <= MOST for place in found):
            return tuple(found)
        self._wrong(key, "a list of numbers from 0 on")
        return ()

    def section(self, key: str) -> Mapping[str, Any]:
        """An object, empty where it is absent."""
        found = self.get(key)
        if found is None or isinstance(found, Mapping):
            return found or {}
        self._wrong(key, "an object")
        return {}

    def refuse(self, misfits: Sequence[str] | str) -> None:
        """Tell of what follows from several keys. It counts only where all keys before were right: stand-ins fit nothing."""
        if not self.misfits:
            self.misfits += [misfits] if isinstance(misfits, str) else misfits

    def check(self) -> None:
        """Raises ModelError with every misfit."""
        if self.misfits:
            raise ModelError(f"config of {self.subject}", list(dict.fromkeys(self.misfits)))

    def _wrong(self, key: str, wanted: str) -> None:
        self.misfits.append(f"{key} is {self.get(key)!r}, must be {wanted}")


def is_positive(value: Any) -> bool:
    """A number above zero, up to MOST_NUMBER, and no boolean, infinity or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_NUMBER


def _is_large(value: Any) -> bool:
    return isinstance(value, int | float) and value > MOST_NUMBER
