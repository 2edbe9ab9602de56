"""What `neuron plan --device` and `--all` show people; knows the JSON of their answers, computes none of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

MIB = 2**20


def print_abroad(report: Mapping[str, Any], console: Console) -> None:
    """The answer of `neuron plan MODEL --device CARD`."""
    device, devices, replicas = report["device"], report["tensor_parallel"], report["replicas"]
    spread = f", over {devices} of them" if devices > 1 else ""
    side = f", {replicas} engines side by side" if replicas > 1 else ""
    _line(
        console,
        f"{report['model']}: {report['parameters']:,} parameters on {device['count']} x {device['name']} "
        f"({device['memory_mb']:,} MiB){spread}{side}",
    )
    _print_formats(report, console)
    table = Table("on each card, when it is empty", "MiB")
    table.columns[1].justify = "right"
    for row in report["plan"]:
        table.add_row(row["what"], f"{row['bytes'] / MIB:,.1f}")
    console.print(table)
    if not report["fits"]:
        _line(console, f"does not fit. {report['suggestion']}")
        return
    _line(
        console, f"fits: requests of up to {report['max_context']:,} of the model's {report['context_length']:,} tokens"
    )
    _line(console, "at once: " + _streams(report["streams"]))
    _line(console, f"{len(report['programs'])} programs: {', '.join(report['programs'])}")
    _print_compiled(report, console)
    _print_predicted(report, console)


def print_cards(found: Sequence[Mapping[str, Any]], model: str, console: Console) -> None:
    """The answer of `neuron plan MODEL --all`."""
    if not found:
        _line(console, f"{model} fits on none of the known cards, nor on eight of one kind")
        return
    table = Table("card", "how many", "MiB", "longest request", "texts at once", "one stream, at most")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in found:
        table.add_row(
            row["card"],
            str(row["count"]),
            f"{row['memory_mb']:,}",
            f"{row['max_context']:,}",
            _streams(row["streams"][:3]),
            f"{row['at_most_tokens_per_second']:,.0f} tokens/s",
        )
    console.print(table)
    _line(
        console,
        "At most: what reading the weights once a token leaves of the bandwidth. Predictions: neuron plan MODEL --device CARD",
    )


def _print_formats(report: Mapping[str, Any], console: Console) -> None:
    for key, what in (("quant", "weights"), ("kv_dtype", "keys and values")):
        if key in report:
            _line(console, f"{what}: {key} {report[key]['chosen']} ({report[key]['reason']})")


def _print_compiled(report: Mapping[str, Any], console: Console) -> None:
    if report["not_compiled"]:
        _line(console, report["not_compiled"])
        _line(
            console, f"one stream, at most: {report['at_most_tokens_per_second']:,.0f} tokens/s, by reading the weights"
        )
        return
    table = Table("program", "lower s", "compile s", "arguments MiB", "temporary", "aliased")
    for column in table.columns[1:]:
        column.justify = "right"
    for program in report["compiled"]:
        memory = (f"{program['memory'][part] / MIB:,.1f}" for part in ("argument", "temp", "alias"))
        seconds = (f"{program[part]:.1f}" for part in ("lower_seconds", "compile_seconds"))
        table.add_row(program["name"], *seconds, *memory)
    console.print(table)
    layers = {program["layers"] for program in report["compiled"]}
    _line(console, f"compiled without the card, {max(layers)} layers of the model; attention: {report['attention']}")


def _print_predicted(report: Mapping[str, Any], console: Console) -> None:
    found = report["predicted"]
    if found is None:
        return
    table = Table(
        "predicted, not measured", "tokens/s", "ms a step", "memory, products", "launches", "waits", "other cards"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found["decode"]:
        table.add_row(f"{row['streams']} streams of {row['context']:,} tokens", *_rate(row))
    for row in found["prefill"]:
        table.add_row(f"a prompt's first {row['tokens']:,} tokens", *_rate(row))
    console.print(table)
    _line(console, f"one stream, at most: {report['at_most_tokens_per_second']:,.0f} tokens/s, by reading the weights")
    for line in found["assumed"]:
        _line(console, f"assumed: {line}")


def _rate(row: Mapping[str, Any]) -> list[str]:
    parts = (row["of_which"][name] for name in ("work", "launching", "waiting", "exchanging"))
    return [f"{row['tokens_per_second']:,.0f}", f"{row['milliseconds']:,.2f}", *(f"{part:,.2f}" for part in parts)]


def _streams(rows: Sequence[Mapping[str, int]]) -> str:
    return ", ".join(f"{row['streams']} of {row['context']:,} tokens" for row in rows)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
