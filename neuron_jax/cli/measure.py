"""Commands that tell what a model takes and does on this host: plan, bench, quality; must not know HTTP or JAX."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from attrs import frozen
from cyclopts import Parameter, Token
from cyclopts.validators import Number

from neuron_jax.cli.common import (
    UNSAID,
    ConfigFile,
    Count,
    Degree,
    Environ,
    Json,
    LoadFlags,
    Model,
    configured,
    fail,
    look,
    print_json,
)
from neuron_jax.config import NeuronConfig
from neuron_jax.tables import print_bench, print_plan, program_line
from neuron_jax.tables_abroad import print_abroad, print_cards
from neuron_jax.terminal import console, show_progress

if TYPE_CHECKING:
    from neuron_jax.abroad import Planned
    from neuron_jax.benchmark.cases import Options
    from neuron_jax.hardware.cards import Card


def _numbers(_: object, tokens: Sequence[Token]) -> tuple[int, ...]:
    """`1,4,16`, or `1 4 16`, or the option once for each."""
    found = tuple(int(text) for token in tokens for text in token.value.split(","))
    if not all(number >= 1 for number in found):
        raise ValueError("numbers from 1 on, with commas or spaces between them")
    return found


Numbers = Annotated[tuple[int, ...], Parameter(converter=_numbers, consume_multiple=True, negative="")]


@Parameter(name="*")
@frozen(kw_only=True)
class CaseFlags:
    """What `bench` measures."""

    streams: Annotated[Numbers, Parameter(help="How many requests at once, one case for each number.")] = (1, 4, 16)
    prompt: Annotated[Count, Parameter(help="Tokens of each of their prompts.")] = 64
    generate: Annotated[int, Parameter(validator=Number(gte=2), help="Tokens that each of them generates.")] = 64
    prefill: Annotated[Numbers, Parameter(help="Tokens of a prompt read alone, one case for each number.")] = (
        512,
        2048,
    )
    long_prompt: Annotated[
        bool, Parameter(negative="", help="Also let a prompt of 4,000 tokens enter while streams run.")
    ] = False
    rounds: Annotated[
        Count, Parameter(help="How often every case is measured, after one time that is not counted.")
    ] = 3

    def options(self) -> "Options":
        """The same for a benchmark."""
        from neuron_jax.benchmark.cases import LONG_PROMPT, Options

        entering = LONG_PROMPT if self.long_prompt else 0
        return Options(self.streams, self.prompt, self.generate, self.prefill, entering, self.rounds)


@Parameter(name="*")
@frozen(kw_only=True)
class OutputFlags:
    """Where `bench` writes what it has measured, besides the terminal."""

    json_file: Annotated[Path | None, Parameter(name="--json", help="Write everything that was measured there.")] = None
    plot: Annotated[Path | None, Parameter(help="Write a picture there, as PNG.")] = None


USUAL, NOWHERE = CaseFlags(), OutputFlags()


def plan(
    model: Model,
    *,
    load: LoadFlags = UNSAID,
    device: str | None = None,
    count: Degree | None = None,
    every_card: Annotated[bool, Parameter(name="--all", negative="")] = False,
    compile_all: Annotated[bool, Parameter(name="--compile", negative="")] = False,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> int:
    """Show where a model's memory would go on this host, or on a card that is not here, and what would be compiled.

    Nothing is loaded. For a card, a folder with a config.json is enough.

    Parameters
    ----------
    load:
        How the model is to be loaded.
    device:
        A card that need not be here, such as h100, a100, l40s, l4, 4090, 5090 or 3060: plan for it, compile for it and
        predict rates.
    count:
        How many of that card there are; without --tensor-parallel the model is spread over all of them.
    every_card:
        List the cards that the model fits on, the smallest first.
    compile_all:
        Compile every program and show what each takes. On this host, so that the next load finds them in the cache; for a card
        that is not here all layers of all programs, in place of the few that rates are told by.
    """
    from neuron_jax.planning import compile_ahead, plan_model, resolve

    loaded = configured(config, environ)
    if device is not None or every_card:
        return _abroad(loaded, load.request(model), device, count, every=compile_all, as_json=as_json, environ=environ)
    if count is not None:
        return fail("--count goes with --device", 2)
    hardware, loads = look(loaded, environ)
    found = resolve(loaded, hardware, loads, load.request(model))
    report = plan_model(found, loads).as_json()
    if compile_all and report["fits"]:
        _add_compiled(report, compile_ahead(found, environ))
    print_json(report) if as_json else print_plan(report, console())
    return 0 if report["fits"] else 1


def bench(
    model: Model,
    *,
    cases: CaseFlags = USUAL,
    load: LoadFlags = UNSAID,
    outputs: OutputFlags = NOWHERE,
    config: ConfigFile = None,
    environ: Environ,
) -> None:
    """Measure an engine on this host: rates, waits, its start and memory, and what share of the machine it uses.

    Parameters
    ----------
    cases:
        What is measured.
    load:
        How the model is to be loaded.
    outputs:
        Where that is written to.
    """
    from neuron_jax.benchmark.run import check_outputs, run_bench, write_outputs
    from neuron_jax.planning import resolve

    check_outputs(outputs.json_file, outputs.plot)
    loaded = configured(config, environ)
    hardware, loads = look(loaded, environ)
    found = resolve(loaded, hardware, loads, load.request(model))
    with closing(run_bench(found.engine, cases.options(), hardware, environ)) as records:
        (last,) = show_progress(records, console(stderr=True))
    print_bench(last["report"], console())
    write_outputs(last["report"], outputs.json_file, outputs.plot)


def quality(
    model: Model,
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
    quant:
        A format to measure, as often as wanted; all of them where none is named.
    source:
        Where the weights are, when the id does not say.
    """
    from neuron_jax.planning import resolve
    from neuron_jax.quality.run import print_quality, report, run_quality

    loaded = configured(config, environ)
    found = resolve(loaded, *look(loaded, environ), LoadFlags(source=source, tensor_parallel=1).request(model))
    with closing(run_quality(found.engine, found.described, quant, environ)) as records:
        rows = [record["quality"] for record in show_progress(records, console(stderr=True))]
    answer = report(found.engine, rows)
    print_json(answer) if as_json else print_quality(answer, console())


