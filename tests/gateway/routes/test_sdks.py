"""The official SDKs against a live gateway and a live do-nothing neuron, with nothing of ours in between."""

import contextlib
import time
from collections.abc import Iterator, Mapping

import anthropic
import msgspec
import openai
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent

from tests.fakes.live_gateway import live_gateway
from tests.fakes.neuron_double import Answer, InstantNeuron, NeuronDouble

HI = [{"role": "user", "content": "hi"}]
ARGUMENTS = '{"z": 1, "a": "é"}'


def call(index: int, **function: str) -> dict[str, object]:
    head = {"id": f"call_{index}", "type": "function"} if "name" in function else {}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


RICH = Answer(
    deltas=(
        {"reasoning_content": "hm", "reasoning": "hm"},
        {"content": "Let me "},
        {"content": "see"},
        call(0, name="f", arguments=""),
        call(0, arguments=ARGUMENTS[:7]),
        call(0, arguments=ARGUMENTS[7:]),
    ),
    finish="tool_calls",
    cached=3,
)


@pytest.fixture(scope="module")
def instant() -> Iterator[str]:
    with live_gateway({"double": InstantNeuron()}) as it:
        yield it.url


@pytest.fixture
def neuron() -> NeuronDouble:
    return NeuronDouble()


@pytest.fixture
def scripted(neuron: NeuronDouble) -> Iterator[str]:
    with live_gateway({"double": neuron}) as it:
        yield it.url


