"""`cortex keys`: makes, lists and revokes keys in the gateway's database, on the gateway's own host. Knows no HTTP."""

import contextlib
import datetime as dt
import os
import pathlib
import re
import secrets
import sys
import time
from typing import Annotated, Any

from attrs import frozen
from cyclopts import App, Parameter
from cyclopts.validators import Number

from cortex_gateway.auth import keys as form
from cortex_gateway.auth.principal import SCOPES, Key, Limits, Scope
from cortex_gateway.auth.store import KeyReader, KeyStore
from cortex_gateway.cli import tables
from cortex_gateway.cli.api import CommandError, UsageError
from cortex_gateway.config import find_config, load_config
from neuron_jax.common.names import nearest

ConfigPath = Annotated[
    pathlib.Path | None,
    Parameter(name=["--config", "-c"], help="The gateway's cortex.toml, found as `serve` finds it."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead.")]
KeyName = Annotated[str, Parameter(help="A key's name or id.")]
AtLeastOne = Annotated[int | None, Parameter(validator=Number(gte=1))]
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
FAR_OFF = dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SPAN = re.compile(rf"([1-9]\d{{0,8}})({'|'.join(UNITS)})")

app = App(
    name="keys", help="Make, list and revoke the keys that clients show. A running gateway follows within seconds."
)


@Parameter(name="*")
@frozen(kw_only=True)
class Allowance:
    """What a key may do, and until when."""

    scope: Annotated[
        tuple[Scope, ...],
        Parameter(
            negative="",
            show_default=False,
            help="infer: ask models; admin: see and change the fleet. May be repeated. Absent: infer.",
        ),
    ] = ("infer",)
    model: Annotated[
        tuple[str, ...],
        Parameter(negative="", show_default=False, help="An id or alias that it is for; may be repeated. Absent: all."),
    ] = ()
    requests_per_minute: Annotated[AtLeastOne, Parameter(help="Of any kind, refused ones not counted.")] = None
    tokens_per_minute: Annotated[AtLeastOne, Parameter(help="Of prompts and answers together.")] = None
    max_concurrent: Annotated[AtLeastOne, Parameter(help="Requests under way at once.")] = None
    expires: Annotated[
        str | None, Parameter(help="After 12h, 30d or 8w, or at the end of a day (UTC) as 2030-12-31. Absent: never.")
    ] = None

    def key(self, name: str, minted: form.Minted, now: float) -> Key:
        """The key that may do so. Raises UsageError."""
        return Key(
            id=minted.id,
            name=name,
            digest=minted.digest,
            scopes=frozenset(self.scope),
            models=tuple(dict.fromkeys(self.model)) or None,
            limits=Limits(
                requests_per_minute=self.requests_per_minute,
                tokens_per_minute=self.tokens_per_minute,
                max_concurrent=self.max_concurrent,
            ),
            created=now,
            expires=None if self.expires is None else expiry(self.expires, now),
        )


ANY_MODEL = Allowance()


@app.command
def add(
    name: Annotated[str, Parameter(help="What you call it: letters, digits and . _ @ -.")],
    *,
    may: Allowance = ANY_MODEL,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """Make a key and show it, this once: only its hash is kept."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a key's name: 1 to 64 letters, digits and . _ @ -, a letter or digit first"
        )
    now = time.time()
    minted = form.mint(secrets.token_bytes(form.ID_BYTES + form.SECRET_BYTES))
    key = may.key(name, minted, now)
    place = _place(config)
    with contextlib.closing(KeyStore(place)) as store:
        store.add(key)
    if json:
        tables.print_json({"key": minted.text, **described(key, now)})
        return 0
    sys.stdout.write(minted.text + "\n")
    out = tables.console(stderr=True)
    out.print(f"This is the key {name!r}: keep it now, it is not shown again. Its hash is in {place}.", soft_wrap=True)
    return 0


@app.command(name="list")
def list_(
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="", help="Revoked ones, too.")] = False,
    config: ConfigPath = None,
    json: Json = False,
) -> int:
    """List the keys: what each may do and whether it is in force."""
    place, now = _place(config), time.time()
    shown = [described(key, now) for key in _known(place) if everything or key.revoked is None]
    if json:
        tables.print_json(shown)
    elif shown:
        tables.show_keys(tables.console(), shown)
    else:
        tables.console().print(f"there is no key in {place}", style="dim", soft_wrap=True)
    return 0


@app.command
def show(which: KeyName, *, config: ConfigPath = None, json: Json = False) -> int:
    """Show what is kept of one key."""
    told = described(_pick(_place(config), which), time.time())
    if json:
        tables.print_json(told)
    else:
        tables.show_key(tables.console(), told)
    return 0


@app.command
def revoke(which: KeyName, *, config: ConfigPath = None, json: Json = False) -> int:
    """Take a key out of force for good. Requests of it that are under way end by themselves."""
    place, now = _place(config), time.time()
    key = _pick(place, which)
    if key.revoked is not None:
        raise CommandError(f"the key {key.name!r} ({key.id}) was revoked before, at {moment(key.revoked)}")
    with contextlib.closing(KeyStore(place)) as store:
        store.revoke(key.id, now)
    told = described(_pick(place, key.id), now)
    if json:
        tables.print_json(told)
    else:
        tables.console().print(f"{key.name} ({key.id}) is revoked", style="green")
    return 0


def described(key: Key, now: float) -> dict[str, Any]:
    """Everything that may be shown of it."""
    limits = key.limits
    return {
        "name": key.name,
        "id": key.id,
        "status": "revoked" if key.revoked is not None else "expired" if _over(key, now) else "active",
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "models": None if key.models is None else list(key.models),
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "max_concurrent": limits.max_concurrent,
        "created": moment(key.created),
        "expires": moment(key.expires),
        "revoked": moment(key.revoked),
    }


def expiry(text: str, now: float) -> float:
    """The moment that `--expires` means, in seconds since 1970; a day is over at its end. Raises UsageError."""
    span = _SPAN.fullmatch(text)
    try:
        end = now + int(span[1]) * UNITS[span[2]] if span else _end_of(dt.date.fromisoformat(text))
    except ValueError:
        raise UsageError(
            f"--expires: found {text!r}; allowed: a number with s, min, h, d or w, or a day as 2030-12-31"
        ) from None
    if end <= now:
        raise UsageError(f"--expires {text}: that day is over")
    if end > FAR_OFF:
        raise UsageError(f"--expires {text}: that is too far off; without --expires a key is good for ever")
    return end


def _end_of(day: dt.date) -> float:
    return dt.datetime.combine(day, dt.time(), dt.UTC).timestamp() + UNITS["d"]


def moment(seconds: float | None) -> str | None:
    """`2030-12-31T23:59:59Z`."""
    if seconds is None:
        return None
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _place(config: pathlib.Path | None) -> pathlib.Path:
    """The database of the gateway that has this config. Raises ConfigError."""
    path = load_config(find_config(config), os.environ).state
    assert path is not None, "a config that was read says where"
    return path


def _known(place: pathlib.Path) -> tuple[Key, ...]:
    """Every key; none where there is no database yet. Raises StoreError."""
    with contextlib.closing(KeyReader(place)) as reader:
        return reader.changed() or ()


def _pick(place: pathlib.Path, which: str) -> Key:
    """By id, or by a name that it has, or else had last. Raises CommandError, StoreError."""
    known = _known(place)
    found = [key for key in known if which in (key.id, key.name)]
    if not found:
        near = nearest(which, {key.name for key in known}, 1, 0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CommandError(f"there is no key {which!r} in {place}{hint}")
    return max(found, key=lambda key: (key.id == which, key.revoked is None, key.created))


def _over(key: Key, now: float) -> bool:
    return key.expires is not None and key.expires <= now
