"""The command line of one host: serving, measuring, and what its ranks need; knows flags, must not know HTTP or JAX.

Everything a command needs is imported inside it, so that `--help` is quick and a bare install can say what is missing.
Exit codes: 0 done, 1 it did not work out (the message says why), 2 a wrong flag or configuration.
"""

import asyncio
import json
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.validators import Number
from rich.console import Console

from neuron_jax.build_info import build_info
from neuron_jax.common.addresses import HIGHEST_PORT, parse_address, parse_host
from neuron_jax.common.errors import ConfigError
from neuron_jax.config import NeuronConfig, load_config, unused_variables
from neuron_jax.errors import NeuronError
from neuron_jax.hardware.records import DeviceLoad, Hardware
from neuron_jax.tables import print_bench, print_hardware, print_models, print_plan, print_smoke, program_line
from neuron_jax.terminal import MEGABYTE, console, show_progress
from neuron_jax.workers.frames import GroupMember

Environ = Annotated[Mapping[str, str], Parameter(parse=False)]
ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Count = Annotated[int, Parameter(validator=Number(gte=1))]


def _numbers(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    """`1,4,16`, or `1 4 16`, or the option once for each."""
    found = tuple(int(text) for token in tokens for text in token.value.split(","))
    if not all(number >= 1 for number in found):
        raise ValueError("numbers from 1 on, with commas or spaces between them")
    return found


def _host(_: object, value: str | None) -> None:
    if value is not None:
        parse_host(value)


def _address(_: object, value: str) -> None:
    parse_address(value)


Numbers = Annotated[tuple[int, ...], Parameter(converter=_numbers, consume_multiple=True, negative="")]

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
    host: Annotated[str | None, Parameter(validator=_host)] = None,
    port: Annotated[int | None, Parameter(validator=Number(gte=0, lte=HIGHEST_PORT))] = None,
    environ: Environ,
) -> None:
    """Serve models until Ctrl-C.

    Parameters
    ----------
    config:
        A TOML file. Without one, the defaults and the NEURON_* variables count.
    host:
        The address to listen on. Overrides the configuration.
    port:
        The port to listen on, 0 for any free one. Overrides the configuration.
    """
    loaded = _configured(config, environ)
    from neuron_jax.daemon.app import serve as serve_forever

    server = attrs.evolve(
        loaded.server,
        host=loaded.server.host if host is None else host,
        port=loaded.server.port if port is None else port,
    )
    serve_forever(attrs.evolve(loaded, server=server))


@app.command(name="tp-smoke")
def tp_smoke(
    *,
    world: Annotated[int, Parameter(validator=Number(gte=1, lte=64))],
    platform: Literal["cpu", "cuda"] | None = None,
    deadline: Annotated[float, Parameter(validator=Number(gt=0))] = 60.0,
    as_json: Json = False,
    environ: Environ,
) -> int:
    """Prove that processes on this host can compute together: they meet, join, and add up one number each.

    Parameters
    ----------
    world:
        How many ranks to start, one process and device each.
    platform:
        What they run on; by default what this host has.
    deadline:
        Seconds for all of them to meet.
    as_json:
        Print JSON.
    """
    from neuron_jax.workers.smoke import groups

    ranks = groups(world, deadline, secrets.token_hex(16))
    return _smoke(ranks, platform or _platform(environ), as_json, environ)


