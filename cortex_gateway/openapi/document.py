"""The gateway's routes as an OpenAPI document; pure, made of the table of routes and the bodies they read.

Source: https://spec.openapis.org/oas/v3.1.0.html
"""

import re
from collections.abc import Iterable
from typing import Any, Protocol

from cortex_gateway.openapi.bodies import BODIES, Schema

_PARAMETER = re.compile(r"\{(\w+):\w+\}")
_QUERIES = {
    "/v1/responses/{id}": ("stream", "starting_after"),
    "/v1/responses/{id}/input_items": ("limit", "order", "after"),
    "/v1/conversations/{id}/items": ("limit", "order", "after"),
}
_SHOWN = {"/admin/requests/{named:path}": "/admin/requests/{id:str}/cancel"}
"""Paths whose last part is told from an id that may contain slashes."""
ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": {"message": {"type": "string"}}}},
}


class RouteLike(Protocol):
    """A row of the table of routes."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def need(self) -> object: ...


def document(routes: Iterable[RouteLike], version: str) -> dict[str, Any]:
    """What GET /openapi.json says."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", _SHOWN.get(route.path, route.path))
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    key = {"type": "http", "scheme": "bearer", "description": "a key of `cortex keys`, where the gateway wants one"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cortex",
            "version": version,
            "description": "Open-weight language models on your own GPUs: OpenAI's, Anthropic's and Ollama's API.",
        },
        "paths": paths,
        "components": {"securitySchemes": {"key": key}, "schemas": {"Error": ERROR}},
    }


def _operation(route: RouteLike, path: str) -> dict[str, Any]:
    body = BODIES.get(path) if route.method == "POST" else None
    found: dict[str, Any] = {"responses": _responses(_stream_type(path, body or {}))}
    within = [_parameter(name, "path") for name in re.findall(r"\{(\w+)\}", path)]
    queries = _QUERIES.get(path, ()) if route.method == "GET" else ()
    parameters = within + [_parameter(name, "query") for name in queries]
    if parameters:
        found["parameters"] = parameters
    if route.need is not None:
        found["security"] = [{}, {"key": []}]
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def _stream_type(path: str, body: Schema) -> str | None:
    """Of an answer that its request may want as a stream."""
    if "stream" not in body.get("properties", {}):
        return None
    return "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"


def _responses(stream_type: str | None) -> dict[str, Any]:
    kinds: dict[str, Any] = {"application/json": {}, **({stream_type: {}} if stream_type else {})}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "The answer.", "content": kinds},
        "4XX": {"description": "The request cannot be carried out: why.", "content": error},
        "5XX": {"description": "The gateway or a neuron failed.", "content": error},
    }


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}
