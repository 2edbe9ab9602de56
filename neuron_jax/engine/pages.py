"""Who owns which KV page, and which of the free ones may be found again; knows pages' numbers and names, not contents.

Page 0 is the trash page: padding rows and padding tokens write there, nobody reads it, nobody owns it.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from attrs import define, field


@define(eq=False)
class Pages:
    """A pool of `total` pages numbered 1 .. total.

    A page is owned by one request or shared by several, or it is free: blank, or kept. A kept page still has the content
    that its name promises and can be found by it until somebody needs room: then the one unused for longest goes first.
    A page that has a name is never written again while anybody can find it.
    """

    total: int
    _blank: list[int] = field(init=False)
    _kept: OrderedDict[int, None] = field(factory=OrderedDict, init=False)  # unused for longest first
    _owners: list[int] = field(init=False)  # how many, by page
    _names: dict[int, bytes] = field(factory=dict, init=False)
    _found: dict[bytes, int] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        # Popped from the end: low numbers are handed out first, so a small load stays in a small, warm part of the pool.
        self._blank = list(range(self.total, 0, -1))
        self._owners = [0] * (self.total + 1)

    @property
    def free(self) -> int:
        """Pages that can be taken, kept ones included."""
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        return len(self._kept)

    def take(self, count: int) -> list[int]:
        """`count` pages, now the caller's, their content worthless. The caller has checked that they are free."""
        assert 0 <= count <= self.free, f"{count} pages wanted, {self.free} free"
        while len(self._blank) < count:
            self._forget_oldest()
        taken = self._blank[len(self._blank) - count :]
        del self._blank[len(self._blank) - count :]
        for page in taken:
            self._owners[page] = 1
        return taken[::-1]

    def publish(self, page: int, name: bytes) -> None:
        """Let a page of the caller's be found. Of two pages with one name the first stays: the other is just owned."""
        assert self._owners[page], f"page {page} is free"
        assert page not in self._names, f"page {page} has a name"
        if name not in self._found:
            self._names[page] = name
            self._found[name] = page

    def get(self, name: bytes) -> int:
        """The page of that name; 0 when nobody has it."""
        return self._found.get(name, 0)

    def find(self, names: Iterable[bytes]) -> list[int]:
        """The pages of `names` up to the first that nobody has."""
        pages = []
        for name in names:
            page = self._found.get(name)
            if page is None:
                break
            pages.append(page)
        return pages

    def unowned(self, pages: Iterable[int]) -> int:
        """How many of the found `pages` are free: sharing them takes so many from `free`."""
        return sum(not self._owners[page] for page in pages)

    def share(self, pages: Iterable[int]) -> None:
        """Make the caller an owner of pages that it found."""
        for page in pages:
            if not self._owners[page]:
                del self._kept[page]
            self._owners[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """End the caller's ownership of `pages`, in the order of its text.

        The last go first when room is needed: without the pages before it a page cannot be reached any more.
        """
        for page in reversed(pages):
            self._owners[page] -= 1
            if self._owners[page]:
                continue
            if page in self._names:
                self._kept[page] = None
            else:
                self._blank.append(page)

    def forget(self) -> None:
        """Nobody finds a page any more: what the kept ones have is of no use, and who owns one goes on without its name."""
        self._blank = sorted([*self._blank, *self._kept], reverse=True)
        self._kept.clear()
        self._names.clear()
        self._found.clear()

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Assert that every page is blank, kept, or owned as often as it is in `owners`, and that names lead back."""
        owned = Counter(page for pages in owners for page in pages)
        assert all(self._owners[page] == owned[page] for page in range(self.total + 1)), "owners do not add up"
        seen = sorted([*self._blank, *self._kept, *owned])
        assert seen == list(range(1, self.total + 1)), f"pages lost or both free and owned: {len(seen)} of {self.total}"
        assert self._found == {name: page for page, name in self._names.items()}, "names and pages do not agree"
        assert self._kept.keys() <= self._names.keys() <= self._kept.keys() | owned.keys(), "a blank page has a name"

    def _forget_oldest(self) -> None:
        page, _ = self._kept.popitem(last=False)
        del self._found[self._names.pop(page)]
        self._blank.append(page)


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold `tokens` tokens."""
    return -(-tokens // page_size)
