"""How a model is to be loaded, as far as somebody has said: one record from models.toml and /admin/load to the node. Pure.

A new option is a field here, one in the command line where operators should have it, and one in the neuron's `ModelSpec`.
"""

from typing import Any, Literal

from attrs import field, fields, frozen
from attrs.validators import ge, min_len, optional


@frozen(kw_only=True)
class LoadOptions:
    """None, or no hosts: nobody has said. Then models.toml says it, or else the node chooses."""

    quant: str | None = field(default=None, validator=optional(min_len(1)))
    kv_dtype: str | None = field(default=None, validator=optional(min_len(1)))
    deterministic: bool | None = None
    tensor_parallel: int | None = field(default=None, validator=optional(ge(1)))
    expert_parallel: int | None = field(default=None, validator=optional(ge(1)))
    max_context: int | None = field(default=None, validator=optional(ge(1)))  # tokens; over a limit of models.toml
    speculate: int | None = field(
        default=None, validator=optional(ge(-1))
    )  # tokens guessed ahead; 0 = none, -1 = where it helps
    hosts: tuple[str, ...] = ()  # only these nodes; one leads, and the others lend devices where it has too few
    adapters: tuple[str, ...] = ()  # NAME=FOLDER on the node: served beside it as id:NAME
    ranks: Literal["host", "device"] | None = None  # processes of a group: one per host or per device

    @property
    def named(self) -> dict[str, Any]:
        """What somebody has said, by name."""
        every = {one.name: getattr(self, one.name) for one in fields(LoadOptions)}
        return {name: value for name, value in every.items() if value not in (None, ())}


def names_of(adapters: tuple[str, ...]) -> tuple[str, ...]:
    """Without their folders."""
    return tuple(text.partition("=")[0] for text in adapters)


UNSAID = LoadOptions()
"""Nobody has said anything."""
