"""Answers of /v1/embeddings, /v1/rerank and /v1/score; pure.

https://platform.openai.com/docs/api-reference/embeddings, https://docs.cohere.com/reference/rerank,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html (score, and rerank as Jina has it).
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuron_jax.daemon.embed_schema import EmbeddingsRequest, PairsRequest, RerankRequest

Values = npt.NDArray[np.float32]


def embeddings(wanted: EmbeddingsRequest, values: Values, tokens: int) -> dict[str, Any]:
    """values [N, width], as many as were asked for, each by itself; in base64 they are little-endian float32."""
    kept = cut(values, wanted.dimensions)
    if wanted.normalize:
        kept = (kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), np.float32(1e-12))).astype(np.float32)
    shown: Sequence[Any]
    if wanted.encoding == "base64":
        shown = [base64.b64encode(row.tobytes()).decode() for row in np.ascontiguousarray(kept, "<f4")]
    else:
        shown = kept.tolist()
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(shown)],
        "model": wanted.model,
        "usage": _usage(tokens),
    }


def cut(values: Values, dimensions: int | None) -> Values:
    """The first so many values of each vector, at the length that it had before. https://arxiv.org/abs/2205.13147."""
    if dimensions is None or dimensions == values.shape[1]:
        return values
    kept = values[:, :dimensions]
    before, after = (np.linalg.norm(part, axis=1, keepdims=True) for part in (values, kept))
    scaled: Values = (kept * (before / np.maximum(after, np.float32(1e-12)))).astype(np.float32)
    return scaled


def ranking(wanted: RerankRequest, scores: Sequence[float], tokens: int, id_: str) -> dict[str, Any]:
    """The best first; among equals the earlier."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[: wanted.top]
    results: list[dict[str, Any]] = [{"index": at, "relevance_score": scores[at]} for at in order]
    if wanted.documents:
        for one in results:
            one["document"] = {"text": wanted.asked.pairs[one["index"]][1]}
    return {"id": id_, "model": wanted.asked.model, "results": results, "usage": _usage(tokens)}


def scored(wanted: PairsRequest, scores: Sequence[float], tokens: int, id_: str, created: int) -> dict[str, Any]:
    """A score for each pair."""
    return {
        "id": id_,
        "object": "list",
        "created": created,
        "model": wanted.model,
        "data": [{"index": at, "object": "score", "score": score} for at, score in enumerate(scores)],
        "usage": _usage(tokens),
    }


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
