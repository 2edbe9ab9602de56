"""Commands that tell what a model takes and does on this host: plan, bench, quality; must not know HTTP or JAX."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from neuron_jax.cli.common import (
    UNSAID,
    ConfigFile,
    Count,
    Environ,
    Json,
    LoadFlags,
    configured,
    look,
    print_json,
)
from neuron_jax.tables import print_bench, print_plan, program_line
from neuron_jax.terminal import console, show_progress


def _numbers(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    """`1,4,16`, or `1 4 16`, or the option once for each."""
    found = tuple(int(text) for token in tokens for text in token.value.split(","))
    if not all(number >= 1 for number in found):
        raise ValueError("numbers from 1 on, with commas or spaces between them")
    return found


Numbers = Annotated[tuple[int, ...], Parameter(converter=_numbers, consume_multiple=True, negative="")]


def plan(
    model: str,
    *,
    load: LoadFlags = UNSAID,
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
    load:
        How the model is to be loaded.
    compile_all:
        Compile every program, so that the next load finds them in the cache, and show what each takes.
    config:
        A TOML file with limits and models.
    as_json:
        Print JSON.
    """
    from neuron_jax.planning import compile_ahead, plan_model, resolve

    loaded = configured(config, environ)
    hardware, loads = look(loaded, environ)
    found = resolve(loaded, hardware, loads, load.request(model))
    report = plan_model(found, loads).as_json()
    if compile_all and report["fits"]:
        _add_compiled(report, compile_ahead(found, environ))
    print_json(report) if as_json else print_plan(report, console())
    return 0 if report["fits"] else 1


def bench(
    model: str,
    *,
    streams: Numbers = (1, 4, 16),
    prompt: Count = 64,
    generate: Annotated[int, Parameter(validator=Number(gte=2))] = 64,
    prefill: Numbers = (512, 2048),
    long_prompt: Annotated[bool, Parameter(negative="")] = False,
    rounds: Count = 3,
    load: LoadFlags = UNSAID,
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
    load:
        How the model is to be loaded.
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
    loaded = configured(config, environ)
    hardware, loads = look(loaded, environ)
    found = resolve(loaded, hardware, loads, load.request(model))
    options = Options(streams, prompt, generate, prefill, LONG_PROMPT if long_prompt else 0, rounds)
    with closing(run_bench(found.engine, options, hardware, environ)) as records:
        (last,) = show_progress(records, console(stderr=True))
    print_bench(last["report"], console())
    write_outputs(last["report"], json_file, plot)


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

    loaded = configured(config, environ)
    found = resolve(loaded, *look(loaded, environ), LoadFlags(source=source, tensor_parallel=1).request(model))
    with closing(run_quality(found.engine, found.described, quant, environ)) as records:
        rows = [record["quality"] for record in show_progress(records, console(stderr=True))]
    answer = report(found.engine, rows)
    print_json(answer) if as_json else print_quality(answer, console())


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
