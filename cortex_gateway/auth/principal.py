"""Who asks, and what a key allows: records without behaviour. Knows no HTTP, no clock and no database."""

from typing import Literal

from attrs import field, frozen

Scope = Literal["infer", "admin"]
SCOPES: tuple[Scope, ...] = ("infer", "admin")


@frozen(kw_only=True)
class Limits:
    """What a key may use; None = as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers together
    max_concurrent: int | None = None  # requests under way at once


@frozen(kw_only=True)
class Key:
    """A key as it is kept: everything but the key itself. Moments are seconds since 1970, UTC.

    Attributes:
        id: the part of the key that is no secret.
        name: what the operator calls it; one at a time has it, revoked ones aside.
        digest: SHA-256 of the whole key.
        models: ids and aliases that it is for; None = all of them.
        expires, revoked: None = never.
    """

    id: str
    name: str
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()
    created: float
    expires: float | None = None
    revoked: float | None = None


@frozen(kw_only=True)
class Principal:
    """Who sent a request and what he may do, fixed from its first byte to its last.

    Attributes:
        key: the id of his key; None = he showed none that is known.
        models: ids and aliases that he may use; None = all of them.
    """

    key: str | None
    name: str
    scopes: frozenset[Scope]
    models: tuple[str, ...] | None = None
    limits: Limits = Limits()
