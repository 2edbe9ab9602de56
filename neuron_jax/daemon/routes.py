"""The routes of a neuron as free functions: parse, call one function, render; must not decide anything."""

import asyncio
from typing import Any

from litestar import MediaType, Request, Response, get, post

from neuron_jax.daemon import loading, service, views
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.responses import json_response
from neuron_jax.daemon.service import Neuron

Ask = Request[Any, Any, Any]


@get("/version", sync_to_thread=False)
def version(neuron: Neuron) -> Response[Any]:
    """Which build this is."""
    return json_response(views.version(neuron))


@get("/discovery", sync_to_thread=False)
def discovery(neuron: Neuron) -> Response[Any]:
    """What this host is."""
    return json_response(views.discovery(neuron))


@get("/health")
async def health(neuron: Neuron) -> Response[Any]:
    """How this host is."""
    return json_response(await views.health(neuron))


@get("/models")
async def models(neuron: Neuron) -> Response[Any]:
    """Everything loaded or loadable."""
    offered = await asyncio.to_thread(views.offered, neuron.lifecycle)
    return json_response(views.models(neuron.lifecycle, offered))


@post("/models/load")
async def load(neuron: Neuron, request: Ask) -> Response[Any]:
    """Loads a model; with `Accept: text/event-stream` it tells how far it is."""
    stream = loading.wants_stream(request.headers)
    return await loading.load(neuron.lifecycle, await request.body(), stream=stream)


@post("/models/unload")
async def unload(neuron: Neuron, request: Ask) -> Response[Any]:
    """Unloads a model after its work in flight."""
    return await loading.unload(neuron.lifecycle, await request.body())


@get("/models/{rest:path}")
async def model_part(neuron: Neuron, request: Ask, rest: str) -> Response[Any]:
    """`/models/{id}/endpoint` and `/models/{id}/capabilities`; the id may hold slashes."""
    model_id, _, part = rest.strip("/").rpartition("/")
    if part == "endpoint" and model_id:
        return views.endpoint(neuron.lifecycle, model_id, request.headers.get("host", ""))
    if part == "capabilities" and model_id:
        return await views.capabilities(neuron.lifecycle, model_id)
    raise Problem(404, "not_found", f"There is nothing at /models/{rest.strip('/')}.")


@post("/v1/chat/completions")
async def chat(neuron: Neuron, request: Ask) -> Response[Any]:
    """OpenAI's chat."""
    return await service.chat(neuron, request)


@post("/v1/completions")
async def completions(neuron: Neuron, request: Ask) -> Response[Any]:
    """OpenAI's completions."""
    return await service.completions(neuron, request)


@post("/tokenize")
async def tokenize(neuron: Neuron, request: Ask) -> Response[Any]:
    """Counts the tokens of a chat or a prompt."""
    return json_response(await service.tokenize(neuron, await request.body()))


@get("/metrics")
async def metrics(neuron: Neuron) -> Response[Any]:
    """Prometheus text."""
    await neuron.lifecycle.devices.look()
    return Response(neuron.metrics.text(), media_type=MediaType.TEXT)


ROUTES = (
    version,
    discovery,
    health,
    models,
    load,
    unload,
    model_part,
    chat,
    completions,
    tokenize,
    metrics,
)
