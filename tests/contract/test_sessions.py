"""An agent's second turn, as real ones were recorded: what of it a neuron has computed with the first."""

import json
from pathlib import Path

import pytest

from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.prepare import Outside
from neuron_jax.daemon.schema import read_chat
from tests.contract.sessions import Session, sessions
from tests.fakes.rendering import job_of

OUTSIDE = Outside(id="chatcmpl-1", seed=1, created=1, max_context=200_000)
SESSIONS = sessions()
MOST = 0.15
"""Of the first turn's tokens, in the second."""

every_session = pytest.mark.parametrize("it", SESSIONS, ids=[one.name for one in SESSIONS])


@pytest.fixture(scope="module")
def demo(demo_gguf: Path) -> ModelText:
    return read_text(demo_gguf)


def test_there_is_a_session_of_every_agent() -> None:
    assert {one.name.rpartition("-")[0] for one in SESSIONS} == {
        "claude",
        "codex",
        "opencode",
        "cline",
        "continue",
    }


@every_session
def test_the_second_request_goes_on_where_the_first_ended(it: Session) -> None:
    """Tools and earlier messages are the same to the letter, whatever the client wrote differently about them."""
    first, second = it.neuron_body(it.first), it.neuron_body(it.second)
    begun = len(first["messages"])

    assert json.dumps(second["tools"]) == json.dumps(first["tools"])
    assert json.dumps(second["messages"][:begun]) == json.dumps(first["messages"])
    assert [message["role"] for message in second["messages"][begun:]][:2] == ["assistant", "tool"]
    assert "made.txt" in second["messages"][begun]["tool_calls"][0]["function"]["arguments"]


@every_session
def test_a_second_turn_computes_little(it: Session, demo: ModelText) -> None:
    """By the demo model's own template and tokens, in which tools are words."""
    first, second = (
        job_of(read_chat(it.neuron_body(body)), demo, OUTSIDE).encoded[0].ids for body in (it.first, it.second)
    )
    same = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), len(first))

    assert len(second) - same <= MOST * len(first)
