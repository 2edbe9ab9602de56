"""Who owns which KV page; knows page numbers only, not what is in them.

Page 0 is the trash page: padding rows and padding tokens write there, nobody reads it, nobody owns it.
"""

from collections.abc import Iterable

from attrs import define, field


@define(eq=False)
class Pages:
    """The free list of a pool of `total` pages numbered 1 .. total. Every other page is owned by exactly one request."""

    total: int
    _free: list[int] = field(init=False)

    def __attrs_post_init__(self) -> None:
        # Popped from the end: low numbers are handed out first, so a small load stays in a small, warm part of the pool.
        self._free = list(range(self.total, 0, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages, now the caller's. The caller has checked that they are free."""
        assert 0 <= count <= self.free, f"{count} pages wanted, {self.free} free"
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken[::-1]

    def give_back(self, pages: list[int]) -> None:
        self._free.extend(reversed(pages))

    def check_integrity(self, owners: Iterable[list[int]]) -> None:
        """Assert that every page is either free or in exactly one of `owners`."""
        seen = sorted([*self._free, *(page for owner in owners for page in owner)])
        assert seen == list(range(1, self.total + 1)), f"pages lost or owned twice: {len(seen)} of {self.total}"


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // page_size)
