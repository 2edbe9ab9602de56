"""What an operator is told of an import: what means something else now, what is gone, what is left to do. Pure."""

from typing import Any, Literal

from attrs import define, field, frozen

Kind = Literal["changed", "gone", "to do"]
Table = dict[str, Any]
"""Of TOML, as tomlkit gives it: comments stay where they are while keys are changed."""


@frozen
class Note:
    """`key` is what the predecessor calls it."""

    kind: Kind
    key: str
    words: str


@define
class Notes:
    """Of one file, in the order of its keys as far as that is known."""

    all: list[Note] = field(factory=list)

    def changed(self, key: str, words: str) -> None:
        self.all.append(Note("changed", key, words))

    def gone(self, key: str, words: str) -> None:
        self.all.append(Note("gone", key, words))

    def to_do(self, key: str, words: str) -> None:
        self.all.append(Note("to do", key, words))

    def drop_unknown(self, path: str, table: Table, known: set[str]) -> None:
        """Of `table` at `path`, what neither program ever read: the predecessor passed over it, we refuse it."""
        for key in [key for key in table if key not in known]:
            del table[key]
            self.gone(f"{path}{key}", "no key of helexa's, which passed over it, nor of ours")
