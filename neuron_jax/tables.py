"""What the commands of a neuron show people: tables and lines; knows the JSON of each answer, computes none of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from neuron_jax.benchmark.show import headline, tables
from neuron_jax.terminal import MEGABYTE

MIB = 2**20


def print_hardware(found: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron discover`."""
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


def print_models(found: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The answer of `neuron models`."""
    table = Table("model", "also called", "MB", "files")
    table.columns[2].justify = "right"
    for row in found:
        size = f"{row['bytes'] / MEGABYTE:,.1f}" if row["path"] else ""
        where = row["broken"] or row["path"] or "not here yet"
        table.add_row(row["id"], ", ".join(row["aliases"]), size, where)
    console.print(table, markup=False)


def print_smoke(report: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron tp-smoke`."""
    table = Table("rank", "state", "observed", "failed of")
    for row in report["ranks"]:
        observed = "" if row["value"] is None else str(row["value"])
        table.add_row(str(row["rank"]), row["phase"], observed, row["kind"] or "")
    console.print(table)
    for row in report["ranks"]:
        if row["message"]:
            console.print(f"rank {row['rank']}: {row['message']}", markup=False, highlight=False, soft_wrap=True)
    world, how = report["world"], f"on {report['platform']}, {report['seconds']:.1f} s"
    console.print(
        f"{'ok' if report['ok'] else 'failed'}: {world} ranks, and each must see a sum of {world} ({how})", markup=False
    )


def print_plan(report: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron plan`."""
    places = ", ".join(str(index) for index in report["devices"])
    console.print(
        f"{report['model']}: {report['parameters']:,} parameters on {report['platform']} {places}", markup=False
    )
    for key, what in (("quant", "weights"), ("kv_dtype", "keys and values")):
        told = report[key]
        console.print(f"{what}: {key} {told['chosen']} ({told['reason']})", markup=False, soft_wrap=True)
    table = Table("on each device", "MiB")
    table.columns[1].justify = "right"
    for row in report["plan"]:
        table.add_row(row["what"], _mib(row["bytes"]))
    console.print(table)
    if not report["fits"]:
        console.print(f"does not fit. {report['suggestion']}", markup=False, soft_wrap=True)
        return
    console.print(
        f"fits: requests of up to {report['max_context']:,} of the model's {report['context_length']:,} tokens"
    )
    _print_programs(report["programs"], console)


def print_bench(report: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron bench`."""
    for line in headline(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for table in tables(report):
        console.print(table)


def program_line(program: Mapping[str, Any]) -> str:
    """One program of `neuron plan --compile`, where there is no table to grow."""
    how = "read from the cache" if program["from_cache"] else "compiled"
    return (
        f"{program['name']}: lowered in {program['lower_seconds']:.2f} s, {how} in {program['compile_seconds']:.2f} s"
    )


def _print_programs(programs: Sequence[Mapping[str, Any]], console: Console) -> None:
    essential = sum(program["essential"] for program in programs)
    console.print(f"{len(programs)} programs; ready with the first {essential}, the others are compiled behind")
    if any("compile_seconds" in program for program in programs):
        console.print(_compiled(programs))
    else:
        console.print(", ".join(program["name"] for program in programs), markup=False, highlight=False, soft_wrap=True)


def _compiled(programs: Sequence[Mapping[str, Any]]) -> Table:
    parts = ("argument", "output", "temp", "alias", "code")
    table = Table(caption="seconds, and MiB on each device")
    table.add_column("program", no_wrap=True)
    for name in ("lower", "compile", "cached", "args", "out", "temp", "alias", "code"):
        table.add_column(name, justify="right", no_wrap=True)
    for program in programs:
        memory = program["memory"]
        sizes = [_mib(memory[part]) for part in parts] if memory else ["?"] * len(parts)
        seconds = (f"{program[name]:.2f}" for name in ("lower_seconds", "compile_seconds"))
        table.add_row(program["name"], *seconds, "yes" if program["from_cache"] else "", *sizes)
    return table


def _kind(device: Mapping[str, Any]) -> str:
    capability = device["compute_capability"]
    return f"{device['kind']} {capability}" if capability else str(device["kind"])


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f}"
