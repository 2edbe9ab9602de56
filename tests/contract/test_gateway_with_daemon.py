"""The two programs on the wire: the real gateway in front of the real daemon, whose engine is the double."""

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import msgspec
import pytest
from attrs import frozen

from cortex_gateway.app import create_app
from cortex_gateway.auth.guard import Guard
from cortex_gateway.config import Config, GatewayConfig, Neuron
from cortex_gateway.dialects.chat import ChatDecoder
from cortex_gateway.dialects.grammar import TABLE
from cortex_gateway.fleet.fleet import Fleet
from cortex_gateway.metrics import Metrics, RequestRecord
from cortex_gateway.transport import NeuronTransport
from tests.fakes.gateway_rig import CHAT, COMPLETIONS, MESSAGES, payloads
from tests.fakes.live_neuron import MODEL, LiveNeuron, live_neuron
from tests.fakes.memory_transport import MemoryTransport
from tests.fakes.tiny_model import write_tiny_model

CALL = '[[say Sure. <tool_call>{"name": "f", "arguments": {"z": 1, "a": "é"}}</tool_call>]]'
TOOLS = [{"name": "f", "input_schema": {"type": "object"}}]


@frozen
class Stack:
    client: httpx.AsyncClient
    neuron: LiveNeuron
    records: list[RequestRecord]

    async def post(self, path: str, /, **fields: Any) -> httpx.Response:
        more = {"max_tokens": 200} if path == MESSAGES else {}
        return await self.client.post(path, json={"model": MODEL, **more, **fields})


@contextlib.asynccontextmanager
async def stack(folder: pathlib.Path, **model: Any) -> AsyncIterator[Stack]:
    async with live_neuron(folder, **model) as neuron, contextlib.AsyncExitStack() as cleaning:
        config = Config(gateway=GatewayConfig(), neurons=(Neuron(name="one", endpoint=neuron.url),))
        metrics, records = Metrics(), list[RequestRecord]()
        metrics.listen(records.append)
        fleet = Fleet(config, metrics, transport=NeuronTransport())
        await fleet.start()
        cleaning.push_async_callback(fleet.close)
        transport = MemoryTransport({"gw": create_app(fleet, metrics, config, Guard())})
        async with httpx.AsyncClient(transport=transport, base_url="http://gw", timeout=20) as client:
            yield Stack(client, neuron, records)


