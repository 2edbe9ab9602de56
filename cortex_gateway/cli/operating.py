"""Commands of an operator that ask a running gateway and show what it says. Knows routes, no fleet."""

import sys
from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import httpx
from cyclopts import Parameter
from rich.console import Console

from cortex_gateway.cli import tables
from cortex_gateway.cli.api import Api, CommandError
from cortex_gateway.cli.flags import ASK, DEFAULT_ENDPOINT, HOW, WHERE, Ask, Endpoint, How, Json, Model, Where, body
from cortex_gateway.cli.progress import LoadBars
from cortex_gateway.placement.snapshot import LoadStatus

ANSWER_SECS = 5.0


def status(*, ask: Ask = ASK, json: Json = False) -> int:
    """Show every node with its devices and the models on it."""
    return _show(ask.api().get("/admin/fleet"), tables.show_fleet, json=json)


def health(
    *,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    ready: Annotated[bool, Parameter(negative="", help="Exit code 1, too, while no node answers.")] = False,
) -> int:
    """Ask whether the gateway answers, as health checks of containers do. The exit code is 1 if not within 5 seconds."""
    state = Api(endpoint, patience=httpx.Timeout(ANSWER_SECS)).get("/health")["status"]
    sys.stdout.write(f"{state}\n")
    return 1 if ready and state == "degraded" else 0


def models(*, ask: Ask = ASK, json: Json = False) -> int:
    """List every model that is loaded or could be loaded on any node."""
    return _show(ask.api().get("/v1/models"), tables.show_models, json=json)


def load(
    model: Model,
    *,
    where: Where = WHERE,
    how: How = HOW,
    reload: Annotated[
        bool, Parameter(negative="", help="If it is loaded already, load it again once its requests have ended.")
    ] = False,
    ask: Ask = ASK,
    json: Json = False,
) -> int:
    """Load a model and wait until it serves."""
    gateway, asked = ask.api(), body(where, how, model=model, reload=reload or None)
    if json:
        tables.print_json(gateway.post("/admin/load", asked))
        return 0
    out = tables.console()
    with LoadBars(out) as bars, gateway.events("/admin/load", asked) as events:
        ended = False
        for event in events:
            ended = event.get("status") == "loaded"
            if not ended:
                bars.report(LoadStatus(**{name: event[name] for name in ("phase", "done", "total", "unit")}))
    if not ended:
        raise CommandError(f"the gateway ended the load of {model} without saying how it went")
    out.print(f"{model} is loaded", style="green")
    return 0


def plan(model: Model, *, where: Where = WHERE, ask: Ask = ASK, json: Json = False) -> int:
    """Show where a load would put a model in the fleet as it is, and who would leave for it. Nothing is begun."""
    return _show(ask.api().post("/admin/plan", body(where, model=model)), tables.show_plan, json=json)


def unload(
    model: Model,
    *,
    node: Annotated[str | None, Parameter(help="Unload it there only.")] = None,
    ask: Ask = ASK,
    json: Json = False,
) -> int:
    """Unload a model once its running requests have ended."""
    answer = ask.api().post("/admin/unload", body(model=model, node=node))
    if json:
        tables.print_json(answer)
    else:
        tables.console().print(f"{model} is unloaded", style="green")
    return 0


def reload(
    model: Model,
    source: Annotated[str | None, Parameter(help="Folder, file or repository; else where its own weights are.")] = None,
    *,
    node: Annotated[str | None, Parameter(help="Change it there only.")] = None,
    in_place: Annotated[
        bool, Parameter(negative="", help="Where there is no room for both: streams wait while the weights are read.")
    ] = False,
    ask: Ask = ASK,
    json: Json = False,
) -> int:
    """Put other weights in the place of a model's own while it serves: a fine-tune of the same network."""
    asked = body(model=model, source=source, node=node, in_place=in_place or None)
    answer = ask.api().post("/admin/reload", asked)
    if json:
        tables.print_json(answer)
        return 0
    for name, weights in answer["nodes"].items():
        tables.console().print(f"{model} serves {weights['source']} ({weights['digest']}) on {name}", style="green")
    return 0


def reread(*, ask: Ask = ASK, json: Json = False) -> int:
    """Have the gateway follow what models.toml and [eviction] say now. Files that it cannot use change nothing."""
    return _show(ask.api().post("/admin/config/reload", {}), tables.show_changes, json=json)


def requests(*, ask: Ask = ASK, json: Json = False) -> int:
    """List the requests under way: who asks which model, where, and how far each is."""
    return _show(ask.api().get("/admin/requests"), tables.show_requests, json=json)


def cancel(
    request: Annotated[str, Parameter(help="The id that `cortex requests` shows.")],
    *,
    ask: Ask = ASK,
    json: Json = False,
) -> int:
    """End a request; whoever sent it is told so."""
    answer = ask.api().post(f"/admin/requests/{quote(request)}/cancel", {})
    if json:
        tables.print_json(answer)
    else:
        tables.console().print(f"{request} is cancelled", style="green", markup=False)
    return 0


def _show(answer: dict[str, Any], table: Callable[[Console, dict[str, Any]], None], *, json: bool) -> int:
    """The gateway's own JSON, or what `table` makes of it."""
    if json:
        tables.print_json(answer)
    else:
        table(tables.console(), answer)
    return 0


COMMANDS = (status, health, models, load, plan, unload, reload, requests, cancel)
