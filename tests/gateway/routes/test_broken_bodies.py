"""Hundreds of broken bodies against the gateway: each gets an answer of its own dialect, and the next client is served."""

import logging
from typing import Any

import httpx
import pytest

from tests.fakes.broken_json import broken
from tests.fakes.gateway_rig import CHAT, COMPLETIONS, MESSAGES, Rig, run

COUNT = 300
COUNT_TOKENS, LOAD = "/v1/messages/count_tokens", "/admin/load"
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        ],
    },
    {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "42"}]}],
    },
]
ASKED: dict[str, Any] = {
    "model": "demo",
    "messages": TURNS,
    "system": [{"type": "text", "text": "be brief"}],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": False},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"effort": "high"},
}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "demo",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
        "tools": [TOOL],
        "stream": False,
        "stream_options": {"include_usage": True},
        "max_tokens": 5,
    },
    COMPLETIONS: {"model": "demo", "prompt": ["a", [1, 2]], "stream": False, "max_tokens": 5, "logprobs": 1},
    MESSAGES: {
        **ASKED,
        "max_tokens": 3000,
        "stream": False,
        "stop_sequences": ["a"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "metadata": {"user_id": "u"},
    },
    COUNT_TOKENS: ASKED,
    LOAD: {"model": "demo", "node": "one", "quant": "auto", "tensor_parallel": 1},
}


@pytest.mark.parametrize("path", BODIES)
def test_broken_bodies_are_answered_and_nothing_else(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A 4xx in the dialect's own envelope, or an answer where nothing that matters was broken; no error of ours."""

    async def scenario(rig: Rig) -> None:
        good = 0
        for body in broken(BODIES[path], 5, COUNT):
            answer = await rig.post_raw(path, body)
            good += answer.status_code == 200
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, (body[:2000], answer.text)
            if answer.status_code != 200:
                check(answer)
        assert 0 < good < COUNT
        assert (await rig.post(CHAT)).status_code == 200

    run(scenario)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def check(answer: httpx.Response) -> None:
    body = answer.json()
    if answer.url.path.startswith("/v1/messages"):
        assert (set(body), body["type"]) == ({"type", "error", "request_id"}, "error")
        assert set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"}
        assert {"message", "type", "code", "param"} <= set(body["error"])
    assert body["error"]["message"]
    assert body["error"]["type"] in ("invalid_request_error", "not_found_error")