def _abroad(
    config: NeuronConfig,
    asked: Mapping[str, Any],
    device: str | None,
    count: int | None,
    *,
    every: bool,
    as_json: bool,
    environ: Mapping[str, str],
) -> int:
    """The plan for one card, or for all of them where none is named."""
    from neuron_jax.abroad import fitting, plan_abroad, wanted
    from neuron_jax.hardware.cards import UnknownCardError, card

    if device is None:
        found = fitting(wanted(config, asked))
        print_json(found) if as_json else print_cards(found, asked["model_id"], console())
        return 0 if found else 1
    try:
        one = card(device)
    except UnknownCardError as error:
        return fail(error, 2)
    devices = asked.get("tensor_parallel") or count or 1
    count = count or devices
    if count % devices:
        return fail(f"{count} cards make no whole number of engines over {devices}", 2)
    model = wanted(config, {**asked, "tensor_parallel": devices})
    report = plan_abroad(model, one, count, devices)
    if report["fits"] and not report["not_compiled"]:
        _add_abroad(report, model, one, every=every, environ=environ)
    print_json(report) if as_json else print_abroad(report, console())
    return 0 if report["fits"] else 1


def _add_abroad(
    report: dict[str, Any], model: "Planned", one: "Card", *, every: bool, environ: Mapping[str, str]
) -> None:
    """What compiling for the card tells, into the plan's JSON."""
    from neuron_jax.abroad import compile_abroad

    records = compile_abroad(model, one, report["tensor_parallel"], every=every, inherited=environ)
    for record in show_progress(records, console(stderr=True)):
        if "program" in record:
            report["compiled"].append(record["program"])
        else:
            report |= record


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
