"""The gateway's half of the wire between gateway and neuron: recorded exchanges that both sides can replay.

Each folder of `transcripts/` is one streamed exchange: `client.json`, what an Anthropic client posts; `neuron.json`, what
the neuron is asked; `neuron.sse`, what it answers; `client.sse`, what the client reads.
"""

import json
import pathlib

import pytest

from cortex_gateway.dialects.anthropic.request import decode
from cortex_gateway.dialects.anthropic.stream import MessageEncoder
from cortex_gateway.dialects.openai.relay import StreamRelay
from cortex_gateway.dialects.translation import Translation
from tests.fakes.codec import cuts

CASES = sorted(folder for folder in (pathlib.Path(__file__).parent / "transcripts").iterdir() if folder.is_dir())
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
def test_the_neuron_is_asked_for_what_the_client_said(case: pathlib.Path) -> None:
    """Key by key, in this order."""
    asked = decode((case / "client.json").read_bytes()).neuron_body("demo")

    assert json.dumps(json.loads(asked)) == json.dumps(json.loads((case / "neuron.json").read_bytes()))


@every_case
def test_the_client_reads_what_the_neuron_said(case: pathlib.Path) -> None:
    """Byte for byte, however the neuron's bytes are cut."""
    stream = (case / "neuron.sse").read_bytes()
    for chunks in [*cuts(stream)[:2], *cuts(stream)[2::97]]:
        answer = Translation(MessageEncoder(message_id="msg_7", model="demo", request_id="req_7"))

        assert b"".join(map(answer.feed, chunks)) + answer.close() == (case / "client.sse").read_bytes()


@every_case
def test_passed_through_it_is_the_same_stream(case: pathlib.Path) -> None:
    """A chat client reads the neuron's own bytes, and metrics count the same tokens as a message's."""
    stream = (case / "neuron.sse").read_bytes()
    relay = StreamRelay("demo")
    passed = relay.feed(stream) + relay.close()
    usage = relay.usage

    assert passed == stream
    assert relay.passed
    assert relay.done is (relay.failure is None)
    assert usage is not None
    if relay.done:
        assert f'"output_tokens":{usage.completion}' in (case / "client.sse").read_text()