@contextlib.contextmanager
def ours(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client:
        yield client


@contextlib.contextmanager
def theirs(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_openai_whole_and_streamed(instant: str) -> None:
    """Chat in both forms, with usage when it is asked for."""
    with theirs(instant) as client:
        whole = client.chat.completions.create(model="demo", messages=HI, max_tokens=3)
        options = {"include_usage": True}
        stream = client.chat.completions.create(
            model="demo", messages=HI, max_tokens=3, stream=True, stream_options=options
        )
        chunks = list(stream)

    assert whole.choices[0].message.content == " token token token"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == " token" * 3
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_openai_completions_and_models(instant: str) -> None:
    """The other routes that the SDK knows."""
    with theirs(instant) as client:
        text = client.completions.create(model="demo", prompt="hi", max_tokens=2).choices[0].text
        pieces = [chunk.choices[0].text for chunk in client.completions.create(model="demo", prompt="hi", stream=True)]

        assert text == " token token"
        assert "".join(pieces) == " token" * 16
        assert [model.id for model in client.models.list()] == ["demo"]
        assert client.models.retrieve("demo").id == "demo"


def test_anthropic_whole_and_streamed(instant: str) -> None:
    """A message in both forms, its tokens and its end."""
    with ours(instant) as client:
        whole = client.messages.create(model="demo", messages=HI, max_tokens=3)
        with client.messages.stream(model="demo", messages=HI, max_tokens=3) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()

    assert whole.content[0].text == text == " token token token"
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 7, 3)
    assert final.id != whole.id


def test_anthropic_counts_and_models(instant: str) -> None:
    """The other routes that the SDK knows; the beta namespace asks with `?beta=true`."""
    with ours(instant) as client:
        assert client.messages.count_tokens(model="demo", messages=HI).input_tokens > 0
        assert [model.id for model in client.models.list()] == ["demo"]
        assert client.models.retrieve("demo").display_name == "demo"
        assert client.beta.messages.create(model="demo", messages=HI, max_tokens=1).content[0].text == " token"


def test_a_tool_call_with_thinking_by_anthropic_s_sdk(scripted: str, neuron: NeuronDouble) -> None:
    """Every block whole, its input in order, and the next turn can send all of it back."""
    neuron.answers[:] = [RICH, RICH, Answer()]
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    with ours(scripted) as client:
        whole = client.messages.create(model="demo", messages=HI, max_tokens=9, tools=tools)
        with client.messages.stream(model="demo", messages=HI, max_tokens=9, tools=tools) as stream:
            final = stream.get_final_message()
        result = {"type": "tool_result", "tool_use_id": "call_0", "content": "42"}
        turns = [*HI, {"role": "assistant", "content": final.content}, {"role": "user", "content": [result]}]
        client.messages.create(model="demo", messages=turns, max_tokens=9, tools=tools)

    for message in (whole, final):
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        assert message.content[2].input == {"z": 1, "a": "é"}
        assert list(message.content[2].input) == ["z", "a"]
        assert (message.stop_reason, message.usage.cache_read_input_tokens) == ("tool_use", 3)
    replayed = neuron.asked[-1].body["messages"]
    assert replayed[1]["reasoning_content"] == "hm"
    assert replayed[1]["tool_calls"][0]["function"]["arguments"] == '{"z":1,"a":"é"}'
    assert replayed[2] == {"role": "tool", "tool_call_id": "call_0", "content": "42"}


def test_a_thought_that_is_left_out_is_found_again_by_anthropic_s_sdk(scripted: str, neuron: NeuronDouble) -> None:
    """As Claude Code asks for it: the client never sees it, and the model does in the next turn, whole or streamed."""
    neuron.answers[:] = [RICH, RICH, Answer()]
    thinking = {"type": "adaptive", "display": "omitted"}
    asked = {"model": "demo", "max_tokens": 9, "thinking": thinking, "output_config": {"effort": "high"}}
    with ours(scripted) as client:
        whole = client.messages.create(messages=HI, **asked)
        with client.messages.stream(messages=HI, **asked) as stream:
            final = stream.get_final_message()
        for message in (whole, final):
            results = [{"type": "tool_result", "tool_use_id": "call_0", "content": "42"}]
            turns = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
            client.messages.create(messages=turns, **asked)

    assert whole.content[0].thinking == final.content[0].thinking == ""
    assert whole.content[0].signature == final.content[0].signature
    for seen in neuron.asked[2:]:
        assert seen.body["messages"][1]["reasoning_content"] == "hm"
        assert (seen.body["reasoning_effort"], seen.body["chat_template_kwargs"]) == ("high", {"enable_thinking": True})


def test_a_completion_s_own_options_by_openai_s_sdk(scripted: str, neuron: NeuronDouble) -> None:
    """They go to the neuron as they are, which does them or says why not."""
    options = {"suffix": "b", "echo": True, "best_of": 2}
    with theirs(scripted) as client:
        client.completions.create(model="demo", prompt="a", **options)

    assert options.items() <= neuron.asked[0].body.items()


def test_a_tool_call_by_openai_s_sdk(scripted: str, neuron: NeuronDouble) -> None:
    """Deltas add up to the call."""
    neuron.answers[:] = [RICH]
    with theirs(scripted) as client, client.chat.completions.stream(model="demo", messages=HI) as stream:
        message = stream.get_final_completion().choices[0].message

    assert message.content == "Let me see"
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.arguments == ARGUMENTS


def test_a_stop_string_is_told(scripted: str, neuron: NeuronDouble) -> None:
    """Which one, and that it was one."""
    neuron.answers[:] = [Answer(stop_reason="END")]
    with ours(scripted) as client:
        message = client.messages.create(model="demo", messages=HI, max_tokens=9, stop_sequences=["END"])

    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")
    assert neuron.asked[-1].body["stop"] == ["END"]


def refused(status: int, **error: object) -> Answer:
    envelope = {"message": "no", "type": "invalid_request_error", "code": None, "param": None, **error}
    return Answer(refusal=(status, msgspec.json.encode({"error": envelope}), {"retry-after": "3"}))


CASES: Mapping[str, tuple[Answer, type[anthropic.APIStatusError], type[openai.APIStatusError]]] = {
    "400": (refused(400), anthropic.BadRequestError, openai.BadRequestError),
    "404": (refused(404), anthropic.NotFoundError, openai.NotFoundError),
    "422": (refused(422), anthropic.UnprocessableEntityError, openai.UnprocessableEntityError),
    "429": (refused(429), anthropic.RateLimitError, openai.RateLimitError),
    "500": (refused(500), anthropic.InternalServerError, openai.InternalServerError),
    "503": (refused(503), anthropic.InternalServerError, openai.InternalServerError),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_refusals_are_the_sdks_own_exceptions(scripted: str, neuron: NeuronDouble, streaming: bool) -> None:
    """The class by status, with the id to ask for and the neuron's words."""
    with ours(scripted) as messages, theirs(scripted) as chat:
        for answer, first, second in CASES.values():
            neuron.answers[:] = [answer]
            with pytest.raises(first) as told:
                messages.messages.create(model="demo", messages=HI, max_tokens=9, stream=streaming)
            assert told.value.body["error"]["message"] == "no"
            assert told.value.request_id or told.value.response.headers["x-request-id"]
            assert told.value.response.headers["retry-after"] == "3"
            with pytest.raises(second, match="no"):
                chat.chat.completions.create(model="demo", messages=HI, stream=streaming)


def test_what_the_gateway_refuses_itself(instant: str) -> None:
    """Unknown models, wrong fields, too much."""
    long = [{"role": "user", "content": "x" * (32 << 20)}]
    picture = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}]}]
    with ours(instant) as messages, theirs(instant) as chat:
        with pytest.raises(anthropic.NotFoundError, match="demo"):
            messages.messages.create(model="dema", messages=HI, max_tokens=1)
        with pytest.raises(openai.NotFoundError) as unknown:
            chat.chat.completions.create(model="dema", messages=HI)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(anthropic.BadRequestError, match="image"):
            messages.messages.create(model="demo", messages=picture, max_tokens=1)
        with pytest.raises(anthropic.RequestTooLargeError):
            messages.messages.create(model="demo", messages=long, max_tokens=1)


