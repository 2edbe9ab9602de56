"""What a key looks like, how it is kept, and where a request carries it. Pure: random bytes are handed in."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable

from attrs import frozen

ID_BYTES = 6
SECRET_BYTES = 32  # 256 random bits: a plain SHA-256 of them cannot be turned round, so no slow hash is needed
_FORM = re.compile(r"sk-cortex-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")


@frozen(repr=False)
class Minted:
    """A new key. `text` is the only copy there is."""

    id: str
    text: str

    @property
    def digest(self) -> bytes:
        """What is kept of it."""
        return _digest(self.text)


def mint(random: bytes) -> Minted:
    """A key of ID_BYTES + SECRET_BYTES random bytes: `sk-cortex-<id>-<secret>`."""
    assert len(random) == ID_BYTES + SECRET_BYTES
    identity = random[:ID_BYTES].hex()
    secret = base64.urlsafe_b64encode(random[ID_BYTES:]).rstrip(b"=").decode()
    return Minted(identity, f"sk-cortex-{identity}-{secret}")


def identity(text: str) -> str | None:
    """The id in a key of ours; None for anything else."""
    found = _FORM.fullmatch(text)
    return found[1] if found else None


def matches(text: str, digest: bytes) -> bool:
    """Whether `digest` is that of `text`. Takes the same time wherever they differ."""
    return hmac.compare_digest(_digest(text), digest)


def offered(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, ...]:
    """The keys that a request carries, `Authorization: Bearer` (in any case) first, then `x-api-key`.

    Header names are lower case, as ASGI has them.
    """
    bearer: list[str] = []
    plain: list[str] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").strip().partition(" ")
            bearer += [rest.strip()] if scheme.lower() == "bearer" else []
        elif name == b"x-api-key":
            plain.append(value.decode("latin-1").strip())
    return tuple(filter(None, [*bearer, *plain]))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
