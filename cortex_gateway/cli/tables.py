"""What `cortex status` and `cortex models` print, from the gateway's JSON. Knows no HTTP."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cortex_gateway.cli.progress import amount
from cortex_gateway.placement.snapshot import LoadStatus

COLOURS = {"loaded": "green", "loading": "yellow", "recovering": "yellow", "draining": "yellow", "failed": "red"}
UNKNOWN = "-"
PIPED_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """Colours on a terminal; elsewhere plain and wide, so that nothing is cut."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = PIPED_WIDTH
    return made


def show_fleet(out: Console, fleet: dict[str, Any]) -> None:
    """One block per node: its devices, then its models."""
    for node in fleet["nodes"]:
        out.print(_headline(node))
        if node["devices"]:
            out.print(_devices(node["devices"]))
        held = [model for model in node["models"] if model["status"] != "unloaded"]
        idle = len(node["models"]) - len(held)
        if held:
            out.print(_replicas(held))
        if idle:
            out.print(
                f"  {idle} more {'model' if idle == 1 else 'models'} could be loaded (cortex models)", style="dim"
            )
    for model, count in fleet["waiting"].items():
        out.print(f"{count} {'request waits' if count == 1 else 'requests wait'} for {model}", style="yellow")


def show_models(out: Console, entries: list[dict[str, Any]]) -> None:
    """One line per id and alias."""
    table = _table("model", "loaded on", "could load on", "context", "does")
    for entry in entries:
        name = Text(entry["id"], style="bold" if entry["loaded"] else "")
        if "alias_of" in entry:
            name.append(f" → {entry['alias_of']}", style="dim")
        on = [place["node"] for place in entry["locations"] if place["status"] == "loaded"]
        context = entry.get("limit", {}).get("context")
        does = [*entry["capabilities"], *(word for word in ("tool_call", "reasoning") if entry[word])]
        table.add_row(name, _names(on), _names(entry["feasible_on"]), str(context or UNKNOWN), ", ".join(does))
    out.print(table)


def _headline(node: dict[str, Any]) -> Text:
    mark, words, colour = (
        ("●", "healthy", "green") if node["healthy"] else ("○", node["reason"] or "not seen yet", "red")
    )
    line = Text.assemble((f"{mark} ", colour), (node["name"], "bold"), f"  {node['endpoint']}  ", (words, colour))
    return line.append(f"  {node['busy']}", "yellow") if node["busy"] else line


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = _table("device", "name", "memory", "free", "busy", "temperature")
    for device in devices:
        table.add_row(
            f"{device['kind']}:{device['index']}",
            device["name"],
            _gib(device["vram_total_mb"]),
            _gib(device["vram_free_mb"]),
            _number(device["utilization_pct"], " %"),
            _number(device["temp_c"], " °C"),
        )
    return table


def _replicas(models: list[dict[str, Any]]) -> Table:
    table = _table("model", "status", "devices", "memory", "running", "waiting", "tokens/s")
    for model in models:
        load = model["load"]
        table.add_row(
            model["id"],
            _status(model),
            ",".join(map(str, model["devices"])) or UNKNOWN,
            _gib(model["vram_used_mb"]),
            f"{load['in_flight']}/{load['max_in_flight'] or UNKNOWN}",
            str(load["queue_depth"]),
            _number(load["tok_s_decode"] or None, ""),
        )
    return table


def _status(model: dict[str, Any]) -> Text:
    text = Text(model["status"], COLOURS.get(model["status"], ""))
    if model["status"] == "loading" and model["progress"]:
        status = LoadStatus(**model["progress"])
        text.append(f" {status.phase} {amount(status)}".rstrip())
    if model["last_error"]:
        text.append(f" {model['last_error']}", "red")
    if not model["servable"]:
        text.append(f" cannot serve: {model['unservable_detail'] or model['unservable_reason']}", "red")
    return text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1), header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or UNKNOWN


def _gib(mib: int | None) -> str:
    return UNKNOWN if mib is None else f"{mib / 1024:.1f} GiB"


def _number(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f}{unit}"
