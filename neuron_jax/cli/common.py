"""What commands share: kinds of flags, configuration and devices, how answers are printed; must not know any command."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from neuron_jax.common.addresses import parse_host
from neuron_jax.config import NeuronConfig, load_config, unused_variables
from neuron_jax.hardware.records import DeviceLoad, Hardware

Environ = Annotated[Mapping[str, str], Parameter(parse=False)]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Degree = Annotated[int, Parameter(validator=Number(gte=1, lte=64))]
"""Devices or ranks."""

LOOK_SECONDS = 0.1
"""How long a CPU is watched before its utilization is told."""


def check_host(_: object, value: str | None) -> None:
    """Of a flag. Raises ValueError."""
    if value is not None:
        parse_host(value)


def asked_for(model: str, **flags: Any) -> dict[str, Any]:
    """A load request with what was given."""
    return {"model_id": model} | {key: value for key, value in flags.items() if value is not None}


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