def run(folder: pathlib.Path, scenario: Callable[[Stack], Awaitable[None]], **model: Any) -> None:
    async def main() -> None:
        async with stack(folder, **model) as it:
            await scenario(it)

    asyncio.run(main())


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_both_dialects_say_the_same(tmp_path: pathlib.Path) -> None:
    """Whole and streamed, with the same tokens counted in each, and the last of them recorded."""

    async def scenario(it: Stack) -> None:
        chat = (await it.post(CHAT, messages=user("héllo"))).json()
        message = (await it.post(MESSAGES, messages=user("héllo"))).json()
        streamed = payloads((await it.post(MESSAGES, messages=user("héllo"), stream=True)).content)
        raw = (await it.post(CHAT, messages=user("héllo"), stream=True)).content
        text = chat["choices"][0]["message"]["content"]
        deltas = [event["delta"]["text"] for event in streamed if event["type"] == "content_block_delta"]
        decoder = ChatDecoder()
        events = decoder.feed(raw) + decoder.close()

        assert "héllo" in text
        assert message["content"] == [{"type": "text", "text": text}]
        assert "".join(deltas) == text
        assert type(events[-1]) in TABLE["open"]
        assert [event.text for event in events if hasattr(event, "text")] == deltas
        counts = {(record.prompt_tokens, record.completion_tokens) for record in it.records}
        assert counts == {(chat["usage"]["prompt_tokens"], chat["usage"]["completion_tokens"])}
        assert streamed[0]["message"]["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
        assert [record.outcome for record in it.records] == ["ok"] * 4

    run(tmp_path, scenario)


def test_a_stream_passes_byte_for_byte(tmp_path: pathlib.Path) -> None:
    """What the daemon wrote, beats apart, is what the client reads."""

    async def scenario(it: Stack) -> None:
        body = {"model": MODEL, "prompt": "abc", "stream": True, "max_tokens": 5}
        passed = payloads((await it.client.post(COMPLETIONS, json=body)).content)
        direct = payloads((await it.neuron.http.post(COMPLETIONS, json=body)).content)
        for chunk in passed + direct:
            del chunk["id"], chunk["created"]

        assert passed == direct

    run(tmp_path, scenario)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_tool_call_arrives_as_a_block(tmp_path: pathlib.Path, streaming: bool) -> None:
    """Parsed by the daemon, encoded by the gateway, with its arguments in order."""

    async def scenario(it: Stack) -> None:
        response = await it.post(MESSAGES, messages=user(CALL), tools=TOOLS, stream=streaming)
        if streaming:
            events = payloads(response.content)
            pieces = [event["delta"] for event in events if event["type"] == "content_block_delta"]
            arguments = json.loads("".join(piece.get("partial_json", "") for piece in pieces))
            reason = events[-2]["delta"]["stop_reason"]
        else:
            message = response.json()
            assert [block["type"] for block in message["content"]] == ["text", "tool_use"]
            arguments, reason = message["content"][1]["input"], message["stop_reason"]

        assert list(arguments.items()) == [("z", 1), ("a", "é")]
        assert reason == "tool_use"

    run(tmp_path, scenario)


def test_thinking_is_a_block_when_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    """`thinking` reaches the template, and its text comes back signed."""

    async def scenario(it: Stack) -> None:
        asked = {"messages": user("[[say hm</think>So.]]"), "thinking": {"type": "enabled", "budget_tokens": 1024}}
        message = (await it.post(MESSAGES, **asked)).json()

        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
        assert message["content"][0]["thinking"].strip() == "hm"
        assert message["content"][0]["signature"]

    run(tmp_path, scenario, thinking=True)


def test_a_conversation_with_everything_is_read(tmp_path: pathlib.Path) -> None:
    """System turns in place, tool results, several text blocks, a prefill: nothing that the gateway sends is refused."""
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "42"}]},
        {"role": "system", "content": "stay brief"},
        {"role": "user", "content": "so?"},
        {"role": "assistant", "content": "It is"},
    ]
    choice = {"type": "auto", "disable_parallel_tool_use": True}

    async def scenario(it: Stack) -> None:
        response = await it.post(MESSAGES, messages=turns, system="s", tools=TOOLS, tool_choice=choice, top_k=5)

        assert response.status_code == 200, response.text

    run(tmp_path, scenario)


def test_a_count_is_what_the_message_then_costs(tmp_path: pathlib.Path) -> None:
    """By the same template, tools and all, a prefill too."""
    asked: dict[str, Any] = {
        "system": "s",
        "tools": TOOLS,
        "messages": [*user("hé"), {"role": "assistant", "content": "I"}],
    }

    async def scenario(it: Stack) -> None:
        counted = (await it.client.post(f"{MESSAGES}/count_tokens", json={"model": MODEL, **asked})).json()
        message = (await it.post(MESSAGES, **asked)).json()

        assert counted["input_tokens"] == message["usage"]["input_tokens"]

    run(tmp_path, scenario)


def test_counting_loads_nothing(tmp_path: pathlib.Path) -> None:
    """Answered from the files of a model that is not loaded."""

    async def scenario(it: Stack) -> None:
        body = {"model": MODEL, "messages": user("hi")}
        response = await it.client.post(f"{MESSAGES}/count_tokens", json=body)

        assert response.status_code == 200, response.text
        assert not it.neuron.lifecycle.residents

    run(tmp_path, scenario, load=False)


