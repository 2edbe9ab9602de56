"""Keys for tests: made as the command makes them, in a database or handed to a guard."""

import contextlib
import hashlib
import pathlib
import time
from collections.abc import Iterable
from typing import Any

from attrs import frozen

from cortex_gateway.auth import keys as form
from cortex_gateway.auth.guard import Guard
from cortex_gateway.auth.principal import Key, Limits, Scope
from cortex_gateway.auth.store import KeyStore


@frozen
class Made:
    """A key and what is kept of it."""

    text: str
    key: Key

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.text}"}


def made(
    name: str = "laptop",
    *scopes: Scope,
    models: tuple[str, ...] | None = None,
    expires: float | None = None,
    **limits: int,
) -> Made:
    """The key of that name: the same one every time; of scope infer unless said otherwise."""
    minted = form.mint((hashlib.sha512(name.encode()).digest())[: form.ID_BYTES + form.SECRET_BYTES])
    key = Key(
        id=minted.id,
        name=name,
        digest=minted.digest,
        scopes=frozenset(scopes or ("infer",)),
        models=models,
        limits=Limits(**limits),
        created=time.time(),
        expires=expires,
    )
    return Made(minted.text, key)


def guarded(*keys: Made, **how: Any) -> Guard:
    """A guard that knows them."""
    guard = Guard(**how)
    guard.know(one.key for one in keys)
    return guard


def kept(path: pathlib.Path, keys: Iterable[Made]) -> pathlib.Path:
    """A database with them."""
    with contextlib.closing(KeyStore(path)) as store:
        for one in keys:
            store.add(one.key)
    return path
