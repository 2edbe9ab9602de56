"""What a full page is called: a hash of the text up to its end. Knows tokens; no pages' numbers, no owners.

    name 0 = H(salt, adapter, tokens of page 0)        name i = H(name i-1, tokens of page i)

So one name stands for one whole beginning of a text, wherever it comes from, and pages are found one after another. Two
texts of one name would let a client's answer grow out of somebody else's text: hence 128 bits of a cryptographic hash,
and a salt that no client knows, without which nobody can search for such texts.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from attrs import frozen

NAME_BYTES = 16


@frozen
class Naming:
    """The names of one engine's pages. `salt` stands for everything that is not in the tokens: model, KV format."""

    page_size: int
    salt: bytes

    def extend(self, names: list[bytes], tokens: Sequence[int], pages: int, adapter: int = 0) -> None:
        """Append to `names`, those of the first pages of `tokens`, until there are `pages` of them. Keys and values are those
        of an `adapter`: the same text through another has other names."""
        size = self.page_size
        assert pages * size <= len(tokens), f"{pages} pages of {len(tokens)} tokens are not full"
        begin = len(names)
        if begin >= pages:
            return
        # The bytes of the numbers as this machine holds them: names never leave the process.
        data = array("i", tokens[begin * size : pages * size]).tobytes()
        step = len(data) // (pages - begin)
        name = names[-1] if names else self.salt + adapter.to_bytes(4, "little")
        for at in range(0, len(data), step):
            name = blake2b(name + data[at : at + step], digest_size=NAME_BYTES).digest()
            names.append(name)
