"""What `cortex status`, `models`, `requests` and `keys` print, from JSON. Knows no HTTP."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cortex_gateway.cli.progress import amount
from cortex_gateway.placement.snapshot import LoadStatus

COLOURS = {"loaded": "green", "loading": "yellow", "recovering": "yellow", "draining": "yellow", "failed": "red"}
FEATURES = {"tool_call": "tools", "reasoning": "reasoning"}
KEY_LIMITS = {
    "requests_per_minute": "requests/min",
    "tokens_per_minute": "tokens/min",
    "max_concurrent": "at once",
}
PROSPECTS = {
    "serves": "serves it",
    "loading": "is loading it",
    "room": "has room",
    "evicts": "once some have left",
    "none": "no",
}
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
    for place, node in enumerate(fleet["nodes"]):
        out.print(*[""] * bool(place), _headline(node), sep="\n")
        if node["devices"]:
            out.print(Padding.indent(_devices(node["devices"]), 2))
        held = [model for model in node["models"] if model["status"] != "unloaded"]
        idle = len(node["models"]) - len(held)
        if held:
            out.print(Padding.indent(_replicas(held, node["devices"]), 2))
        for member in node.get("members", ()):
            out.print(Padding.indent(_lent(member, node["devices"]), 2))
        for trouble in filter(None, map(_troubles, held)):
            out.print(Padding.indent(Text(trouble, "red"), 2))
        if idle:
            out.print(
                f"  {idle} more {'model' if idle == 1 else 'models'} could be loaded (cortex models)", style="dim"
            )
    for model, count in fleet["waiting"].items():
        out.print(f"{count} {'request waits' if count == 1 else 'requests wait'} for {model}", style="yellow")


def show_models(out: Console, listing: dict[str, Any]) -> None:
    """One line per id and alias."""
    table = _table("model", "loaded on", "could load on", ">context", "features")
    for entry in listing["data"]:
        name = Text(entry["id"], style="bold" if entry["loaded"] else "")
        if "alias_of" in entry:
            name.append(f" → {entry['alias_of']}", style="dim")
        on = [place["node"] for place in entry["locations"] if place["status"] == "loaded"]
        context = entry.get("limit", {}).get("context")
        features = [*entry["capabilities"], *(words for key, words in FEATURES.items() if entry[key])]
        length = f"{context:,}" if context else UNKNOWN
        table.add_row(name, _names(on), _names(entry["feasible_on"]), length, ", ".join(features))
    out.print(table)


def show_plan(out: Console, plan: dict[str, Any]) -> None:
    """What would be done, then one line per node."""
    out.print(Text(f"{plan['model']}: {_would(plan['would'])}", "bold"))
    table = _table("node", "could", "devices", ">MiB on each", "would leave", "why not")
    for one in plan["nodes"]:
        victims = [f"{name} (in use)" if name in one["in_use"] else name for name in one["victims"]]
        devices = ", ".join(map(str, one["devices"])) or (f"any {one['shards']}" if one["state"] == "room" else UNKNOWN)
        size = UNKNOWN if one["needs_mb"] is None else f"{one['needs_mb']:,}"
        words = Text(PROSPECTS[one["state"]], "red" if one["state"] == "none" else "green")
        table.add_row(Text(one["node"], "bold"), words, devices, size, _names(victims), Text(one["reason"] or ""))
    out.print(table)


def _would(decision: dict[str, Any]) -> str:
    match decision["do"]:
        case "serve":
            return f"is served by {decision['node']}"
        case "join":
            return f"is being loaded on {decision['node']}"
        case "recover":
            return f"is recovering on {decision['node']}"
        case "load":
            lent = [lender["node"] for lender in decision["lenders"]]
            leaving = [*decision["victims"], *(name for one in decision["lenders"] for name in one["victims"])]
            together = f" together with {', '.join(lent)}" if lent else ""
            return f"would be loaded on {decision['node']}{together}" + (
                f", for which {', '.join(leaving)} would leave" if leaving else ""
            )
        case "wait":
            return f"would wait: {decision['reason']}"
        case _:
            return f"would be refused: {decision['reason']}"


def show_requests(out: Console, listing: dict[str, Any]) -> None:
    """One line per request, the oldest first."""
    if not listing["requests"]:
        out.print("no request is under way", style="dim")
        return
    table = _table("id", "model", "node", "state", ">seconds", ">pieces", "key", "dialect")
    for one in listing["requests"]:
        table.add_row(
            Text(one["id"], "bold"),
            Text(one["model"]),
            one["node"] or UNKNOWN,
            Text(one["state"], "yellow" if one["state"] == "queued" else "green"),
            f"{one['seconds']:.1f}",
            str(one["pieces"]),
            Text(one["key"] or UNKNOWN),
            one["dialect"],
        )
    out.print(table)


def show_changes(out: Console, answer: dict[str, Any]) -> None:
    """What the gateway follows from now on, and what it will follow once it is started again."""
    followed = {what: names for what, names in answer.items() if what not in ("status", "needs_restart") and names}
    for what, names in followed.items():
        out.print(Text(f"{what}: {', '.join(names)}", "green"))
    if answer["needs_restart"]:
        out.print(Text(f"needs a restart: {', '.join(answer['needs_restart'])}", "yellow"))
    if not (followed or answer["needs_restart"]):
        out.print("the files say what they said before", style="dim")


def show_keys(out: Console, keys: list[dict[str, Any]]) -> None:
    """One line per key."""
    table = _table("name", "id", "status", "scopes", "models", "limits", "expires")
    for key in keys:
        table.add_row(
            Text(key["name"], "bold"),
            key["id"],
            Text(key["status"], "green" if key["status"] == "active" else "red"),
            ", ".join(key["scopes"]),
            _names(key["models"]) if key["models"] else "all",
            ", ".join(f"{key[field]} {words}" for field, words in KEY_LIMITS.items() if key[field]) or UNKNOWN,
            key["expires"] or "never",
        )
    out.print(table)


def show_key(out: Console, key: dict[str, Any]) -> None:
    """One line per field."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for name, value in key.items():
        words = _names(value) if isinstance(value, list) else UNKNOWN if value is None else str(value)
        table.add_row(Text(name.replace("_", " "), "dim"), words)
    out.print(table)


