"""Flags that commands share, as records: whom to ask, where a model is to go, how it is to be loaded. Knows no route."""

import os
import pathlib
from typing import Annotated, Any, Literal

import attrs
from attrs import frozen
from cyclopts import Parameter

from cortex_gateway.cli.api import Api, read_key
from neuron_jax.common.addresses import parse_url

DEFAULT_ENDPOINT = "http://localhost:31313"


def _url(_: object, value: str) -> None:
    parse_url(value)


Endpoint = Annotated[
    str,
    Parameter(name=["--endpoint", "-e"], env_var="CORTEX_ENDPOINT", validator=_url, help="The gateway to ask."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the gateway's JSON instead of a table.")]
Model = Annotated[str, Parameter(help="An id or an alias.")]


@Parameter(name="*")
@frozen(kw_only=True)
class Ask:
    """Which gateway, and with which key."""

    endpoint: Endpoint = DEFAULT_ENDPOINT
    key_file: Annotated[
        pathlib.Path | None,
        Parameter(name="--key-file", help="A file with the key to ask with; else the key is $CORTEX_API_KEY."),
    ] = None

    def api(self) -> Api:
        """Raises UsageError where the key cannot be read."""
        return Api(self.endpoint, key=read_key(self.key_file, os.environ))


@Parameter(name="*")
@frozen(kw_only=True)
class Where:
    """Where a model is to go."""

    node: Annotated[str | None, Parameter(help="On this node; else where it fits best.")] = None
    tensor_parallel: Annotated[int | None, Parameter(help="Devices to spread it over.")] = None
    hosts: Annotated[str | None, Parameter(help="Nodes that may serve it together, the preferred first: a,b.")] = None


@Parameter(name="*")
@frozen(kw_only=True)
class How:
    """How a model is to be loaded."""

    quant: Annotated[str | None, Parameter(help="auto, none, or a scheme that the neuron knows.")] = None
    kv_dtype: Annotated[str | None, Parameter(help="How keys and values are kept: auto, int8, fp8, ...")] = None
    deterministic: Annotated[
        bool | None,
        Parameter(
            negative="",
            help="Give a request the same bits however it is served. Slower, but for the native CPU kernels.",
        ),
    ] = None
    expert_parallel: Annotated[int | None, Parameter(help="Parts of its devices that have whole experts.")] = None
    max_context: Annotated[
        int | None,
        Parameter(
            name=["--max-context", "--context"], help="Tokens that one request must be able to hold, prompt and output."
        ),
    ] = None
    speculate: Annotated[int | None, Parameter(help="Tokens guessed ahead at most; 0: none, -1: where it helps.")] = (
        None
    )
    adapters: Annotated[
        str | None,
        Parameter(help="Adapters beside it, by name and folder on the node: poet=/srv/poet,critic=/srv/critic."),
    ] = None
    ranks: Annotated[
        Literal["host", "device"] | None, Parameter(help="One process per host or per device of a group.")
    ] = None


ASK, WHERE, HOW = Ask(), Where(), How()
LISTS = ("hosts", "adapters")
"""Flags whose words stand between commas."""


def body(*records: Where | How, **values: Any) -> dict[str, Any]:
    """What was said of it all, for the gateway."""
    for record in records:
        values |= attrs.asdict(record)
    values |= {name: _parts(values[name]) for name in LISTS if name in values}
    return {name: value for name, value in values.items() if value is not None}


def _parts(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",")] if text else None