@app.command
def worker(
    *,
    rank: Annotated[int, Parameter(validator=Number(gte=0))],
    world: Annotated[int, Parameter(validator=Number(gte=1, lte=64))],
    coordinator: Annotated[str, Parameter(validator=_address)],
    host: Annotated[str, Parameter(validator=_host)] = "127.0.0.1",
    secret: str = "",
    platform: Literal["cpu", "cuda"] | None = None,
    deadline: Annotated[float, Parameter(validator=Number(gt=0))] = 60.0,
    as_json: Json = False,
    fd: int | None = None,
    environ: Environ,
) -> int:
    """Run one rank of several: by hand of a test over hosts, started by a neuron of a model.

    Parameters
    ----------
    rank:
        Which of the ranks this is. Rank 0 leads, and the others connect to it.
    world:
        How many there are.
    coordinator:
        HOST:PORT where rank 0 listens.
    host:
        This host as the other ranks reach it.
    secret:
        The same word for all ranks. Better set NEURON_RANKS__SECRET: everybody can read arguments.
    platform:
        What it runs on; by default what this host has.
    deadline:
        Seconds for all of them to meet.
    as_json:
        Print JSON.
    fd:
        For neurons only: the socket to the one that started it.
    """
    if fd is not None:
        from neuron_jax.workers.engine_process import run as serve_rank

        serve_rank(fd)
    if rank >= world:
        return _fail(f"--rank is {rank}, and of {world} ranks the last is {world - 1}", 2)
    known = secret or environ.get("NEURON_RANKS__SECRET", "")
    group = GroupMember(rank, world, host, coordinator, known, deadline)
    return _smoke([group], platform or _platform(environ), as_json, environ)


def _smoke(
    ranks: Sequence[GroupMember], platform: Literal["cpu", "cuda"], as_json: bool, environ: Mapping[str, str]
) -> int:
    from neuron_jax.workers.smoke import smoke

    report = asyncio.run(smoke(ranks, platform, environ)).json()
    _print_json(report) if as_json else print_smoke(report, console())
    return 0 if report["ok"] else 1


def _platform(environ: Mapping[str, str]) -> Literal["cpu", "cuda"]:
    from neuron_jax.hardware.discover import discover as look

    devices = look(visible=environ.get("CUDA_VISIBLE_DEVICES")).devices
    return "cuda" if any(device.kind == "cuda" for device in devices) else "cpu"


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
    hardware, loads = _look(_configured(config, environ), environ)
    found = attrs.asdict(hardware)
    found["devices"] = [attrs.asdict(d) | attrs.asdict(load) for d, load in zip(hardware.devices, loads, strict=True)]
    _print_json(found) if as_json else print_hardware(found, console())