@pytest.mark.parametrize("streaming", [False, True])
def test_refusals_keep_their_meaning(tmp_path: pathlib.Path, streaming: bool) -> None:
    """Too long a prompt, a form that nobody can hold to, a template that refuses: each with its status, in each dialect."""

    async def scenario(it: Stack) -> None:
        long = user("x" * 300)
        odd = {"output_config": {"format": {"type": "json_schema", "schema": {"not": {"type": "string"}}}}}
        chat = await it.post(CHAT, messages=long, stream=streaming)
        message = await it.post(MESSAGES, messages=long, stream=streaming)
        form = await it.post(MESSAGES, messages=user("hi"), stream=streaming, **odd)
        template = await it.post(MESSAGES, messages=user("refuse to render"), stream=streaming)

        assert (chat.status_code, chat.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert message.json()["error"]["message"].startswith("prompt is too long: ")
        assert message.json()["error"]["message"].endswith(" tokens > 256 maximum")
        assert (form.status_code, "the keyword not " in form.json()["error"]["message"]) == (400, True)
        assert template.status_code == 422

    run(tmp_path, scenario, max_context=256)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_an_engine_that_dies_is_an_error_event(tmp_path: pathlib.Path, path: str) -> None:
    """Through both programs."""

    async def scenario(it: Stack) -> None:
        raw = (await it.post(path, messages=user("[[die 3]]"), stream=True)).content
        last = payloads(raw)[-1]

        assert last["error"]["message"]
        assert b"[DONE]" not in raw
        assert b"message_stop" not in raw
        assert it.records[0].outcome == "error"

    run(tmp_path, scenario)


def test_a_client_that_leaves_frees_the_engine(tmp_path: pathlib.Path) -> None:
    """The daemon has nothing in flight soon after."""

    async def scenario(it: Stack) -> None:
        body = msgspec.json.encode({"model": MODEL, "messages": user("[[stall 3]]"), "stream": True})
        headers = {"content-type": "application/json"}
        async with it.client.stream("POST", CHAT, content=body, headers=headers) as response:
            async for chunk in response.aiter_raw():
                if b'"content":"' in chunk and b'"content":""' not in chunk:
                    break
        for _ in range(1000):
            health = (await it.neuron.http.get("/health")).json()
            if not health["models"][0]["in_flight"]:
                break

        assert not health["models"][0]["in_flight"]
        assert it.records[0].outcome == "cancelled"

    run(tmp_path, scenario)


def test_other_weights_through_the_gateway(tmp_path: pathlib.Path) -> None:
    """They serve on the node; a refusal says which node, and why."""
    tuned = write_tiny_model(tmp_path / "tuned")
    broken = write_tiny_model(tmp_path / "broken", fail=["bad_checkpoint", "the file is cut short"])

    async def scenario(it: Stack) -> None:
        here = {"host": "127.0.0.1"}
        swapped, refused = [
            await it.client.post("/admin/reload", json={"model": MODEL, "source": str(folder)}, headers=here)
            for folder in (tuned, broken)
        ]
        served = (await it.neuron.http.get("/models")).json()[0]["weights"]

        assert swapped.json() == {"status": "reloaded", "nodes": {"one": served}}
        assert (served["source"], served["reloads"]) == (str(tuned), 1)
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert (error["kind"], error["message"]) == ("bad_checkpoint", "one: the file is cut short")

    run(tmp_path, scenario)


def test_adapters_are_models_of_the_gateway(tmp_path: pathlib.Path) -> None:
    """Listed beside their model before it is loaded, which it is for them, asked for by name in either dialect, and of no
    weight when room is made."""

    async def scenario(it: Stack) -> None:
        name = f"{MODEL}:poet"
        async with asyncio.timeout(20):
            while name not in [  # noqa: ASYNC110 - it looks by itself
                one["id"] for one in (await it.client.get("/v1/models")).json()["data"]
            ]:
                await asyncio.sleep(0.02)
        said = [{"role": "user", "content": "hello"}]
        chat, message = [await it.post(path, model=name, messages=said) for path in (CHAT, MESSAGES)]
        fleet = (await it.client.get("/admin/fleet", headers={"host": "127.0.0.1"})).json()["nodes"][0]["models"]

        assert (chat.status_code, chat.json()["model"]) == (200, name)
        assert message.status_code == 200, message.text
        found = {one["id"]: (one["beside"], one["vram_used_mb"]) for one in fleet if one["status"] == "loaded"}
        assert found == {MODEL: (None, 3), name: (MODEL, None)}

    run(tmp_path, scenario, load=False, adapters=("poet=/srv/poet",))