def show_finding(out: Console, finding: dict[str, Any]) -> None:
    """One line, and a second with what to do."""
    mark = Text("✓ ", "green") if finding["holds"] else Text("✗ ", "red")
    detail = " ".join(finding["detail"].split())
    out.print(mark, f"{finding['dialect']:<10}{finding['check']:<11}", Text(detail[:300]), sep="", soft_wrap=True)
    if finding["remedy"]:
        out.print(f"  {'':<21}{finding['remedy']}", style="yellow", markup=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """For scripts."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _headline(node: dict[str, Any]) -> Text:
    mark, words, colour = (
        ("●", "healthy", "green") if node["healthy"] else ("○", node["reason"] or "not seen yet", "red")
    )
    line = Text.assemble((f"{mark} ", colour), (node["name"], "bold"), f"  {node['endpoint']}  ", (words, colour))
    if node["healthy"] and node.get("doubted"):
        line.append(f"  a request could not reach it: {node['reason']}", "yellow")
    return line.append(f"  {node['busy']}", "yellow") if node["busy"] else line


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = _table("device", "name", ">memory", ">free", ">busy", ">temperature", ">power")
    for device in devices:
        table.add_row(
            f"{device['kind']}:{device['index']}",
            device["name"],
            _gib(device["vram_total_mb"]),
            _gib(device["vram_free_mb"]),
            _number(device["utilization_pct"], " %"),
            _number(device["temp_c"], " °C"),
            _number(device["power_w"], " W"),
        )
    return table


def _lent(member: dict[str, Any], devices: list[dict[str, Any]]) -> Text:
    names = _device_names(devices)
    on = _names(names.get(index, str(index)) for index in member["devices"])
    text = Text.assemble("member of ", (member["model"], "bold"), f", led by {member['leader']}: {on}")
    return text.append(", which is ending", "yellow") if member["leads"] == "no" else text


def _elsewhere(model: dict[str, Any]) -> list[str]:
    """The hosts that lend to a group which this node leads. The leader's own ranks come first."""
    ranks = (model.get("group") or {}).get("ranks", [])
    return [
        f"{rank['host']}:{index}" for rank in ranks if rank["host"] != ranks[0]["host"] for index in rank["devices"]
    ]


def _device_names(devices: list[dict[str, Any]]) -> dict[int, str]:
    return {device["index"]: f"{device['kind']}:{device['index']}" for device in devices}


def _replicas(models: list[dict[str, Any]], devices: list[dict[str, Any]]) -> Table:
    names = _device_names(devices)
    table = _table("model", "status", "devices", ">memory", ">running", ">waiting", ">tokens/s")
    for model in models:
        load = model["load"]
        table.add_row(
            model["id"],
            _status(model),
            _names([*(names.get(index, str(index)) for index in model["devices"]), *_elsewhere(model)]),
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
    elif not model["servable"] and model["status"] != "failed":
        text.append(", cannot serve", "red")
    return text


def _troubles(model: dict[str, Any]) -> str:
    """Why it failed, cannot serve or rests, which may be one and the same; empty where nothing is wrong."""
    why = None if model["servable"] else model["unservable_detail"] or model["unservable_reason"]
    said = "; ".join(dict.fromkeys(filter(None, (model["last_error"], why, _rest(model.get("circuit") or {})))))
    return said if said.startswith(model["id"]) or not said else f"{model['id']}: {said}"


def _rest(circuit: dict[str, Any]) -> str:
    """Nothing while the replica gets its share of requests."""
    if circuit.get("state", "closed") == "closed":
        return ""
    when = (
        f"for {circuit['rests_secs']:.0f} s more" if circuit["state"] == "open" else "until the next request tries it"
    )
    return f"rests {when} after {circuit['failures']} failures in a row ({circuit['reason']})"


def _table(*columns: str) -> Table:
    """Columns of words, and with `>` of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), overflow="fold", justify="right" if right else "left")
    return table


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or UNKNOWN


def _gib(mib: int | None) -> str:
    return UNKNOWN if mib is None else f"{mib / 1024:.1f} GiB"


def _number(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f}{unit}"