@app.command
def pull(
    model: str,
    *,
    revision: str | None = None,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> None:
    """Get a model's files: only those that are needed, going on where an earlier pull was stopped, and checked.

    Parameters
    ----------
    model:
        A built-in name, a configured id or alias, or org/name[@revision][:file.gguf] of the hub.
    revision:
        A branch, tag or commit of the hub's repository.
    config:
        A TOML file; it says where models are kept.
    as_json:
        Print JSON.
    """
    from neuron_jax.local_models import pull as pull_files

    with closing(pull_files(_configured(config, environ), model, revision)) as records:
        (found,) = show_progress(records, console(stderr=True))
    if as_json:
        return _print_json(found)
    console().print(f"{found['path']} ({found['bytes'] / MEGABYTE:,.1f} MB)", markup=False, soft_wrap=True)
    return None


@app.command
def convert(
    model: str,
    out: Path,
    *,
    source: str | None = None,
    quant: str | None = None,
    tensor_parallel: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> None:
    """Write a model as an engine of this host keeps it, quantized and sharded, so that the next load only reads.

    Parameters
    ----------
    model:
        An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.
    out:
        A folder that is not there yet. It is loaded as any other.
    source:
        Where the weights are, when the id does not say.
    quant:
        How weights are kept.
    tensor_parallel:
        Over how many devices the model will be spread.
    config:
        A TOML file with limits and models.
    as_json:
        Print JSON.
    """
    from neuron_jax.converting import convert as converted
    from neuron_jax.planning import resolve

    asked = _asked(model, source=source, quant=quant, tensor_parallel=tensor_parallel)
    loaded = _configured(config, environ)
    found = resolve(loaded, *_look(loaded, environ), asked)
    with closing(converted(found, out, environ)) as records:
        (last,) = show_progress(records, console(stderr=True))
    if as_json:
        return _print_json(last)
    made = ", ".join(f"{key} {value}" for key, value in last["made"].items())
    console().print(f"{last['path']} ({made})", markup=False, soft_wrap=True)
    return None


@app.command
def models(*, config: ConfigFile = None, as_json: Json = False, environ: Environ) -> None:
    """List the models that this host could load, and where their files are.

    Parameters
    ----------
    config:
        A TOML file with models.
    as_json:
        Print JSON.
    """
    from neuron_jax.local_models import listed

    found = [one.as_json() for one in listed(_configured(config, environ))]
    _print_json(found) if as_json else print_models(found, console())


@app.command
def rm(model: str, *, config: ConfigFile = None, environ: Environ) -> None:
    """Delete a model's files from the cache, whole or partly fetched. Files elsewhere are left alone.

    Parameters
    ----------
    model:
        A built-in name, a configured id or alias, or org/name[@revision][:file.gguf] of the hub.
    config:
        A TOML file; it says where models are kept.
    """
    from neuron_jax.local_models import remove

    freed = remove(_configured(config, environ), model)
    console().print(f"removed {model}: {freed / MEGABYTE:,.1f} MB", markup=False, soft_wrap=True)


@app.command
def plan(
    model: str,
    *,
    source: str | None = None,
    quant: str | None = None,
    kv_dtype: str | None = None,
    deterministic: Annotated[bool | None, Parameter(negative="")] = None,
    tensor_parallel: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    max_context: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    kv_mb: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    compile_all: Annotated[bool, Parameter(name="--compile", negative="")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> int:
    """Show where a model's memory would go on this host and what would be compiled, without loading it.

    Parameters
    ----------
    model:
        An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.
    source:
        Where the weights are, when the id does not say.
    quant:
        How weights are kept.
    kv_dtype:
        How keys and values are kept.
    deterministic:
        Give a request the same bits however it is served. Slower, but for the native CPU kernels.
    tensor_parallel:
        Over how many devices the model is spread.
    max_context:
        Tokens that one request must be able to hold, prompt and output.
    kv_mb:
        MiB of the KV pool, over all devices.
    compile_all:
        Compile every program, so that the next load finds them in the cache, and show what each takes.
    config:
        A TOML file with limits and models.
    as_json:
        Print JSON.
    """
    from neuron_jax.planning import compile_ahead, plan_model, resolve

    asked = _asked(
        model,
        source=source,
        quant=quant,
        kv_dtype=kv_dtype,
        deterministic=deterministic,
        tensor_parallel=tensor_parallel,
        max_context=max_context,
        kv_mb=kv_mb,
    )
    loaded = _configured(config, environ)
    hardware, loads = _look(loaded, environ)
    found = resolve(loaded, hardware, loads, asked)
    report = plan_model(found, loads).as_json()
    if compile_all and report["fits"]:
        _add_compiled(report, compile_ahead(found, environ))
    _print_json(report) if as_json else print_plan(report, console())
    return 0 if report["fits"] else 1


@app.command
def bench(
    model: str,
    *,
    streams: Numbers = (1, 4, 16),
    prompt: Count = 64,
    generate: Annotated[int, Parameter(validator=Number(gte=2))] = 64,
    prefill: Numbers = (512, 2048),
    long_prompt: Annotated[bool, Parameter(negative="")] = False,
    rounds: Count = 3,
    source: str | None = None,
    quant: str | None = None,
    kv_dtype: str | None = None,
    deterministic: Annotated[bool | None, Parameter(negative="")] = None,
    tensor_parallel: Annotated[int | None, Parameter(validator=Number(gte=1, lte=64))] = None,
    max_context: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    kv_mb: Annotated[int | None, Parameter(validator=Number(gte=1))] = None,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    plot: Path | None = None,
    config: ConfigFile = None,
    environ: Environ,
) -> None:
    """Measure an engine on this host: rates, waits, its start and memory, and what share of the machine it uses.

    Parameters
    ----------
    model:
        An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.
    streams:
        How many requests at once, one case for each number.
    prompt:
        Tokens of each of their prompts.
    generate:
        Tokens that each of them generates.
    prefill:
        Tokens of a prompt read alone, one case for each number.
    long_prompt:
        Also let a prompt of 4,000 tokens enter while streams run.
    rounds:
        How often every case is measured, after one time that is not counted.
    source:
        Where the weights are, when the id does not say.
    quant:
        How weights are kept.
    kv_dtype:
        How keys and values are kept.
    deterministic:
        Give a request the same bits however it is served. Slower, but for the native CPU kernels.
    tensor_parallel:
        Over how many devices the model is spread.
    max_context:
        Tokens that one request must be able to hold, prompt and output.
    kv_mb:
        MiB of the KV pool, over all devices.
    json_file:
        Write everything that was measured there.
    plot:
        Write a picture there, as PNG.
    config:
        A TOML file with limits and models.
    """
    from neuron_jax.benchmark.cases import LONG_PROMPT, Options
    from neuron_jax.benchmark.run import check_outputs, run_bench, write_outputs
    from neuron_jax.planning import resolve

    check_outputs(json_file, plot)
    asked = _asked(
        model,
        source=source,
        quant=quant,
        kv_dtype=kv_dtype,
        deterministic=deterministic,
        tensor_parallel=tensor_parallel,
        max_context=max_context,
        kv_mb=kv_mb,
    )
    loaded = _configured(config, environ)
    hardware, loads = _look(loaded, environ)
    found = resolve(loaded, hardware, loads, asked)
    options = Options(streams, prompt, generate, prefill, LONG_PROMPT if long_prompt else 0, rounds)
    with closing(run_bench(found.engine, options, hardware, environ)) as records:
        (last,) = show_progress(records, console(stderr=True))
    print_bench(last["report"], console())
    write_outputs(last["report"], json_file, plot)


@app.command
def quality(
    model: str,
    *,
    quant: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    source: str | None = None,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> None:
    """Measure what each format does to a model's predictions: perplexity, and the divergence from float32.

    Parameters
    ----------
    model:
        An id or alias, a folder, a .gguf file, or org/name of the hub. Nothing is fetched.
    quant:
        A format to measure, as often as wanted; all of them where none is named.
    source:
        Where the weights are, when the id does not say.
    config:
        A TOML file with limits and models.
    as_json:
        Print JSON.
    """
    from neuron_jax.planning import resolve
    from neuron_jax.quality.run import print_quality, report, run_quality

    loaded = _configured(config, environ)
    found = resolve(loaded, *_look(loaded, environ), _asked(model, source=source, tensor_parallel=1))
    with closing(run_quality(found.engine, found.described, quant, environ)) as records:
        rows = [record["quality"] for record in show_progress(records, console(stderr=True))]
    answer = report(found.engine, rows)
    _print_json(answer) if as_json else print_quality(answer, console())


def _asked(model: str, **flags: Any) -> dict[str, Any]:
    """A load request with what was given."""
    return {"model_id": model} | {key: value for key, value in flags.items() if value is not None}


def _add_compiled(report: dict[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """What compiling tells, into the plan's JSON."""
    out, compiled = console(stderr=True), {}
    for record in show_progress(records, out):
        if "plan" in record:
            report["plan"] = record["plan"]
            continue
        program = record["program"]
        compiled[program["name"]] = program
        if not out.is_terminal:
            out.print(program_line(program), markup=False)
    report["programs"] = [program | compiled[program["name"]] for program in report["programs"]]


def _configured(path: Path | None, environ: Mapping[str, str]) -> NeuronConfig:
    """File and variables. Raises ConfigError; a variable that sets nothing is only told."""
    config = load_config(path, environ)
    for line in unused_variables(environ):
        _say(line)
    return config


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


def _fail(message: object, code: int) -> int:
    _say(message)
    return code


def _say(message: object) -> None:
    Console(stderr=True).print(f"neuron: {message}", markup=False, highlight=False, soft_wrap=True)
