"""/admin: what an operator sees and does; knows the fleet's interface, no dialect."""

import asyncio
import logging
from typing import Annotated, Any, cast

import attrs
import msgspec

from cortex_gateway.auth.policy import ADMIN
from cortex_gateway.dialects import sse
from cortex_gateway.dialects.openai import errors as openai_errors
from cortex_gateway.errors import InvalidBody, MalformedJson, RequestNotFound, RouteNotFound
from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.decisions import Decision, Hold, Join, Placement, Recovering, Reject, Serve
from cortex_gateway.placement.load_options import LoadOptions
from cortex_gateway.placement.snapshot import LoadStatus, Node, Replica
from cortex_gateway.routes.exchange import Exchange, Route
from neuron_jax.common.errors import ConfigError
from neuron_jax.common.names import LONGEST_NAME

log = logging.getLogger(__name__)

Name = Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    model: Name
    node: Name | None = None


class ReloadBody(UnloadBody, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    in_place: bool = False


class LoadBody(UnloadBody):
    reload: bool = False


_OPTIONS = [
    (option.name, Any if option.type is None else option.type | None, None) for option in attrs.fields(LoadOptions)
]
_LoadBody: type[LoadBody] = cast(
    "Any", msgspec.defstruct("LoadBody", _OPTIONS, bases=(LoadBody,), forbid_unknown_fields=True)
)
_PlanBody: type[UnloadBody] = cast(
    "Any", msgspec.defstruct("PlanBody", _OPTIONS, bases=(UnloadBody,), forbid_unknown_fields=True)
)


_DONE: dict[type[Decision], str] = {
    Serve: "serve",
    Join: "join",
    Recovering: "recover",
    Placement: "load",
    Hold: "wait",
    Reject: "refuse",
}


async def _fleet(it: Exchange, _: bytes) -> None:
    """Every node with its devices and models as last seen."""
    snapshot = it.gateway.fleet.snapshot()
    nodes = [_node(node, snapshot.at) for node in snapshot.nodes]
    await it.answer({"nodes": nodes, "waiting": snapshot.waiting})


def _node(node: Node, at: float) -> dict[str, Any]:
    said = attrs.asdict(node)
    del said["replicas"]
    return {**said, "models": [_model(replica, at) for replica in node.replicas]}


def _model(replica: Replica, at: float) -> dict[str, Any]:
    said = attrs.asdict(replica)
    return {"id": said.pop("model"), **said, "circuit": _circuit(replica.circuit or Circuit(), at)}


def _circuit(circuit: Circuit, at: float) -> dict[str, Any]:
    """In seconds from now, for our clock is nobody else's."""
    left = max(0.0, circuit.until - at) if circuit.until is not None else 0.0
    reason = circuit.reason or None
    return {"state": circuit.state(at), "failures": circuit.failures, "rests_secs": round(left, 1), "reason": reason}


async def _load(it: Exchange, body: bytes) -> None:
    """Load a model and wait until it serves; with `Accept: text/event-stream` the progress comes as events."""
    asked = _with_options(_asked(it, body, _LoadBody))
    if "text/event-stream" in it.client.headers.get("accept", ""):
        await _load_streaming(it, asked)
        return
    await it.gateway.fleet.load(**asked)
    await it.answer({"status": "loaded"})


async def _load_streaming(it: Exchange, asked: dict[str, Any]) -> None:
    reports: asyncio.Queue[LoadStatus | None] = asyncio.Queue()
    loading = asyncio.create_task(it.gateway.fleet.load(**asked, report=reports.put_nowait))
    loading.add_done_callback(lambda _: reports.put_nowait(None))
    try:
        async with it.streaming(lambda: sse.COMMENT, openai_errors.event):
            while (status := await reports.get()) is not None:
                await _event(it, attrs.asdict(status))
            await loading
            await _event(it, {"status": "loaded"})
            await it.client.end()
    finally:
        loading.cancel()
        await asyncio.wait((loading,))


async def _event(it: Exchange, value: dict[str, Any]) -> None:
    await it.client.begin_stream()
    await it.client.write(sse.encode(msgspec.json.encode(value)))


async def _plan(it: Exchange, body: bytes) -> None:
    """Where a load would put the model and who would leave for it, and what each node could do; nothing is begun."""
    asked = _with_options(_asked(it, body, _PlanBody))
    found = it.gateway.fleet.outlook(**asked)
    nodes = [attrs.asdict(prospect) for prospect in found.nodes]
    await it.answer({"model": asked["model"], "would": _would(found.decision), "nodes": nodes})


def _would(decision: Decision) -> dict[str, Any]:
    """What would be done, in one word, and where."""
    return {"do": _DONE[type(decision)], **attrs.asdict(decision)}


async def _unload(it: Exchange, body: bytes) -> None:
    """Unload a model once its running requests have ended."""
    await it.gateway.fleet.unload(**_asked(it, body, UnloadBody))
    await it.answer({"status": "unloaded"})


async def _reload(it: Exchange, body: bytes) -> None:
    """Put other weights in place while the model serves."""
    nodes = await it.gateway.fleet.reload(**_asked(it, body, ReloadBody))
    await it.answer({"status": "reloaded", "nodes": nodes})


def _asked(it: Exchange, body: bytes, kind: type[UnloadBody]) -> dict[str, Any]:
    """The body's fields. Raises MalformedJson, InvalidBody, Forbidden."""
    try:
        asked = msgspec.convert(msgspec.json.decode(body), kind)
    except msgspec.ValidationError as error:
        raise InvalidBody(f"The body cannot be used: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise MalformedJson(f"The body is not JSON: {error}.") from error
    it.check_model(asked.model)
    return msgspec.structs.asdict(asked)


def _with_options(asked: dict[str, Any]) -> dict[str, Any]:
    """The body of a load as `Fleet.load` takes it. Raises InvalidBody."""
    names = [name for name, _, _ in _OPTIONS]
    told = {name: value for name in names if (value := asked.pop(name)) is not None}
    try:
        return {**asked, "options": LoadOptions(**told)}
    except ValueError as error:
        raise InvalidBody(f"The body cannot be used: {error.args[0]}.") from error


async def _configure(it: Exchange, _: bytes) -> None:
    """Read the operator's files again, and follow them. Files that cannot be used change nothing."""
    if it.gateway.reread is None:
        raise InvalidBody("This gateway was started without files that could be read again.")
    try:
        config = await asyncio.to_thread(it.gateway.reread)
    except ConfigError as error:
        raise InvalidBody(f"The configuration in force stays, for the files cannot be used:\n{error}") from error
    changed = it.gateway.fleet.configure(config)
    log.info("configuration read again: %s", changed)
    await it.answer({"status": "configured", **attrs.asdict(changed)})


async def _requests(it: Exchange, _: bytes) -> None:
    """Every request that a model is asked with, the oldest first."""
    await it.answer({"requests": it.gateway.live.told()})


async def _cancel(it: Exchange, _: bytes) -> None:
    """End the requests of one id. The id is the client's own and may contain slashes."""
    named = str(it.path_params["named"]).removeprefix("/")
    identity = named.removesuffix("/cancel")
    if identity == named:
        raise RouteNotFound(f"There is no /admin/requests/{named} here.")
    cancelled = it.gateway.live.cancel(identity)
    if not cancelled:
        raise RequestNotFound(f"No request {identity!r} is under way.")
    await it.answer({"cancelled": cancelled})


ROUTES = (
    Route("GET", "/admin/requests", _requests, need=ADMIN),
    Route("POST", "/admin/requests/{named:path}", _cancel, need=ADMIN),
    Route("GET", "/admin/fleet", _fleet, need=ADMIN),
    Route("POST", "/admin/load", _load, need=ADMIN),
    Route("POST", "/admin/plan", _plan, need=ADMIN),
    Route("POST", "/admin/unload", _unload, need=ADMIN),
    Route("POST", "/admin/reload", _reload, need=ADMIN),
    Route("POST", "/admin/config/reload", _configure, need=ADMIN),
)
