"""POST /models/load and /models/unload: bodies in, answers and progress out; must not know engines."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import attrs
from litestar import Response

from neuron_jax.common.errors import ConfigError
from neuron_jax.config import ModelSpec
from neuron_jax.daemon import views
from neuron_jax.daemon.fields import Fields, decode_object
from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.resident import AlreadyLoadedError
from neuron_jax.daemon.responses import json_response, primed
from neuron_jax.daemon.wire_common import HEARTBEAT_LINE, sse
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import Progress

HEARTBEAT = 1.0
PACE = 0.1
"""Seconds between two progress events: a fast download reports thousands of times a second."""
SPEC_KEYS = frozenset(item.name for item in attrs.fields(ModelSpec)) - {"aliases"}
OUR_FAULT = {"internal", "exited"}
"""Kinds that say nothing to a caller: for him the engine failed."""
NO_DEVICE = ("cuda_feature_not_enabled", "device_busy", "device_lost")
LOADED = {"status": "loaded"}


def read_spec(lifecycle: Lifecycle, body: bytes) -> ModelSpec:
    """The spec in a load request; unknown fields are ignored. Raises Problem and ConfigError."""
    body_fields = decode_object(body)
    if body_fields.get("transform") is not None:
        raise Problem(
            400, "unsupported_parameter", "transform is code: only neuron.toml can name it.", param="transform"
        )
    given = {key: value for key, value in body_fields.items() if key in SPEC_KEYS and value is not None}
    return lifecycle.catalogue.spec(given, "the body")


async def load(lifecycle: Lifecycle, body: bytes, *, stream: bool) -> Response[Any]:
    """The answer to a load request, whole or as a stream of progress."""
    try:
        spec = read_spec(lifecycle, body)
        if stream:
            return await primed(_progress_lines(lifecycle, spec))
        await lifecycle.load(spec)
        return json_response(LOADED)
    except (LoadError, AlreadyLoadedError, ConfigError, Problem) as error:
        return _refusal(error, lifecycle, body)


async def unload(lifecycle: Lifecycle, body: bytes) -> Response[Any]:
    """The answer to an unload request."""
    try:
        fields = Fields(decode_object(body))
        name, drain = fields.text("model_id"), fields.number("drain_secs", 0, 3600)
    except Problem as problem:
        return json_response({"error": problem.message}, problem.status)
    if not name:
        return json_response({"error": "missing model_id"}, 400)
    if not await lifecycle.unload(name, 30.0 if drain is None else drain):
        return json_response({"error": f"{name} is not loaded"}, 404)
    return json_response({"status": "unloaded"})


async def reload(lifecycle: Lifecycle, body: bytes) -> Response[Any]:
    """The answer to a request for other weights."""
    try:
        fields = Fields(decode_object(body))
        name, source, in_place = fields.text("model_id"), fields.text("source"), fields.flag("in_place")
    except Problem as problem:
        return json_response({"error": problem.message}, problem.status)
    if not name:
        return json_response({"error": "missing model_id"}, 400)
    try:
        served = await lifecycle.reload(name, source, in_place=in_place)
    except LoadError as error:
        status, refusal = load_error(lifecycle.catalogue.canonical(name), error, lifecycle.devices.platform)
        return json_response(refusal, status)
    return json_response({"status": "reloaded", "weights": attrs.asdict(served)})


def load_error(model_id: str, error: LoadError, platform: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a refused load (docs/wire.md section 1)."""
    if error.kind in NO_DEVICE and platform == "cuda":
        return 503, {"error": error.message, "code": "cuda_unavailable"}
    kind = "engine_failed" if error.kind in OUR_FAULT else error.kind
    detail: dict[str, Any] = {"kind": kind, "model_id": model_id, "message": error.message, **error.extras}
    if kind == "does_not_fit":
        detail["suggestion"] = error.message.rpartition(". ")[2]
    return 422, {"error": detail}


def _refusal(error: Exception, lifecycle: Lifecycle, body: bytes) -> Response[Any]:
    match error:
        case LoadError():
            model_id = lifecycle.catalogue.canonical(str(decode_object(body)["model_id"]))
            status, refusal = load_error(model_id, error, lifecycle.devices.platform)
            return json_response(refusal, status)
        case Problem() if error.status != 400:
            return json_response(error.envelope(), error.status, error.headers())
    return json_response({"error": str(error)}, 400)


async def _progress_lines(lifecycle: Lifecycle, spec: ModelSpec) -> AsyncGenerator[bytes, None]:
    news: dict[str, Progress] = {}
    heard = asyncio.Event()

    def listen(step: Progress) -> None:
        news[step.phase] = step  # only the latest of a phase is worth sending
        heard.set()

    task = asyncio.create_task(lifecycle.load(spec, listen))
    try:
        begun = False
        while not task.done():
            if lines := await _next_lines(task, heard, news):
                begun = True
                yield lines
        if not begun:
            await task  # raises what is wrong with the request, while it can still be a status
        yield _drained(news) + _outcome(task, lifecycle, spec)
    finally:
        task.cancel()  # this listener leaves; the load itself goes on
        await asyncio.gather(task, return_exceptions=True)


async def _next_lines(task: "asyncio.Task[None]", heard: asyncio.Event, news: dict[str, Progress]) -> bytes:
    waiting = asyncio.create_task(heard.wait())
    try:
        await asyncio.wait({task, waiting}, timeout=HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    heard.clear()
    lines = _drained(news)
    if lines:
        await asyncio.wait({task}, timeout=PACE)
    return lines or (b"" if task.done() else HEARTBEAT_LINE)


def _drained(news: dict[str, Progress]) -> bytes:
    lines = b"".join(sse(views.progress(step)) for step in news.values())
    news.clear()
    return lines


def _outcome(task: "asyncio.Task[None]", lifecycle: Lifecycle, spec: ModelSpec) -> bytes:
    match task.exception():
        case None | AlreadyLoadedError():
            return sse(LOADED)
        case LoadError() as error:
            return sse(load_error(spec.model_id, error, lifecycle.devices.platform)[1])
        case Problem() as problem:
            return sse(problem.envelope())
        case error:
            raise error


def wants_stream(headers: Mapping[str, str]) -> bool:
    """Whether the caller asked for progress."""
    return "text/event-stream" in headers.get("accept", "")
