"""What was seen, as tables of Markdown: beside what is hoped for and what was predicted; pure, knows the JSON's keys."""

from collections.abc import Mapping, Sequence
from typing import Any

HOPED = {("none", "1 stream"): 0.85, ("none", "64 streams"): 0.70, ("none", "prefill 2,048"): 0.60}
"""Shares of what the device can do at most."""

NAMES = {"none": "bfloat16"}
BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"


def text(report: Mapping[str, Any]) -> str:
    """All of it."""
    parts = [_device(report), _rates(report), _mixed(report), _starts(report), _stages(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def written(page: str, report: Mapping[str, Any]) -> str:
    """`page` with the tables in the place of those before. Raises ValueError where it has no place for them."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text(report)}{END}{tail}"


def _device(report: Mapping[str, Any]) -> str:
    device = report.get("device")
    if not device:
        return "The device could not be measured."
    limits = device["ceilings"]
    return (
        f"{device['name']}, jax {device['jax']}, {report['date']}: copies {limits['copy'] / 1e9:,.0f} GB/s, multiplies "
        f"{limits['dtype']} at {limits['matmul'] / 1e12:,.2f} Tflop/s. {report['shape']}, random weights."
    )


def _rates(report: Mapping[str, Any]) -> str:
    rows = [
        _rate(quant, row, report.get("predicted", {}).get(quant, {}))
        for quant, engine in report.get("engines", {}).items()
        for row in engine.get("cases", ())
        if row["kind"] in {"decode", "prefill"}
    ]
    heads = (
        "weights",
        "case",
        "tokens/s",
        "predicted",
        "share",
        "of what",
        "hoped for",
        "step ms",
        "device ms",
        "gap ms",
    )
    return _table(heads, rows)


def _rate(quant: str, row: Mapping[str, Any], predicted: Mapping[str, Any]) -> list[str]:
    decodes = row["kind"] == "decode"
    rate, share = (row["decode"], row["bandwidth"]) if decodes else (row["rate"], row["matmul"])
    if decodes:
        told = [one for one in predicted.get("decode", ()) if one["streams"] == row["streams"]]
    else:
        told = list(predicted.get("prefill", ()))
    hoped = HOPED.get((quant, row["case"]))
    times = [f"{row[name]:.2f}" if name in row else "" for name in ("step_ms", "device_ms", "gap_ms")]
    return [
        NAMES.get(quant, quant),
        row["case"],
        f"{rate:,.0f}",
        f"{told[0]['tokens_per_second']:,.0f}" if told else "",
        f"{share:.0%}",
        "copying" if decodes else "multiplying",
        f"{hoped:.0%}" if hoped else "",
        *times,
    ]


def _mixed(report: Mapping[str, Any]) -> str:
    rows = [
        [
            NAMES.get(quant, quant),
            row["case"],
            f"{row['first']:.2f}",
            *(
                f"{1e3 * row[part][name]:.1f}"
                for part, name in (("alone", "p50"), ("beside", "p50"), ("beside", "max"))
            ),
        ]
        for quant, engine in report.get("engines", {}).items()
        for row in engine.get("cases", ())
        if row["kind"] == "long prompt"
    ]
    heads = ("weights", "while a prompt enters", "its first token s", "gap before ms", "gap beside ms", "slowest ms")
    return _table(heads, rows) if rows else ""


def _starts(report: Mapping[str, Any]) -> str:
    rows = [
        [name, f"{one['ready_seconds']:.1f}", f"{one['load_rate'] / 1e9:.2f}", _phases(one["phases"])]
        for name in ("start cold", "start warm")
        if (one := report.get(name))
    ]
    return _table(("start", "ready s", "weights GB/s", "phases s"), rows) if rows else ""


def _phases(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())


def _stages(report: Mapping[str, Any]) -> str:
    rows = [[one["name"], f"{one['seconds']:.0f}", one["problem"] or "well"] for one in report["stages"]]
    return _table(("stage", "s", "ended"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
