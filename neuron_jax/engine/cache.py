"""What an engine keeps of texts: pages, by group of layers, and copies of recurrent state. Knows owners, no device, no policy.

Layers that see equally far back share one table of pages: a *group*. A group with a `window` gives back the pages that the
window has left. Every group has a pool of its own (`Pages`), and a text's pages have the same names in all of them.

Recurrent layers keep one state for each slot, which only goes forward. So that a text can begin behind a beginning that was
computed before, the state at some page boundaries is copied to a *snapshot*: where a prompt's last full page ends, where
it parted from another one, and where an answer's last page ends. Of a long prompt also a little before its end, for the next
turn may part from it within what the chat template puts behind the last message, and every sixteenth of it, for a branch or
an edit may part from it anywhere. Snapshots have a pool of places, in which they are named, found and forgotten like pages.
A step with guesses takes some of them for the states behind its tokens: the text goes on from that behind the last right one.
"""

from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from neuron_jax.engine.pages import Pages, pages_for
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.requests import Request

PARTS = 16
"""How often the state of a long prompt is kept on its way: what an edit computes again is about this share of it at most."""

ENDS = (8, 2)
"""Pages before the last one of a long prompt behind which its state is kept as well."""

LONG = 16
"""Pages of new text that make a prompt long: the state of less is soon computed again."""

NOWHERE = 0
"""Stands for no page and no snapshot: the trash page has this number."""


@frozen
class PrefixMatch:
    """The beginning of a text that is there already: `count` pages of it, by group, NOWHERE where no window reaches them;
    the snapshot of the state behind them; and how many pages there would be but for a snapshot."""

    count: int
    pages: tuple[list[int], ...]
    snapshot: int
    parted: int


