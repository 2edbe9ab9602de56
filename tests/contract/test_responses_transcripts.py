"""The gateway's half of the wire for /v1/responses: what it makes of a neuron's recorded streams, and of Codex's requests.

`transcripts/*/responses.sse` is what a Responses client reads of the same `neuron.sse`. Codex's requests are those of its
recorded session.
"""

import json
import pathlib

import pytest

from cortex_gateway.dialects.dialect import AnswerId, Earlier
from cortex_gateway.dialects.responses.dialect import ResponseAnswer
from cortex_gateway.dialects.responses.request import ResponsesRequest, decode, read
from cortex_gateway.dialects.responses.stream import ResponseEncoder
from tests.contract.sessions import sessions
from tests.fakes.codec import cuts

HERE = pathlib.Path(__file__).parent
CASES = sorted(folder for folder in (HERE / "transcripts").iterdir() if folder.is_dir())
TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("weather", "now")]
BODY = {"model": "demo", "input": "And tomorrow?", "stream": True, "tools": TOOLS}
IDENTITY = AnswerId("req_7", "7" * 32, 1_700_000_000)


def asked(body: bytes) -> ResponsesRequest:
    return decode(read(body), Earlier())


def answer() -> ResponseAnswer:
    return ResponseAnswer(ResponseEncoder(asked(json.dumps(BODY).encode()), IDENTITY))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_client_reads_what_the_neuron_said(case: pathlib.Path) -> None:
    """Byte for byte, however the neuron's bytes are cut."""
    stream = (case / "neuron.sse").read_bytes()
    for chunks in [*cuts(stream)[:2], *cuts(stream)[2::97]]:
        made = answer()

        assert b"".join(map(made.feed, chunks)) + made.close() == (case / "responses.sse").read_bytes()
        assert made.ended


CODEX = next(one for one in sessions() if one.name.startswith("codex-"))


def test_codex_s_tools_are_all_there() -> None:
    """Those of a namespace, too; the hosted one alone is left out."""
    names = [tool["function"]["name"] for tool in CODEX.neuron_body(CODEX.first)["tools"]]

    assert {"exec_command", "multi_agent_v1__spawn_agent", "multi_agent_v1__wait_agent"} <= set(names)
    assert asked(json.dumps(CODEX.first).encode()).dropped == (
        "tools of type 'web_search' are left out: nobody here can run them",
    )


def test_codex_s_answer_comes_back_as_it_was_generated() -> None:
    """Thought, word and call: a neuron has computed all but the command's output."""
    first, second = (CODEX.neuron_body(body) for body in (CODEX.first, CODEX.second))
    said = second["messages"][len(first["messages"])]

    assert (said["reasoning_content"], said["content"]) == ("A file is wanted.", "I write it.")
    assert said["tool_calls"][0]["function"] == {
        "name": "exec_command",
        "arguments": '{"cmd": "echo by the model > made.txt"}',
    }
