"""Whatever JSON a client sends, the neuron's readers take it or refuse it by name; nothing else ever comes out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given

from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat, read_completion, read_detokenize, read_tokenize
from tests.fakes.any_json import any_json, objects

WORDS = (
    *("model", "messages", "role", "content", "type", "text", "user", "assistant", "tool", "tools", "function", "name"),
    *(
        "parameters",
        "tool_calls",
        "arguments",
        "tool_choice",
        "auto",
        "stop",
        "stream",
        "max_tokens",
        "logit_bias",
        "n",
    ),
    *("prompt", "logprobs", "top_logprobs", "seed", "temperature", "stream_options", "chat_template_kwargs", "suffix"),
    *("echo", "best_of", "tokens", "thinking", "thinking_budget", "reasoning", "enabled", "budget_tokens", "effort"),
    *("response_format", "add_generation_prompt", "continue_final_message", "parallel_tool_calls", "reasoning_effort"),
    *(
        "json_schema",
        "json_object",
        "schema",
        "guided_json",
        "guided_choice",
        "structured_outputs",
        "grammar",
        "required",
    ),
)
GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "tokens": [1]}
READERS = (read_chat, read_completion, read_tokenize, read_detokenize)


def problem_of(read: Callable[[Mapping[str, Any]], Any], body: Mapping[str, Any]) -> Problem | None:
    try:
        read(body)
    except Problem as problem:
        return problem
    return None


@pytest.mark.parametrize("read", READERS)
@given(objects(WORDS))
def test_any_fields_beside_good_ones(read: Callable[[Mapping[str, Any]], Any], fields: dict[str, Any]) -> None:
    """A request, or a problem of the client's that names a field of the body."""
    body = {**GOOD, **fields}
    problem = problem_of(read, body)
    if problem:
        assert 400 <= problem.status < 500
        assert re.split(r"[.\[]", problem.param or "")[0] in body


@given(objects(WORDS), any_json(WORDS))
def test_any_message_and_any_tool(message: dict[str, Any], tool: Any) -> None:
    """The rest of the body is right, so that the reader gets to what is not."""
    problem = problem_of(read_chat, {**GOOD, "messages": [{"role": "assistant", **message}], "tools": [tool]})

    assert problem is None or 400 <= problem.status < 500
