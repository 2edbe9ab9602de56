"""The routes of a neuron as free functions: parse, call one function, render; must not decide anything."""

from typing import Any

from litestar import MediaType, Request, Response, get, post

from neuron_jax.daemon import embeddings, loading, service, views
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.responses import json_response, primed
from neuron_jax.daemon.service import NeuronServices

Ask = Request[Any, Any, Any]


def of(request: Ask) -> NeuronServices:
    """The neuron that was asked."""
    neuron: NeuronServices = request.app.state.neuron
    return neuron


@get("/version", sync_to_thread=False, open=True)
def version(request: Ask) -> Response[Any]:
    """Which build this is."""
    return json_response(views.version(of(request)))


@get("/discovery", sync_to_thread=False)
def discovery(request: Ask) -> Response[Any]:
    """What this host is."""
    return json_response(views.discovery(of(request)))


@get("/health", open=True)
async def health(request: Ask) -> Response[Any]:
    """How this host is."""
    return json_response(await views.health(of(request)))


@get("/models")
async def models(request: Ask) -> Response[Any]:
    """Everything loaded or loadable."""
    return json_response(await views.models(of(request).lifecycle))


@post("/models/load", control=True)
async def load(request: Ask) -> Response[Any]:
    """Loads a model; with `Accept: text/event-stream` it tells how far it is."""
    stream = loading.wants_stream(request.headers)
    return await loading.load(of(request).lifecycle, await request.body(), stream=stream)


@post("/models/unload", control=True)
async def unload(request: Ask) -> Response[Any]:
    """Unloads a model after its work in flight."""
    return await loading.unload(of(request).lifecycle, await request.body())


@post("/models/reload", control=True)
async def reload(request: Ask) -> Response[Any]:
    """Puts other weights in place while a model serves."""
    return await loading.reload(of(request).lifecycle, await request.body())


@post("/ranks/offer", control=True, lending=True)
async def offer(request: Ask) -> Response[Any]:
    """What this host would lend to another neuron's model."""
    lender = of(request).lifecycle.lender
    lender.admit(request.headers.get("authorization", ""))
    return json_response(await lender.offer(await request.body()))


@post("/ranks", control=True, lending=True)
async def ranks(request: Ask) -> Response[Any]:
    """One rank of another neuron's model: it lives as long as this answer."""
    lender = of(request).lifecycle.lender
    lender.admit(request.headers.get("authorization", ""))
    return await primed(lender.run(await request.body()))


@get("/models/{rest:path}")
async def model_part(request: Ask) -> Response[Any]:
    """`/models/{id}/endpoint` and `/models/{id}/capabilities`; the id may hold slashes."""
    lifecycle, rest = of(request).lifecycle, str(request.path_params["rest"]).strip("/")
    model_id, _, part = rest.rpartition("/")
    if part == "endpoint" and model_id:
        return views.endpoint(lifecycle, model_id, request.headers.get("host", ""))
    if part == "capabilities" and model_id:
        return await views.capabilities(lifecycle, model_id)
    raise Problem(404, "not_found", f"There is nothing at /models/{rest}.")


@post("/v1/chat/completions")
async def chat(request: Ask) -> Response[Any]:
    """OpenAI's chat."""
    return await service.complete(of(request), request, service.CHAT)


@post("/v1/completions")
async def completions(request: Ask) -> Response[Any]:
    """OpenAI's completions."""
    return await service.complete(of(request), request, service.COMPLETIONS)


@post("/v1/embeddings")
async def embed(request: Ask) -> Response[Any]:
    """OpenAI's embeddings."""
    return await embeddings.ask(of(request), request, embeddings.EMBEDDINGS)


@post("/v1/rerank")
async def rerank(request: Ask) -> Response[Any]:
    """Documents in the order in which they go with a query, as Cohere and Jina have it."""
    return await embeddings.ask(of(request), request, embeddings.RERANK)


@post("/v1/score")
async def score(request: Ask) -> Response[Any]:
    """How well pairs of texts go together, as vLLM has it."""
    return await embeddings.ask(of(request), request, embeddings.SCORE)


@post("/tokenize")
async def tokenize(request: Ask) -> Response[Any]:
    """Counts the tokens of a chat or a prompt."""
    return json_response(await service.tokenize(of(request), request))


@post("/detokenize")
async def detokenize(request: Ask) -> Response[Any]:
    """The text of tokens."""
    return json_response(await service.detokenize(of(request), request))


@get("/metrics", open=True)
async def metrics(request: Ask) -> Response[Any]:
    """Prometheus text."""
    neuron = of(request)
    await neuron.lifecycle.devices.look()
    return Response(neuron.metrics.text(), media_type=MediaType.TEXT)


ROUTES = (
    version,
    discovery,
    health,
    models,
    load,
    unload,
    reload,
    offer,
    ranks,
    model_part,
    chat,
    completions,
    embed,
    rerank,
    score,
    tokenize,
    detokenize,
    metrics,
)
