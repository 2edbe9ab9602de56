"""Hundreds of broken bodies against the live daemon: each gets an answer of its own kind, and nothing else happens."""

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.broken_json import broken
from tests.fakes.live_neuron import LiveNeuron, with_neuron

COUNT = 300
JSON = {"Content-Type": "application/json"}
PARAMS: dict[str, Any] = {
    "model": "tiny",
    "stream": False,
    "stream_options": {"include_usage": True, "continuous_usage_stats": False},
    "max_tokens": 5,
    "min_tokens": 1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "seed": 3,
    "n": 2,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "repetition_penalty": 1.1,
    "logit_bias": {"97": 1.5},
    "stop": ["zz", "yy"],
    "stop_token_ids": [7],
    "ignore_eos": False,
}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}], "name": "u"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "tool_call_id": "c", "content": "42"},
    {"role": "user", "content": "so?"},
]
CHAT = {"messages": MESSAGES, "tools": [TOOL], "tool_choice": "auto", "chat_template_kwargs": {"enable_thinking": True}}
TURN = {"add_generation_prompt": True, "continue_final_message": False}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {**PARAMS, **CHAT, **TURN, "logprobs": True, "top_logprobs": 2, "response_format": None},
    "/v1/completions": {**PARAMS, "prompt": ["ab", [1, 2]], "logprobs": 2, "echo": False},
    "/tokenize": {"model": "tiny", **CHAT, **TURN},
    "/detokenize": {"model": "tiny", "tokens": [97, 98, 256]},
    "/models/load": {
        "model_id": "other",
        "source": "/no/such/folder",
        "harness": "jax",
        "quant": "auto",
        "tensor_parallel": 1,
        "devices": [0],
        "max_context": 64,
        "kv_mb": 1,
    },
}


@pytest.mark.parametrize("path", BODIES)
def test_broken_bodies_are_answered_and_nothing_else(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A 4xx in the route's own envelope, or an answer where nothing that matters was broken; no error of ours is logged."""

    async def use(neuron: LiveNeuron) -> None:
        good = 0
        for body in broken(BODIES[path], 11, COUNT):
            answer = await neuron.http.post(path, content=body, headers=JSON)
            good += answer.status_code == 200
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, (body[:2000], answer.text)
            if answer.status_code != 200:
                check(path, answer.json()["error"])
        assert (good > 0) is (path != "/models/load")
        assert good < COUNT / 2
        assert (await neuron.chat("still here")).json()["choices"][0]["message"]["content"] == "still here"

    with_neuron(tmp_path, use, pace=0.0, context=300)
    assert not [record for record in caplog.records if record.exc_info or record.levelno > logging.ERROR]


def check(path: str, error: Any) -> None:
    if path == "/models/load":
        assert error if isinstance(error, str) else {"kind", "model_id", "message"} <= set(error)
    else:
        assert list(error)[:4] == ["message", "type", "code", "param"]
        assert error["message"]
        assert error["type"] == "invalid_request_error"
