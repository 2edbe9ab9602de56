"""What a configuration that is read again says otherwise, and what of that a running gateway can take. Pure."""

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import frozen

from cortex_gateway.config import Config

FOLLOWED = ("models", "aliases", "eviction")
"""What a running gateway follows. Everything else is read at its start."""


@frozen(kw_only=True)
class Changes:
    """What is otherwise: ids of models, aliases, settings of [eviction]; and parts of the file that need a restart."""

    models: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    eviction: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


def changes(before: Config, after: Config) -> Changes:
    """From the one to the other; what is new or gone is otherwise, too."""
    others = [one.name for one in attrs.fields(Config) if one.name not in FOLLOWED]
    return Changes(
        models=_differing({one.id: one for one in before.models}, {one.id: one for one in after.models}),
        aliases=_differing(before.aliases, after.aliases),
        eviction=_differing(attrs.asdict(before.eviction), attrs.asdict(after.eviction)),
        needs_restart=tuple(name for name in others if getattr(before, name) != getattr(after, name)),
    )


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
