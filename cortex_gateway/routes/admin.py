"""/admin/fleet, /admin/load and /admin/unload: what an operator sees and does; knows the fleet's border, no dialect."""

import asyncio
from typing import Any, Literal

import attrs
import msgspec
from litestar import Request, Response, get, post
from litestar.types import ASGIApp

from cortex_gateway.auth.policy import ADMIN
from cortex_gateway.dialects import sse
from cortex_gateway.errors import InvalidBody, MalformedJson
from cortex_gateway.placement.circuit import Circuit
from cortex_gateway.placement.snapshot import LoadStatus, Node, Replica
from cortex_gateway.routes.exchange import Exchange, exchange
from cortex_gateway.routes.failures import OPENAI
from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.routes.plain import plain
from cortex_gateway.stream import STREAM_HEADERS


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    model: str
    node: str | None = None


class LoadBody(UnloadBody):
    quant: str | None = None
    kv_dtype: str | None = None
    deterministic: bool | None = None
    tensor_parallel: int | None = None
    hosts: list[str] | None = None
    ranks: Literal["host", "device"] | None = None
    reload: bool = False


@get("/admin/fleet")
async def fleet(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Every node with its devices and models as last seen."""
    gateway = Gateway.of(request.app.state)
    gateway.guard.identify(request.scope, ADMIN)
    snapshot = gateway.fleet.snapshot()
    nodes = [_node(node, snapshot.at) for node in snapshot.nodes]
    return plain(request, {"nodes": nodes, "waiting": snapshot.waiting})


@post("/admin/load")
async def load(request: Request[Any, Any, Any]) -> ASGIApp:
    """Load a model and wait until it serves; with `Accept: text/event-stream` the progress comes as events."""
    streaming = "text/event-stream" in request.headers.get("accept", "")
    return exchange(Gateway.of(request.app.state), None, OPENAI, _load_streaming if streaming else _load, need=ADMIN)


@post("/admin/unload")
async def unload(request: Request[Any, Any, Any]) -> ASGIApp:
    """Unload a model once its running requests have ended."""
    return exchange(Gateway.of(request.app.state), None, OPENAI, _unload, need=ADMIN)


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
    await it.gateway.fleet.load(**_asked(it, body, LoadBody))
    await it.client.answer(200, b'{"status":"loaded"}')


async def _load_streaming(it: Exchange, body: bytes) -> None:
    asked = _asked(it, body, LoadBody)
    reports: asyncio.Queue[LoadStatus | None] = asyncio.Queue()
    loading = asyncio.create_task(it.gateway.fleet.load(**asked, report=reports.put_nowait))
    loading.add_done_callback(lambda _: reports.put_nowait(None))
    try:
        async with it.client.beating(OPENAI.beat, it.gateway.beat_seconds):
            while (status := await reports.get()) is not None:
                await _event(it, attrs.asdict(status))
            await loading
            await _event(it, {"status": "loaded"})
            await it.client.end()
    finally:
        loading.cancel()
        await asyncio.wait((loading,))


async def _event(it: Exchange, value: dict[str, Any]) -> None:
    if not it.client.started:
        await it.client.start(200, STREAM_HEADERS)
    await it.client.write(sse.encode(msgspec.json.encode(value)))


async def _unload(it: Exchange, body: bytes) -> None:
    await it.gateway.fleet.unload(**_asked(it, body, UnloadBody))
    await it.client.answer(200, b'{"status":"unloaded"}')


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