@pytest.mark.parametrize("answer", [Answer(dies_after=1), Answer(unfinished=True)])
def test_a_neuron_that_dies_in_a_stream_is_an_exception(scripted: str, neuron: NeuronDouble, answer: Answer) -> None:
    """Neither SDK takes half an answer for a whole one."""
    neuron.answers[:] = [answer]
    with ours(scripted) as client, pytest.raises(anthropic.APIStatusError, match=r"broke off|ended before"):
        list(client.messages.create(model="demo", messages=HI, max_tokens=9, stream=True))
    with theirs(scripted) as client, pytest.raises(openai.APIError, match=r"broke off|ended before"):
        list(client.chat.completions.create(model="demo", messages=HI, stream=True))


RESPONSE_TOOLS = [
    {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False},
    {"type": "web_search"},
]


class Answered(pydantic.BaseModel):
    word: str


def test_responses_whole_and_streamed(scripted: str, neuron: NeuronDouble) -> None:
    """By OpenAI's SDK: every event is of the type that it has for it, and both forms say the same."""
    neuron.answers[:] = [RICH]
    strict: pydantic.TypeAdapter[object] = pydantic.TypeAdapter(ResponseStreamEvent)
    with theirs(scripted) as client:
        whole = client.responses.create(model="demo", input="hi", tools=RESPONSE_TOOLS)
        raw = client.responses.create(model="demo", input="hi", tools=RESPONSE_TOOLS, stream=True)
        for event in raw:
            strict.validate_python(event.to_dict())
        with client.responses.stream(model="demo", input="hi", tools=RESPONSE_TOOLS) as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()

    for response in (whole, final):
        thought, message, call_ = response.output
        assert (thought.type, message.type, call_.type) == ("reasoning", "message", "function_call")
        assert (thought.summary[0].text, response.output_text, call_.arguments) == ("hm", "Let me see", ARGUMENTS)
        assert (response.status, response.usage.input_tokens_details.cached_tokens) == ("completed", 3)
    assert "".join(pieces) == "Let me see"


def test_responses_that_are_kept(scripted: str) -> None:
    """Gone on from, read, listed, made in the background, cancelled and forgotten."""
    with theirs(scripted) as client:
        first = client.responses.create(model="demo", input="one")
        second = client.responses.create(model="demo", input="two", previous_response_id=first.id)
        items = client.responses.input_items.list(second.id, order="asc")
        queued = client.responses.create(model="demo", input="x", background=True)
        for _ in range(500):
            later = client.responses.retrieve(queued.id)
            if later.status not in ("queued", "in_progress"):
                break
            time.sleep(0.01)
        cancelled = client.responses.cancel(queued.id)
        client.responses.delete(first.id)

        assert client.responses.retrieve(second.id).output_text == "Hello there"
        assert [item.type for item in items] == ["message"] * 3
        assert (later.status, later.output_text, cancelled.status) == ("completed", "Hello there", "completed")
        assert client.responses.input_tokens.count(model="demo", input="one two").input_tokens > 0
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)


def test_a_compacted_response(instant: str) -> None:
    """OpenAI's SDK reads it, and its output is the next request's input."""
    with theirs(instant) as client:
        compacted = client.responses.compact(model="demo", input="hi")
        items = [item.to_dict(warnings=False) for item in compacted.output]
        again = client.responses.create(model="demo", input=items, max_output_tokens=2)

    assert (compacted.object, compacted.output[-1].type) == ("response.compaction", "compaction")
    assert again.output_text == " token token"


def test_responses_parsed_into_a_model(scripted: str, neuron: NeuronDouble) -> None:
    """The schema goes to the neuron as chat has it."""
    neuron.answers[:] = [Answer(deltas=({"content": '{"word":'}, {"content": '"yes"}'}))]
    with theirs(scripted) as client:
        parsed = client.responses.parse(model="demo", input="hi", text_format=Answered).output_parsed

    assert parsed == Answered(word="yes")
    form = neuron.asked[0].body["response_format"]
    assert form["json_schema"]["schema"]["required"] == ["word"]
