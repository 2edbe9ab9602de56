"""Ollama's official Python package against a live gateway and a live do-nothing neuron, with nothing of ours in between."""

import asyncio
from collections.abc import Iterator

import ollama
import pydantic
import pytest

from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, NeuronDouble

HI = [{"role": "user", "content": "hi"}]
ARGUMENTS = '{"city": "Köln"}'
CALL = {"id": "call_0", "type": "function", "index": 0, "function": {"name": "weather", "arguments": ARGUMENTS}}
RICH = Answer(
    deltas=({"reasoning_content": "hm", "reasoning": "hm"}, {"content": "Let me see"}, {"tool_calls": [CALL]}),
    finish="tool_calls",
)


class Answered(pydantic.BaseModel):
    word: str


def weather(city: str) -> str:
    """The weather somewhere.

    Args:
        city: where

    Returns:
        what it is like
    """
    return f"rain in {city}"


@pytest.fixture
def neuron() -> NeuronDouble:
    return NeuronDouble()


@pytest.fixture
def url(neuron: NeuronDouble) -> Iterator[str]:
    with live_gateway({"double": neuron}) as it:
        yield it.url


@pytest.fixture
def client(url: str) -> Iterator[ollama.Client]:
    client = ollama.Client(host=url)
    yield client
    client._client.close()  # the package has no other way to end it


def test_chat_whole_and_streamed(client: ollama.Client) -> None:
    """Both forms say the same, by the name that the list of models has."""
    name = client.list().models[0].model
    assert name == "demo:latest"

    whole = client.chat(name, HI)
    pieces = list(client.chat(name, HI, stream=True))

    assert whole.message.content == "".join(piece.message.content or "" for piece in pieces) == "Hello there"
    for last in (whole, pieces[-1]):
        assert (last.model, last.done, last.done_reason) == (name, True, "stop")
        assert (last.prompt_eval_count, last.eval_count) == (7, 2)
        assert last.total_duration >= last.eval_duration > 0
    assert not any(piece.done for piece in pieces[:-1])


def test_generate_whole_streamed_raw_and_with_a_suffix(client: ollama.Client, neuron: NeuronDouble) -> None:
    whole = client.generate("demo", "hi", system="s", options={"num_predict": 5, "repeat_penalty": 1.1})
    pieces = [piece.response for piece in client.generate("demo", "hi", stream=True)]
    raw = client.generate("demo", "hi", raw=True)
    filled = client.generate("demo", "hi", suffix="end")

    assert whole.response == "".join(pieces) == raw.response == filled.response == "Hello there"
    first, _, third, fourth = [seen.body for seen in neuron.asked]
    assert (first["max_tokens"], first["repetition_penalty"]) == (5, 1.1)
    assert first["messages"][0] == {"role": "system", "content": "s"}
    assert (third["prompt"], fourth["suffix"]) == ("hi", "end")


def test_a_loop_of_tools(client: ollama.Client, neuron: NeuronDouble) -> None:
    """A function of Python is called with its arguments, and what it says goes back, in both forms."""
    neuron.answers[:] = [RICH, RICH, Answer()]
    whole = client.chat("demo", HI, tools=[weather], think=True)
    pieces = [piece.message for piece in client.chat("demo", HI, tools=[weather], think="low", stream=True)]

    (call,) = whole.message.tool_calls or ()
    (streamed,) = [one for piece in pieces for one in piece.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Köln"})
    assert streamed == call
    assert (whole.message.thinking, whole.message.content, whole.done_reason) == ("hm", "Let me see", "stop")
    assert [piece.thinking for piece in pieces if piece.thinking] == ["hm"]

    result = {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
    final = client.chat("demo", [*HI, whole.message, result], tools=[weather])

    assert final.message.content == "Hello there"
    sent = neuron.asked[-1].body
    assert sent["tools"][0]["function"]["parameters"]["properties"]["city"]["type"] == "string"
    _, assistant, answer = sent["messages"]
    assert assistant["reasoning_content"] == "hm"
    assert assistant["tool_calls"][0]["function"]["arguments"] == '{"city":"Köln"}'
    assert answer["tool_call_id"] == assistant["tool_calls"][0]["id"]
    assert answer["content"] == "rain in Köln"


def test_answers_held_to_a_form(client: ollama.Client, neuron: NeuronDouble) -> None:
    """A schema goes to the neuron as chat has it, and so does bare JSON."""
    neuron.answers[:] = [Answer(deltas=({"content": '{"word":'}, {"content": '"yes"}'}))]
    parsed = client.chat("demo", HI, format=Answered.model_json_schema())
    client.generate("demo", "hi", format="json")

    assert Answered.model_validate_json(parsed.message.content or "") == Answered(word="yes")
    schema, bare = [seen.body["response_format"] for seen in neuron.asked]
    assert schema["json_schema"]["schema"] == Answered.model_json_schema()
    assert bare == {"type": "json_object"}


def test_models_and_loading(client: ollama.Client, neuron: NeuronDouble) -> None:
    """What the package reads of models, and a load that asks for nothing else."""
    (listed,), (running,) = client.list().models, client.ps().models
    shown = client.show("demo")

    assert (listed.model, running.model) == ("demo:latest", "demo:latest")
    assert listed.digest == running.digest
    assert listed.modified_at is not None
    assert running.expires_at is not None
    assert shown.capabilities == ["completion"]
    assert (shown.modelinfo or {})["general.architecture"] == "cortex"
    assert client.generate("demo").done_reason == client.chat("demo").done_reason == "load"
    assert neuron.asked == []


def test_errors_are_the_package_s_own(client: ollama.Client, neuron: NeuronDouble) -> None:
    """With status and words; before a stream and within one."""
    with pytest.raises(ollama.ResponseError, match="'dema:latest' not found") as unknown:
        client.chat("dema:latest", HI)
    with pytest.raises(ollama.ResponseError, match="not found"):
        list(client.generate("dema", "hi", stream=True))
    with pytest.raises(ollama.ResponseError, match="images"):
        client.generate("demo", "hi", images=[b"x"])
    neuron.answers[:] = [Answer(dies_after=1)]
    with pytest.raises(ollama.ResponseError, match="broke off"):
        list(client.chat("demo", HI, stream=True))

    assert unknown.value.status_code == 404


def test_a_slow_start_is_no_error(client: ollama.Client, neuron: NeuronDouble) -> None:
    """What the gateway sends meanwhile is read as pieces with nothing in them."""
    neuron.answers[:] = [Answer(pause=1.3)]
    pieces = [piece.message.content for piece in client.chat("demo", HI, stream=True)]

    assert pieces[0] == ""
    assert "".join(filter(None, pieces)) == "Hello there"


def test_the_asynchronous_client(url: str) -> None:
    async def scenario() -> str:
        client = ollama.AsyncClient(host=url)
        try:
            pieces = [piece async for piece in await client.chat("demo", HI, stream=True)]
        finally:
            await client._client.aclose()  # the package has no other way to end it
        return "".join(piece.message.content or "" for piece in pieces)

    assert asyncio.run(scenario()) == "Hello there"
