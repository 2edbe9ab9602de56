"""What commands share: kinds of flags, configuration and devices, how answers are printed; must not know any command."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from attrs import asdict, frozen
from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from neuron_jax.common.addresses import parse_host
from neuron_jax.config import NeuronConfig, load_config, unused_variables
from neuron_jax.hardware.records import DeviceLoad, Hardware

Environ = Annotated[Mapping[str, str], Parameter(parse=False)]
ConfigFile = Annotated[
    Path | None,
    Parameter(name=["--config", "-c"], help="A TOML file. Without one, the defaults and the NEURON_* variables count."),
]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]
Model = Annotated[
    str, Parameter(help="An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.")
]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Guesses = Annotated[int, Parameter(validator=Number(gte=-1, lte=64))]
Degree = Annotated[int, Parameter(validator=Number(gte=1, lte=64))]
"""Devices or ranks."""

LOOK_SECONDS = 0.1
"""How long a CPU is watched before its utilization is told."""


def check_host(_: object, value: str | None) -> None:
    """Of a flag. Raises ValueError."""
    if value is not None:
        parse_host(value)


@Parameter(name="*")
@frozen(kw_only=True)
class WeightFlags:
    """How a model's weights are kept and spread, as far as somebody says; each field is a flag, and a key of a load request."""

    source: Annotated[str | None, Parameter(help="Where the weights are, when the id does not say.")] = None
    quant: Annotated[str | None, Parameter(help="How weights are kept.")] = None
    tensor_parallel: Annotated[Degree | None, Parameter(help="Over how many devices the model is spread.")] = None
    expert_parallel: Annotated[
        Degree | None,
        Parameter(help="In how many parts of these devices experts are whole; 1: each device has a part of each."),
    ] = None

    def request(self, model: str) -> dict[str, Any]:
        """A load request with what was given."""
        return {"model_id": model} | {key: value for key, value in asdict(self).items() if value is not None}


@Parameter(name="*")
@frozen(kw_only=True)
class LoadFlags(WeightFlags):
    """How a model is to be loaded, likewise."""

    kv_dtype: Annotated[str | None, Parameter(help="How keys and values are kept.")] = None
    deterministic: Annotated[
        bool | None,
        Parameter(
            negative="",
            help="Give a request the same bits however it is served. Slower, but for the native CPU kernels.",
        ),
    ] = None
    max_context: Annotated[
        Count | None,
        Parameter(
            name=["--max-context", "--context"], help="Tokens that one request must be able to hold, prompt and output."
        ),
    ] = None
    speculate: Annotated[
        Guesses | None, Parameter(help="Tokens guessed ahead at most; 0: none, -1: where it helps.")
    ] = None
    kv_mb: Annotated[Count | None, Parameter(help="MiB of the KV pool, over all devices.")] = None


UNSAID = LoadFlags()
"""Nobody has said anything."""


def configured(path: Path | None, environ: Mapping[str, str]) -> NeuronConfig:
    """File and variables. Raises ConfigError; a variable that sets nothing is only told."""
    config = load_config(path, environ)
    for line in unused_variables(environ):
        say(line)
    return config


def look(config: NeuronConfig, environ: Mapping[str, str]) -> tuple[Hardware, tuple[DeviceLoad, ...]]:
    """The devices an engine of this configuration could use, and how busy they are."""
    from neuron_jax.hardware.discover import Sampler, discover

    hardware = discover(config.engine.cpu_devices, visible=environ.get("CUDA_VISIBLE_DEVICES"))
    with Sampler(hardware) as sampler:
        time.sleep(LOOK_SECONDS)
        return hardware, sampler.sample()


def print_json(value: Any) -> None:
    """On stdout."""
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201 - the answer itself


def fail(message: object, code: int) -> int:
    """Tells why, and gives back the exit code."""
    say(message)
    return code


def say(message: object) -> None:
    """On stderr."""
    Console(stderr=True).print(f"neuron: {message}", markup=False, highlight=False, soft_wrap=True)
