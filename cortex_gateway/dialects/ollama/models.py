"""What models there are, as Ollama tells it; knows the gateway's own entries of models, not where they come from.

Source: ollama/ollama api/types.go (ListModelResponse, ProcessModelResponse, ShowResponse). What a gateway does not know of a
model (its files' format, family and formats of weights) is empty, as it is where Ollama does not know it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from cortex_gateway.dialects.models_list import Entry

FOREVER = "9999-12-31T23:59:59Z"
"""When a loaded model leaves: not by itself, only for another one or by the operator."""
ARCHITECTURE = "cortex"
"""Clients read the context length under the architecture's name, so it must have one."""
DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


def tags(entries: Sequence[Entry]) -> bytes:
    """All models."""
    listed = [{**_named(one), "modified_at": one["created_at"], "capabilities": _capabilities(one)} for one in entries]
    return msgspec.json.encode({"models": listed})


def running(entries: Sequence[Entry]) -> bytes:
    """Those that are loaded, each once."""
    loaded = [one for one in entries if one.get("loaded") and "alias_of" not in one]
    return msgspec.json.encode({"models": [_process(one) for one in loaded]})


def shown(entries: Sequence[Entry]) -> bytes:
    """One of them."""
    (one,) = entries
    info = {"general.architecture": ARCHITECTURE, "general.basename": one["id"]}
    if context := _context(one):
        info[f"{ARCHITECTURE}.context_length"] = context
    return msgspec.json.encode(
        {
            "modelfile": f"FROM {one['id']}\n",
            "parameters": "",
            "template": "",
            "details": DETAILS,
            "model_info": info,
            "capabilities": _capabilities(one),
            "modified_at": one["created_at"],
        }
    )


def tagged(name: str) -> str:
    """With the tag that every name has in Ollama; the fleet resolves it with and without."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _named(one: Entry) -> dict[str, Any]:
    """Clients show the first twelve digits of the digest, which here is one of the name alone."""
    name = tagged(one["id"])
    identity: str = one.get("alias_of") or one["id"]
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return {"name": name, "model": name, "size": _size(one), "digest": digest, "details": DETAILS}


def _process(one: Entry) -> dict[str, Any]:
    memory = {"size_vram": _size(one), "context_length": _context(one) or 0}
    return {**_named(one), "expires_at": FOREVER, **memory}


def _size(one: Entry) -> int:
    """Bytes of memory that it takes where it is, or would; 0 where nobody knows."""
    known = [place["vram_estimate_mb"] or 0 for place in one.get("locations", ())]
    return max(known, default=0) << 20


def _context(one: Entry) -> int | None:
    context: int | None = one.get("limit", {}).get("context")
    return context


def _capabilities(one: Entry) -> list[str]:
    able = set(one.get("capabilities", ()))
    generates = not able & {"embeddings", "rerank", "score"}
    has = {
        "completion": generates,
        "embedding": "embeddings" in able,
        "tools": one.get("tool_call"),
        "thinking": one.get("reasoning"),
    }
    return [name for name, can in has.items() if can]
