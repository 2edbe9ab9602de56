"""The report of a run as lines and tables for a terminal; knows its keys (benchmark.report), measures nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

MIB = 2**20


def headline(report: Mapping[str, Any]) -> list[str]:
    """Lines above the tables: what was measured, on what, and how it started."""
    model, machine, versions = report["model"], report["machine"], report["versions"]
    start, memory, ceilings = report["start"], report["memory"], report["ceilings"]
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in start["phases"].items())
    sizes = {name: f"{memory[name] / MIB:,.0f} MiB" for name in ("resident", "weights", "kv", "peak")}
    besides = memory["resident"] - memory["weights"] - memory["kv"]
    return [
        f"{model['id']}: quant {model['quant']['chosen']} ({model['quant']['reason']})",
        f"{', '.join(machine['devices'])}; {machine['cores']} cores, jax {versions['jax']}, {report['date']}",
        f"start: ready after {start['seconds']:.1f} s ({phases})",
        f"all {start['programs']} programs: after {start['all_programs_seconds']:.1f} s",
        f"memory: {sizes['resident']} = weights {sizes['weights']} + KV {sizes['kv']} + {besides / MIB:,.0f} MiB",
        f"most memory while loading: {sizes['peak']}",
        f"copying: {ceilings['copy'] / 1e9:,.1f} GB/s",
        f"{ceilings['dtype']} matmul: {ceilings['matmul'] / 1e9:,.0f} GFLOP/s",
    ]


def tables(report: Mapping[str, Any]) -> list[Table]:
    """One table for each kind of case that was measured."""
    kinds = {"decode": _decode_table, "prefill": _prefill_table, "long prompt": _long_table}
    rows = {kind: [row for row in report["cases"] if row["kind"] == kind] for kind in kinds}
    return [*(make(rows[kind]) for kind, make in kinds.items() if rows[kind]), _engine_table(report["cases"])]


def _decode_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    rates = ("all streams\ntok/s", "decoding\ntok/s", "one stream\ntok/s", "of copy\nbandwidth")
    table = _table("generating", *rates, "first token ms\np50 / p95", "between tokens ms\np50 / p95 / p99 / max")
    for row in rows:
        first, gaps = row["first"], row["gaps"]
        # Tokens that come together are one arrival, and the gap is that between arrivals.
        together = f", by {row['tokens_per_gap']:.1f}" if row["tokens_per_gap"] > 1.05 else ""
        table.add_row(
            row["case"],
            *(f"{row[name]:,.1f}" for name in ("total", "decode", "stream")),
            _percent(row["bandwidth"]),
            " / ".join(_ms(first[name]) for name in ("p50", "p95")),
            " / ".join(_ms(gaps[name]) for name in ("p50", "p95", "p99", "max")) + together,
        )
    return table


def _prefill_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("prompt", "tok/s", "first token ms", "of matmul rate")
    for row in rows:
        table.add_row(row["case"], f"{row['rate']:,.0f}", _ms(row["first"]["p50"]), _percent(row["matmul"]))
    return table


def _long_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    gaps = ("gap before\nms", "gap beside\nms", "slowest\nms", "slowest /\nbefore", "slowest /\nbeside")
    table = _table("while a prompt enters", "its first\ntoken s", *gaps)
    for row in rows:
        times = (row["alone"]["p50"], row["beside"]["p50"], row["beside"]["max"])
        ratios = (f"{row[name]:.2f}" for name in ("ratio", "ratio_beside"))
        table.add_row(row["case"], f"{row['first']:.2f}", *(_ms(time) for time in times), *ratios)
    return table


def _engine_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in rows[0]["engine"] if name != "steps"]
    table = _table("ms of a step", *names, "steps")
    for row in rows:
        parts = row["engine"]
        table.add_row(row["case"], *(f"{parts[name]:,.2f}" for name in names), f"{parts['steps']:,.0f}")
    return table


def _table(first: str, *names: str) -> Table:
    table = Table()
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f}"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