@define(eq=False)
class Cache:
    """The pools, and what each request has of them.

    `groups` and their `windows` (None: all tokens) stand side by side. A request holds, of a group without a window, pages
    for its whole text; of one with a window, those that the window reaches and those of a step of `step_tokens` tokens.
    `snapshots` is the pool of snapshots where the model has recurrent layers. Without `naming` nothing is found again.
    """

    groups: Sequence[Pages]
    page_size: int
    naming: Naming | None = None
    windows: Sequence[int | None] = (None,)
    step_tokens: int = 0
    snapshots: Pages | None = None
    lookup_tokens: int = field(default=0, init=False)  # of prompts whose beginnings were looked for
    hit_tokens: int = field(default=0, init=False)  # of these, found
    _windowed: Sequence[int] = field(init=False)  # numbers of the groups with a window
    _saved: list[tuple[int, bytes]] = field(factory=list, init=False)  # by the step that is being planned
    _read: list[int] = field(factory=list, init=False)  # by that step, too: it writes nothing there

    def __attrs_post_init__(self) -> None:
        assert len(self.groups) == len(self.windows), "groups and windows"
        self._windowed = [group for group, window in enumerate(self.windows) if window is not None]

    @property
    def total(self) -> int:
        return sum(pool.total for pool in self.groups)

    @property
    def free(self) -> int:
        """Pages that can be taken, kept ones included."""
        return sum(pool.free for pool in self.groups)

    @property
    def kept(self) -> int:
        return sum(pool.kept for pool in self.groups)

    def holds(self, tokens: int) -> bool:
        """Whether a request of so many tokens can be served when it is alone."""
        return all(self._granted(group, tokens, 0) <= pool.total for group, pool in enumerate(self.groups))

    def admit(self, request: Request, spare: int) -> bool:
        """Give `request` the pages that its text begins with, and room for the rest, if that leaves `spare` pages free."""
        found = self._find(request)
        wanted = [self._granted(group, len(request.tokens) + 1, found.count) for group in range(len(self.groups))]
        for pool, pages, count in zip(self.groups, found.pages, wanted, strict=True):
            if count - len(pages) + pool.unowned(_there(pages)) + spare > pool.free:
                return False
        request.pages = [[] for _ in self.groups]
        self._share(request, found)
        for pool, pages, count in zip(self.groups, request.pages, wanted, strict=True):
            pages.extend(pool.take(count - len(pages)))
        if self.naming is not None and request.stay == 0:
            self.lookup_tokens += request.prompt_length
        return True

    def look_again(self, request: Request) -> None:
        """Of a request of which nothing was computed yet: others may have computed its beginning since it was admitted."""
        if request.computed == request.found * self.page_size:
            found = self._find(request)
            if found.count > request.found:
                self._share(request, found)

    def room(self, wanted: Iterable[tuple[Request, int]], guesses: int = 0) -> bool:
        """Whether each of these requests could grow to so many tokens, and `guesses` be taken back."""
        texts = list(wanted)
        if guesses and self.snapshots is not None and self.snapshots.free < guesses:
            return False
        for group, pool in enumerate(self.groups):
            if sum(max(self._missing(group, *text), 0) for text in texts) > pool.free:
                return False
        return True

    def grow(self, request: Request, tokens: int) -> bool:
        """Give `request` pages for so many tokens, or as many as are free; whether that is enough."""
        self._leave_behind(request)
        enough = True
        for group, pool in enumerate(self.groups):
            missing = self._missing(group, request, tokens)
            if missing > 0:
                request.pages[group] += pool.take(min(missing, pool.free))
                enough = enough and self._missing(group, request, tokens) == 0
        return enough

    def feed(self, request: Request, count: int) -> int:
        """How many of the next `count` tokens of a prompt can be computed in one row; it gets the pages for them."""
        if self._windowed:
            self.grow(request, min(request.computed + count, len(request.tokens)))
            count = min(count, *(len(pages) * self.page_size - request.computed for pages in request.pages))
        if self.snapshots is None:
            return count
        begin = request.computed
        for mark in sorted(self._marks(request)):
            # A row saves the state at the last boundary before its end: this one shall be it.
            if begin <= mark * self.page_size < begin + count:
                return min(count, (mark + 1) * self.page_size - begin)
        return count

    def publish(self, request: Request, tokens: int) -> None:
        """Let the pages be found that are full of the first `tokens` tokens."""
        full = tokens // self.page_size
        if self.naming is None or full <= request.published:
            return
        self.naming.extend(request.names, request.tokens, full, request.adapter)
        for pool, pages in zip(self.groups, request.pages, strict=True):
            for i in range(request.published, full):
                if pages[i] != NOWHERE:
                    pool.publish(pages[i], request.names[i])
        request.published = full

    def states(self, request: Request, start: int, count: int, *, fed: bool) -> tuple[int, int]:
        """Of a row of `count` tokens from `start` on: the snapshot that it begins from, and that which it leaves, of the
        state at the last page boundary before its last token. NOWHERE for none."""
        if self.snapshots is None:
            return NOWHERE, NOWHERE
        load, request.snapshot = request.snapshot, NOWHERE
        if load != NOWHERE:
            # Whoever is given this place next writes there in a later step: the rows of one are computed side by side.
            self._read.append(load)
        boundary = (start + count - 1) // self.page_size
        if self.naming is None or boundary == 0 or boundary * self.page_size < start:
            return load, NOWHERE
        return load, self._save_prompt(request, boundary) if fed else self._save_answer(request, boundary)

    def mark(self, request: Request, guesses: int) -> Sequence[int]:
        """Snapshots for the states behind the tokens of a row with so many guesses, but for its last token; none where the
        model has none. The caller has asked for `room`.
        """
        if self.snapshots is None:
            return ()
        assert not request.marks, "guesses upon guesses"
        request.marks = self.snapshots.take(guesses)
        return tuple(request.marks)

    def rewind(self, request: Request, start: int, right: int) -> None:
        """Of a row with guesses from `start` on the first `right` tokens count: let its next row begin behind those."""
        if self.snapshots is None:
            return
        marks, request.marks = request.marks, []
        page = (start + min(right, len(marks))) // self.page_size
        behind = page * self.page_size - start
        if self.naming is not None and behind > 0:  # a page was filled on the way
            self.snapshots.share(marks[behind - 1 : behind])
            self.snapshots.give_back(_there([request.rolling[0]]))
            request.rolling = (marks[behind - 1], page)
        if right <= len(marks):
            request.snapshot = marks[right - 1]
            self.snapshots.share([request.snapshot])
        self.snapshots.give_back(marks)

    def settle(self) -> None:
        """Let the snapshots be found that the step just planned takes: only later steps can begin from them. What it reads may
        be overwritten by those.
        """
        if self.snapshots is not None:
            self.snapshots.give_back(self._read)
            self._read.clear()
        for place, name in self._saved:
            assert self.snapshots is not None
            self.snapshots.publish(place, name)
            self.snapshots.give_back([place])
        self._saved.clear()

    def release(self, request: Request) -> None:
        """Take back what `request` holds. Steps under way may still write there, before any that a new owner could be in."""
        for pool, pages in zip(self.groups, request.pages, strict=True):
            pool.give_back(_there(pages))
        request.pages, request.found, request.published, request.marked = [], 0, 0, 0
        if self.snapshots is None:
            return
        place, boundary = request.rolling
        # Behind a stop nothing is text.
        if place != NOWHERE and boundary * self.page_size <= len(request.tokens) and self.naming is not None:
            self.naming.extend(request.names, request.tokens, boundary, request.adapter)
            self.snapshots.publish(place, request.names[boundary - 1])
        self.snapshots.give_back(_there([request.snapshot, place, *request.marks]))
        request.snapshot, request.rolling, request.marks = NOWHERE, (NOWHERE, 0), []

    def forget(self) -> None:
        """Nothing that was kept of texts so far is found again. No request may hold anything."""
        for pool in (*self.groups, *((self.snapshots,) if self.snapshots is not None else ())):
            pool.forget()

    def check_idle(self) -> None:
        """Assert that everything is free, by numbers alone."""
        for pool in self.groups:
            assert pool.free == pool.total, f"{pool.free} pages free of {pool.total}, and no owner"
        if (states := self.snapshots) is not None:
            assert states.free == states.total, f"{states.free} snapshots free of {states.total}, and no owner"

    def check_integrity(self, admitted: Iterable[Request]) -> None:
        """Assert that every page and snapshot is free or has the owners that it should."""
        requests = list(admitted)
        for group, pool in enumerate(self.groups):
            pool.check_integrity(_there(request.pages[group]) for request in requests)
        if self.snapshots is not None:
            assert not self._saved + self._read, "a step was planned and not settled"
            owned = ([request.snapshot, request.rolling[0], *request.marks] for request in requests)
            self.snapshots.check_integrity(map(_there, owned))

    def _granted(self, group: int, tokens: int, found: int) -> int:
        """Pages that a request gets when it is admitted, for a text of `tokens` of which `found` pages are there."""
        whole, window = pages_for(tokens, self.page_size), self.windows[group]
        if window is None:
            return whole
        reach = pages_for(window + self.step_tokens, self.page_size) + 1
        return min(whole, self._first(window, found * self.page_size) + reach)

    def _first(self, window: int | None, position: int) -> int:
        """The first page that the token at `position` sees."""
        return 0 if window is None else max(position - window + 1, 0) // self.page_size

    def _missing(self, group: int, request: Request, tokens: int) -> int:
        return pages_for(tokens, self.page_size) - len(request.pages[group])

    def _leave_behind(self, request: Request) -> None:
        """Give back the pages that no token from the next one on sees."""
        for group in self._windowed:
            pages = request.pages[group]
            first = min(self._first(self.windows[group], request.computed), len(pages))
            left = [i for i in range(request.left.get(group, 0), first) if pages[i] != NOWHERE]
            self.groups[group].give_back([pages[i] for i in left])
            for i in left:
                pages[i] = NOWHERE
            request.left[group] = first

    def _find(self, request: Request) -> PrefixMatch:
        """The pages that hold the beginning of its text, so that at least one token is left to compute."""
        if self.naming is None:
            return PrefixMatch(0, tuple([] for _ in self.groups), NOWHERE, 0)
        full = (len(request.tokens) - 1) // self.page_size
        self.naming.extend(request.names, request.tokens, full, request.adapter)
        names = request.names[:full]
        pages = [pool.find(names) for pool, window in zip(self.groups, self.windows, strict=True) if window is None]
        count = min([full, *map(len, pages)])
        if not self._windowed and self.snapshots is None:
            return PrefixMatch(count, tuple(found[:count] for found in pages), NOWHERE, count)
        return self._find_all(names[:count])

    def _find_all(self, names: Sequence[bytes]) -> PrefixMatch:
        """The longest beginning of which every group has what a window reaches, and of which there is a snapshot. Those
        without a window have all."""
        known = [[pool.get(name) for name in names] for pool in self.groups]
        reached = self._reached(known, len(names))
        states = self.snapshots
        able = [count for count in reached if states is None or count == 0 or states.get(names[count - 1]) != NOWHERE]
        count = able[-1]
        pages = []
        for found, window in zip(known, self.windows, strict=True):
            first = self._first(window, count * self.page_size)
            pages.append([NOWHERE] * min(first, count) + found[first:count])
        snapshot = states.get(names[count - 1]) if states is not None and count else NOWHERE
        return PrefixMatch(count, tuple(pages), snapshot, reached[-1])

    def _reached(self, known: Sequence[Sequence[int]], most: int) -> list[int]:
        """The lengths, in pages, of beginnings of which every group knows what its window reaches."""
        reached, lacking = [0], [-1] * len(known)  # the last page that each group does not know
        for count in range(1, most + 1):
            for group, found in enumerate(known):
                lacking[group] = count - 1 if found[count - 1] == NOWHERE else lacking[group]
            first = [self._first(window, count * self.page_size) for window in self.windows]
            if all(missed < begin for missed, begin in zip(lacking, first, strict=True)):
                reached.append(count)
        return reached

    def _share(self, request: Request, found: PrefixMatch) -> None:
        """Let `request` begin with what was found, in place of pages of its own."""
        for pool, pages, new in zip(self.groups, request.pages, found.pages, strict=True):
            pool.share(_there(new))
            pool.give_back(_there(pages[: len(new)]))
            pages[: len(new)] = new
        if self.snapshots is not None:
            self.snapshots.share(_there([found.snapshot]))
            self.snapshots.give_back(_there([request.snapshot]))
            request.snapshot = found.snapshot
        more = found.count - request.found
        request.parted = found.parted if found.parted > found.count else 0
        request.found = request.published = request.marked = found.count
        request.computed = found.count * self.page_size
        request.left = {group: self._first(self.windows[group], request.computed) for group in self._windowed}
        # What a preempted request finds again it has computed itself.
        if request.stay == 0:
            self.hit_tokens += more * self.page_size
            request.cached = request.computed

    def _save_prompt(self, request: Request, boundary: int) -> int:
        """A place for the state of a prompt behind its first `boundary` pages, where that is of use to others."""
        assert self.snapshots is not None
        assert self.naming is not None
        last = (request.fed - 1) // self.page_size
        due = boundary - request.marked >= max(last // PARTS, LONG)
        if not (due or boundary == last or boundary in self._marks(request)) or not self.snapshots.free:
            return NOWHERE
        request.marked = boundary
        self.naming.extend(request.names, request.tokens, boundary, request.adapter)
        name = request.names[boundary - 1]
        if self.snapshots.get(name) != NOWHERE:
            return NOWHERE
        (place,) = self.snapshots.take(1)
        self._saved.append((place, name))
        return place

    def _marks(self, request: Request) -> set[int]:
        """In pages, the boundaries of a prompt at which its rows are cut, so that its state is kept there."""
        last = (request.fed - 1) // self.page_size
        ends = {last - before for before in ENDS} if last - request.found >= LONG else set()
        return (ends | {request.parted}) - {0}

    def _save_answer(self, request: Request, boundary: int) -> int:
        """The place for the state of an answer that has just filled page `boundary`: the one of the page before, if any. It
        gets its name when the request ends: until then nobody else could use it."""
        assert self.snapshots is not None
        place, _ = request.rolling
        if place == NOWHERE:
            if not self.snapshots.free:
                return NOWHERE
            (place,) = self.snapshots.take(1)
        request.rolling = (place, boundary)
        return place


def _there(pages: Iterable[int]) -> list[int]:
    return [page for page in pages if page != NOWHERE]
