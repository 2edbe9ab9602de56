"""Who may do what: the rules of [auth], for whoever asks with whatever key. Pure."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

from cortex_gateway.auth import keys as form
from cortex_gateway.auth.principal import SCOPES, Key, Principal, Scope
from cortex_gateway.errors import Forbidden, ModelNotFound, Unauthorized

AcceptedScopes = frozenset[Scope]  # one of these scopes is enough
INFER: AcceptedScopes = frozenset({"infer"})
ADMIN: AcceptedScopes = frozenset({"admin"})
EITHER: AcceptedScopes = frozenset(SCOPES)
NOBODY = Principal(key=None, name="", scopes=EITHER)
"""Who showed no key that is known, where none is asked for."""

# What proxies add. One on this host makes everybody look as if he came from it, so such a request is nobody's own.
_FORWARDED = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"})
_UNKNOWN_DIGEST = bytes(32)


def is_local(host: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request comes from a program on this host, and no proxy says that it passes somebody's on.

    `host` is the other end of the connection. Header names are lower case.
    """
    if host is None or not _is_loopback(host):
        return False
    return not any(name in _FORWARDED or name.startswith(b"x-forwarded-") for name, _ in headers)


def admit(
    keys: Mapping[str, Key], offered: Sequence[str], need: AcceptedScopes, now: float, *, asked: bool
) -> Principal:
    """Who it is, and that he may. `asked`: nobody passes without a key. `now`: seconds since 1970.

    A key that nobody knows counts as none, so that the placeholders which clients insist on keep working where no key is
    asked for. A known one is held to what it allows, also there. Raises Unauthorized, Forbidden.
    """
    known = next(filter(None, (_known(keys, text) for text in offered)), None)
    if known is None:
        if asked:
            raise _nobody(offered)
        return NOBODY
    if known.revoked is not None:
        raise Unauthorized("This API key was revoked.", shown=True)
    if known.expires is not None and known.expires <= now:
        raise Unauthorized("This API key has expired.", shown=True)
    if not known.scopes & need:
        wanted = " or ".join(scope for scope in SCOPES if scope in need)
        raise Forbidden(f"This API key lacks the scope that is needed here: {wanted}.")
    return Principal(key=known.id, name=known.name, scopes=known.scopes, models=known.models, limits=known.limits)


def allowed(principal: Principal, resolve: Callable[[str], str]) -> frozenset[str] | None:
    """The ids that he may use; None = all. `resolve` is the id behind a name, or raises ModelNotFound."""
    return None if principal.models is None else frozenset(_id(name, resolve) for name in principal.models)


def check_model(principal: Principal, model: str, resolve: Callable[[str], str]) -> None:
    """Raises Forbidden where he may not use `model`, an id or an alias, whether or not there is such a model."""
    ids = allowed(principal, resolve)
    if ids is not None and _id(model, resolve) not in ids:
        raise Forbidden(f"This API key is not for the model {model!r}.", param="model")


def notices(listen: str, required: bool | None, keys: int) -> tuple[str, ...]:
    """What an operator should hear at the start. `listen` is host:port of the API, `keys` how many may be used."""
    if required and not keys:
        return ("WARNING: a key is required and there is none: make one with `cortex keys add NAME`.",)
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    if required is not None or _is_loopback(host):
        return ()
    open_to_all = f"WARNING: whoever reaches {listen} can use every model, because no key is asked for. "
    way_out = "Make keys with `cortex keys add NAME` and give `cortex serve` [auth] required = true; "
    return (open_to_all + way_out + "required = false says that it is meant so.",)


def _known(keys: Mapping[str, Key], text: str) -> Key | None:
    identity = form.identity(text)
    if identity is None:
        return None
    key = keys.get(identity)
    fits = form.matches(text, key.digest if key else _UNKNOWN_DIGEST)
    return key if fits else None


def _nobody(offered: Sequence[str]) -> Unauthorized:
    if offered:
        return Unauthorized("The API key is not known here.", shown=True)
    return Unauthorized("An API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.")


def _id(name: str, resolve: Callable[[str], str]) -> str:
    try:
        return resolve(name)
    except ModelNotFound:
        return name


@lru_cache(1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
