"""The figures of a run as a picture: rates by streams, and what every step left of the ceilings; knows matplotlib."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG."""
    decode = [row for row in report["cases"] if row["kind"] == "decode"]
    prefill = [row for row in report["cases"] if row["kind"] == "prefill"]
    # A figure of its own, without pyplot: that would look for a window.
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    rates, gaps, shares = figure.subplots(1, 3)
    figure.suptitle(f"{report['model']['id']}, {', '.join(report['machine']['devices'])}, {report['date'][:10]}")
    _rates(rates, decode)
    _gaps(gaps, decode)
    _shares(shares, decode, prefill)
    figure.savefig(path, format="png", dpi=120)


def _rates(axes: Any, decode: list[Mapping[str, Any]]) -> None:
    streams = [str(row["streams"]) for row in decode]
    axes.bar(streams, [row["decode"] for row in decode], label="all streams")
    axes.plot(streams, [row["stream"] for row in decode], "o-", color="black", label="one of them")
    axes.set(xlabel="streams", ylabel="tokens per second", title="decoding")
    axes.legend()


def _gaps(axes: Any, decode: list[Mapping[str, Any]]) -> None:
    streams = [str(row["streams"]) for row in decode]
    for name in ("p50", "p95", "p99", "max"):
        axes.plot(streams, [row["gaps"][name] * 1000 for row in decode], "o-", label=name)
    axes.set(xlabel="streams", ylabel="ms", title="between tokens", ylim=(0, None))
    axes.legend()


def _shares(axes: Any, decode: list[Mapping[str, Any]], prefill: list[Mapping[str, Any]]) -> None:
    """Of copy bandwidth where a step decodes, of the matmul rate where it reads a prompt."""
    names = [f"{row['case']}\nbandwidth" for row in decode] + [f"{row['case']}\nmatmul" for row in prefill]
    values = [row["bandwidth"] for row in decode] + [row["matmul"] for row in prefill]
    axes.barh(names, [value * 100 for value in values])
    axes.invert_yaxis()
    axes.set(xlabel="% of what the machine was measured to do", title="of the ceiling")
