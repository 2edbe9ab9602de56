"""The command line of one host: serve, discover, plan; knows flags and tables, must not know HTTP or JAX.

Everything a command needs is imported inside it, so that `--help` is quick and a bare install can say what is missing.
Exit codes: 0 done, 1 it did not work out (the message says why), 2 a wrong flag or configuration.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from neuron_jax.build_info import build_info
from neuron_jax.config import NeuronConfig, load_config
from neuron_jax.errors import ConfigError, NeuronError
from neuron_jax.hardware.records import DeviceLoad, Hardware

Environ = Annotated[Mapping[str, str], Parameter(parse=False)]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative="")]

LOOK_SECONDS = 0.1
"""How long a CPU is watched before its utilization is told."""

_EXTRA = {"pynvml", "jinja2", "tokenizers", "numpy", "ml_dtypes", "jax", "flax", "huggingface_hub", "orbax"}


def version() -> str:
    """What `neuron --version` prints."""
    build = build_info()
    commit = "" if build.git_sha == "unknown" else f", commit {build.git_sha[:12]}{' and changes' * build.git_dirty}"
    return f"neuron {build.package_version} (jax {build.jax_version or 'not installed'}{commit})"


app = App(name="neuron", help="Serves open-weight models on this host, on JAX.", version=version)


def run(tokens: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs one command line; the exit code."""
    try:
        command, bound, hidden = app.parse_args(tokens, exit_on_error=False, error_console=Console(stderr=True))
        given = {"environ": environ} if "environ" in hidden else {}
        return command(*bound.args, **bound.kwargs, **given) or 0
    except CycloptsError:  # it has printed itself
        return 2
    except ConfigError as error:
        return _fail(error, 2)
    except NeuronError as error:
        return _fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        return _fail(f"{error.name} is not installed: pip install 'cortex-jax[neuron]'", 1)
    except KeyboardInterrupt:
        return 130


@app.command
def serve(
    *,
    config: ConfigFile = None,
    host: str | None = None,
    port: Annotated[int | None, Parameter(validator=Number(gte=0, lte=65535))] = None,
    environ: Environ,
) -> None:
    """Serve models until told to stop.

    Parameters
    ----------
    config:
        A TOML file; without it the defaults and the NEURON_* variables hold.
    host:
        The address to listen on, over the configuration.
    port:
        The port to listen on, 0 for any free one, over the configuration.
    """
    loaded = load_config(config, environ)
    from neuron_jax.daemon.app import serve as serve_forever

    server = attrs.evolve(
        loaded.server,
        host=loaded.server.host if host is None else host,
        port=loaded.server.port if port is None else port,
    )
    serve_forever(attrs.evolve(loaded, server=server))


@app.command
def discover(*, config: ConfigFile = None, as_json: Json = False, environ: Environ) -> None:
    """Show this host's devices and how busy they are.

    Parameters
    ----------
    config:
        A TOML file; it may say how many devices a CPU stands for.
    as_json:
        Print JSON.
    """
    hardware, loads = _look(load_config(config, environ), environ)
    found = attrs.asdict(hardware)
    found["devices"] = [attrs.asdict(d) | attrs.asdict(load) for d, load in zip(hardware.devices, loads, strict=True)]
    _print_json(found) if as_json else _print_hardware(found)


@app.command
def plan(
    model: str,
    *,
    source: str | None = None,
    quant: Literal["auto", "none", "int8"] | None = None,
    tensor_parallel: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    max_context: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    kv_mb: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> int:
    """Show where a model's memory would go on this host, without loading it.

    Parameters
    ----------
    model:
        An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.
    source:
        Where the weights are, when the id does not say.
    quant:
        How weights are kept.
    tensor_parallel:
        Over how many devices the model is spread.
    max_context:
        Tokens that one request must be able to hold, prompt and output.
    kv_mb:
        MiB of the KV pool, over all devices.
    config:
        A TOML file with limits and models.
    as_json:
        Print JSON.
    """
    from neuron_jax.planning import plan_model

    asked = {
        "model_id": model,
        "source": source,
        "quant": quant,
        "tensor_parallel": tensor_parallel,
        "max_context": max_context,
        "kv_mb": kv_mb,
    }
    loaded = load_config(config, environ)
    hardware, loads = _look(loaded, environ)
    report = plan_model(loaded, hardware, loads, {key: value for key, value in asked.items() if value is not None})
    _print_json(report.as_json()) if as_json else _print_plan(report.as_json())
    return 0 if report.fits else 1


def _look(config: NeuronConfig, environ: Mapping[str, str]) -> tuple[Hardware, tuple[DeviceLoad, ...]]:
    """The devices an engine of this configuration could use, and how busy they are."""
    from neuron_jax.hardware.discover import Sampler
    from neuron_jax.hardware.discover import discover as look

    hardware = look(config.engine.cpu_devices, visible=environ.get("CUDA_VISIBLE_DEVICES"))
    with Sampler(hardware) as sampler:
        time.sleep(LOOK_SECONDS)
        return hardware, sampler.sample()


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201 - the answer itself


def _print_hardware(found: Mapping[str, Any]) -> None:
    console = Console()
    console.print(f"{found['hostname']}: {found['os']}, Linux {found['kernel']}")
    if found["driver_version"]:
        console.print(f"NVIDIA driver {found['driver_version']}, CUDA up to {found['cuda_version']}")
    table = Table("device", "name", "kind", "memory MiB", "used", "free", "busy", "°C")
    for row in found["devices"]:
        sizes = (f"{row[key]:,}" for key in ("vram_total_mb", "vram_used_mb", "vram_free_mb"))
        busy = "" if row["utilization_pct"] is None else f"{row['utilization_pct']} %"
        table.add_row(str(row["index"]), row["name"], _kind(row), *sizes, busy, str(row["temp_c"] or ""))
    console.print(table)
    if found["cuda_unavailable_reason"]:
        console.print(f"no CUDA: {found['cuda_unavailable_reason']}", markup=False, soft_wrap=True)


def _kind(device: Mapping[str, Any]) -> str:
    capability = device["compute_capability"]
    return f"{device['kind']} {capability}" if capability else str(device["kind"])


def _print_plan(report: Mapping[str, Any]) -> None:
    console = Console()
    places = ", ".join(str(index) for index in report["devices"])
    console.print(
        f"{report['model']}: {report['parameters']:,} parameters on {report['platform']} {places}", markup=False
    )
    console.print(f"quant {report['quant']['chosen']} ({report['quant']['reason']})", markup=False, soft_wrap=True)
    table = Table("on each device", "MiB")
    table.columns[1].justify = "right"
    for row in report["plan"]:
        table.add_row(row["what"], f"{row['bytes'] / 2**20:,.1f}")
    console.print(table)
    if report["fits"]:
        console.print(
            f"fits: requests of up to {report['max_context']:,} of the model's {report['context_length']:,} tokens"
        )
    else:
        console.print(f"does not fit. {report['suggestion']}", markup=False, soft_wrap=True)


def _fail(message: object, code: int) -> int:
    Console(stderr=True).print(f"neuron: {message}", markup=False, highlight=False, soft_wrap=True)
    return code
