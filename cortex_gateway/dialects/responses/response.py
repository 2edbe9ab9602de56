"""The Response object and its items, which a stream's events and the answer of one piece share; knows no bytes of a stream."""

from collections.abc import Sequence
from typing import Any

from cortex_gateway.dialects.dialect import AnswerId
from cortex_gateway.dialects.events import TokenLogprob, Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.fields import Json
from cortex_gateway.dialects.opaque import seal
from cortex_gateway.dialects.responses.earlier import RESPONSE
from cortex_gateway.dialects.responses.request import ResponsesRequest
from cortex_gateway.dialects.responses.tools import Tool

Item = dict[str, Any]
PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    "compaction": "cmp",
}
FIRST_INPUT = 0x8000
"""Items of a request are numbered from here, those of its answer from 0."""
# What clients know from OpenAI's own errors (https://developers.openai.com/api/docs/guides/error-codes) by our types.
CODES = {"rate_limit_error": "rate_limit_exceeded"}


def response_id(identity: AnswerId) -> str:
    """`resp_` and what tells the answer from all others."""
    return RESPONSE + identity.unique


def item_id(kind: str, identity: AnswerId, at: int) -> str:
    """Of the answer's item number `at`; the answer can be told from it."""
    return f"{PREFIXES.get(kind, 'item')}_{identity.unique}{at:04x}"


def with_ids(items: Sequence[Json], identity: AnswerId) -> list[Item]:
    """A request's items as they are kept and listed: each has a type, and an id; content that is a string is a part."""
    return [_kept(item, identity, FIRST_INPUT + at) for at, item in enumerate(items)]


def _kept(item: Json, identity: AnswerId, number: int) -> Item:
    kind = str(item.get("type") or "message")
    name = item.get("id")
    named = isinstance(name, str) and name
    kept = {**item, "type": kind, "id": name if named else item_id(kind, identity, number)}
    if kind == "message":
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        if isinstance(item.get("content"), str):
            kept["content"] = [{"type": part, "text": item["content"]}]
        kept.setdefault("status", "completed")
    return kept


def head(request: ResponsesRequest, identity: AnswerId) -> Item:
    """A Response without what comes with the answer: `status`, `output`, `usage`, `error` and `incomplete_details`."""
    top = request.asked.top
    reasoning = top.get("reasoning") or {}
    within = {"conversation": {"id": request.asked.conversation}} if request.asked.conversation else {}
    return {
        "id": response_id(identity),
        "object": "response",
        **within,
        "created_at": identity.created,
        "background": request.asked.background,
        "instructions": top.get("instructions"),
        "max_output_tokens": top.get("max_output_tokens"),
        "max_tool_calls": top.get("max_tool_calls"),
        "metadata": top.get("metadata") or {},
        "model": request.asked.model,
        "parallel_tool_calls": top.get("parallel_tool_calls") is not False,
        "previous_response_id": request.asked.previous,
        "prompt_cache_key": top.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": top.get("safety_identifier"),
        "service_tier": "default",
        "store": request.asked.store,
        "temperature": top.get("temperature"),
        "text": {"format": {"type": "text"}, **(top.get("text") or {})},
        "tool_choice": top.get("tool_choice") or "auto",
        "tools": request.tools.told,
        "top_logprobs": top.get("top_logprobs") or 0,
        "top_p": top.get("top_p"),
        "truncation": "disabled",
        "user": top.get("user"),
    }


def usage(counts: Usage) -> Item:
    """`input_tokens` counts what came from the cache, too."""
    return {
        "input_tokens": counts.prompt,
        "input_tokens_details": {"cached_tokens": counts.cached, "cache_write_tokens": 0},
        "output_tokens": counts.completion,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning},
        "total_tokens": counts.prompt + counts.completion,
    }


def error(failure: Failure) -> dict[str, str]:
    """What a Response that failed says; clients look for the code."""
    return {"code": failure.code or CODES.get(failure.type, "server_error"), "message": failure.message}


def output_text(text: str, logprobs: Sequence[TokenLogprob] = ()) -> Item:
    """A message's part. Strict clients insist on both lists."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def message(identity: str, parts: Sequence[Item], status: str) -> Item:
    return {"type": "message", "id": identity, "role": "assistant", "status": status, "content": list(parts)}


def reasoning(identity: str, thought: str | None) -> Item:
    """With what was thought in both forms, once it is known."""
    summary = [] if thought is None else [{"type": "summary_text", "text": thought}]
    sealed = None if thought is None else seal("reasoning", thought)
    return {"type": "reasoning", "id": identity, "summary": summary, "encrypted_content": sealed}


def compaction(identity: str, summary: str) -> Item:
    return {"type": "compaction", "id": identity, "encrypted_content": seal("compaction", summary)}


def call(identity: str, call_id: str, tool: Tool, said: str, status: str) -> Item:
    """A function's or a custom tool's; `said` is its arguments, or its bare text."""
    kind, field = ("custom_tool_call", "input") if tool.custom else ("function_call", "arguments")
    within = {"namespace": tool.namespace} if tool.namespace else {}
    named = {"call_id": call_id, "name": tool.name, **within, field: said}
    return {"type": kind, "id": identity, "status": status, **named}
