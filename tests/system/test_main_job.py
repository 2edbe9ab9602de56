"""The main job on real weights: both dialects, the official SDKs, company, accidents. Reference: transformers in float32."""

import asyncio
import json
import os
import pathlib
import random
import signal
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.params import slow_but
from tests.fakes.stack import Stack
from tests.fakes.waiting import until

ROWS = json.loads((pathlib.Path(__file__).parent.parent / "data/smollm2-greedy.json").read_text())
EOS = 2
FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0}
COUNT = [{"role": "user", "content": "Count from 1 to 10."}]


def most(row: dict[str, Any]) -> int:
    return len(row["greedy_ids"]) if row["greedy_ids"][-1] != EOS else 64


def check(row: dict[str, Any], answer: dict[str, Any]) -> None:
    """Token for token: as many, each with the log-probability that transformers gave it, and the same text.

    A final end-of-sequence token is counted but is no content, and so has no entry of its own.
    """
    choice = answer["choices"][0]
    got = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert answer["usage"]["prompt_tokens"] == len(row["prompt_ids"])
    assert choice["message"]["content"] == row["text"]
    assert answer["usage"]["completion_tokens"] == len(row["greedy_ids"])
    assert got == pytest.approx(row["logprobs"][: len(got)], abs=5e-3)


@pytest.mark.parametrize("number", slow_but([0, 2], range(len(ROWS))))
def test_greedy_text_is_that_of_transformers(stack: Stack, number: int) -> None:
    """One after another, each alone; the next test has all of them in every run."""
    row = ROWS[number]
    check(row, stack.chat(row["messages"], max_tokens=most(row), logprobs=True))


def test_all_rows_at_once_give_the_same(stack: Stack) -> None:
    async def ask(client: httpx.AsyncClient, row: dict[str, Any]) -> dict[str, Any]:
        body = {
            "model": "demo",
            "messages": row["messages"],
            "temperature": 0,
            "max_tokens": most(row),
            "logprobs": True,
        }
        response = await client.post("/v1/chat/completions", json=body)
        answer: dict[str, Any] = response.json()
        return answer

    async def everything() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=120) as client:
            return await asyncio.gather(*(ask(client, row) for row in ROWS))

    for row, answer in zip(ROWS, asyncio.run(everything()), strict=True):
        check(row, answer)


def test_a_seed_gives_the_same_text_alone_and_beside_eight_others(stack: Stack) -> None:
    seeded = {"model": "demo", "messages": COUNT, "temperature": 1.0, "top_p": 0.95, "seed": 7, "max_tokens": 24}

    async def text(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await client.post("/v1/chat/completions", json=body)
        content: str = response.json()["choices"][0]["message"]["content"]
        return content

    async def run() -> tuple[str, str]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=120) as client:
            alone = await text(client, seeded)
            others = [seeded | {"seed": i, "messages": ROWS[i]["messages"]} for i in range(8)]
            beside, *_ = await asyncio.gather(*(text(client, body) for body in [seeded, *others]))
            return alone, beside

    alone, beside = asyncio.run(run())

    assert alone
    assert alone == beside


@pytest.fixture(scope="module")
def openai_sdk(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_sdk(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.url, api_key="none", max_retries=0) as client:
        yield client


def test_the_openai_sdk_gets_an_answer(openai_sdk: openai.OpenAI) -> None:
    answer = openai_sdk.chat.completions.create(model="demo", messages=FRANCE, temperature=0, max_tokens=32)

    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)


def test_the_openai_sdk_streams(openai_sdk: openai.OpenAI) -> None:
    with openai_sdk.chat.completions.create(
        model="demo", messages=FRANCE, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of France is Paris."
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_the_openai_sdk_completes_and_lists(openai_sdk: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    done = openai_sdk.completions.create(model="demo", prompt=prompt, temperature=0, max_tokens=3)

    assert "Paris" in done.choices[0].text
    assert "smollm2-135m-instruct" in {model.id for model in openai_sdk.models.list()}


def test_the_anthropic_sdk_gets_an_answer(anthropic_sdk: anthropic.Anthropic) -> None:
    # The SDK no longer names temperature, which the API still takes.
    answer = anthropic_sdk.messages.create(model="demo", messages=FRANCE, max_tokens=32, extra_body=GREEDY)

    assert [block.text for block in answer.content if block.type == "text"] == ["The capital of France is Paris."]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0) == 37
    assert answer.usage.output_tokens == 8


def test_the_anthropic_sdk_streams_and_counts(anthropic_sdk: anthropic.Anthropic) -> None:
    with anthropic_sdk.messages.stream(model="demo", messages=FRANCE, max_tokens=32, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    counted = anthropic_sdk.messages.count_tokens(model="demo", messages=FRANCE)

    assert text == "The capital of France is Paris."
    assert final.usage.output_tokens == 8
    assert counted.input_tokens == 37


def test_the_next_turn_pays_for_its_new_text(openai_sdk: openai.OpenAI, anthropic_sdk: anthropic.Anthropic) -> None:
    """Each client sends back what it read; of the turn before all full pages are found, its last token aside."""
    chat: list[Any] = [{"role": "user", "content": "Name four animals that live in the sea. Then one that does not."}]
    first = openai_sdk.chat.completions.create(model="demo", messages=chat, temperature=0, max_tokens=40)
    chat += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "user", "content": "Which one is largest?"},
    ]
    second = openai_sdk.chat.completions.create(model="demo", messages=chat, temperature=0, max_tokens=40)

    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == (first.usage.total_tokens - 1) // 16 * 16

    chat = [{"role": turn["role"], "content": turn["content"]} for turn in chat]
    with anthropic_sdk.messages.stream(model="demo", messages=chat, max_tokens=40, extra_body=GREEDY) as stream:
        start = next(event.message.usage for event in stream if event.type == "message_start")
        again = stream.get_final_message()

    cached = (second.usage.prompt_tokens - 1) // 16 * 16
    assert (start.input_tokens, start.cache_read_input_tokens) == (second.usage.prompt_tokens - cached, cached)
    assert (again.usage.input_tokens, again.usage.cache_read_input_tokens) == (start.input_tokens, cached)
    assert [block.text for block in again.content if block.type == "text"] == [second.choices[0].message.content]


def test_the_sdks_see_the_right_errors(openai_sdk: openai.OpenAI, anthropic_sdk: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such"):
        openai_sdk.chat.completions.create(model="no-such", messages=FRANCE)
    with pytest.raises(anthropic.NotFoundError, match="no-such"):
        anthropic_sdk.messages.create(model="no-such", messages=FRANCE, max_tokens=5)
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192 tokens"):
        openai_sdk.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 9000}])
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: "):
        anthropic_sdk.messages.create(
            model="demo", messages=[{"role": "user", "content": "word " * 9000}], max_tokens=5
        )


def test_stop_strings_end_the_text_before_them(stack: Stack) -> None:
    answer = stack.chat(FRANCE, stop=[" is Pa"])

    assert answer["choices"][0]["message"]["content"] == "The capital of France"
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_hundred_requests_cancelled_at_random_leave_nothing(stack: Stack) -> None:
    """Every page is free afterwards, and the engine still answers as before."""
    rng = random.Random(5)

    async def one(client: httpx.AsyncClient, delay: float) -> None:
        body = {"model": "demo", "messages": COUNT, "max_tokens": 64, "stream": True}
        try:
            async with asyncio.timeout(delay):
                async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    async for _ in response.aiter_bytes():
                        pass
        except TimeoutError:
            pass

    async def storm() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=stack.url, timeout=60, limits=limits) as client:
            for _ in range(5):
                await asyncio.gather(*(one(client, rng.uniform(0.0, 1.0)) for _ in range(20)))

    asyncio.run(storm())

    asyncio.run(until(lambda: idle(load(stack))))
    check(ROWS[0], stack.chat(ROWS[0]["messages"], max_tokens=64, logprobs=True))


def test_an_engine_killed_under_eight_streams_is_back_by_itself(stack: Stack) -> None:
    """Every client that has heard something gets an error within ten seconds; daemon and gateway stay; the next one is served.

    One that has heard nothing yet would be answered by the next engine, in its own time.
    """
    heard: list[list[str]] = [[] for _ in range(8)]

    async def one(client: httpx.AsyncClient, chunks: list[str]) -> str:
        body = {"model": "demo", "messages": COUNT, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for chunk in response.aiter_text():
                chunks.append(chunk)  # noqa: PERF401 - read by others meanwhile
        return "".join(chunks)

    def all_heard() -> bool:
        """Of each the role chunk and one more."""
        return all("".join(chunks).count("data: ") >= 2 for chunks in heard)

    async def kill() -> list[str]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=60) as client:
            streams = [asyncio.ensure_future(one(client, chunks)) for chunks in heard]
            await until(all_heard)
            os.kill(stack.engine_pid(), signal.SIGKILL)
            async with asyncio.timeout(10):
                return await asyncio.gather(*streams)

    for body in asyncio.run(kill()):
        last = body.rstrip().rsplit("data: ", 1)[-1]
        assert "error" in json.loads(last)
    assert stack.models()["smollm2-135m-instruct"]["status"] in {"recovering", "loaded"}
    assert httpx.get(f"{stack.url}/health").status_code == 200
    asyncio.run(until(lambda: stack.models()["smollm2-135m-instruct"]["status"] == "loaded", 120))
    # The gateway answers 503 with Retry-After until it, too, has seen the model back.
    asyncio.run(until(lambda: httpx.get(f"{stack.url}/v1/models/smollm2-135m-instruct").json()["loaded"], 120))
    check(ROWS[0], stack.chat(ROWS[0]["messages"], max_tokens=64, logprobs=True))


def test_metrics_tell_what_happened(stack: Stack, anthropic_sdk: anthropic.Anthropic) -> None:
    """A real scrape before and after one answer in each dialect: both count their tokens and their first token."""
    before = scrape(stack)
    stack.chat(FRANCE, max_tokens=32)
    anthropic_sdk.messages.create(model="demo", messages=FRANCE, max_tokens=32, extra_body=GREEDY)
    after = scrape(stack)

    gained = {name: after[name] - before.get(name, 0) for name in after}
    assert gained["cortex_requests_total"] == 2
    assert gained["cortex_prompt_tokens_total"] == 2 * 37
    assert gained["cortex_cached_prompt_tokens_total"] >= 32
    assert gained["cortex_completion_tokens_total"] == 2 * 8
    assert gained["cortex_request_duration_seconds_count"] == 2
    # The gauge is what the neuron last said, a few seconds ago.
    asyncio.run(until(lambda: scrape(stack)["cortex_model_in_flight"] == 0))


def scrape(stack: Stack) -> dict[str, float]:
    """Every sample of the demo model, summed over its other labels, by name."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{stack.metrics_url}/metrics").text):
        for sample in family.samples:
            if sample.labels.get("model") == "smollm2-135m-instruct":
                sums[sample.name] = sums.get(sample.name, 0) + sample.value
    return sums


def idle(load: dict[str, Any]) -> bool:
    return load["in_flight"] == load["queue_depth"] == 0 and load["kv_available_mb"] == load["kv_budget_mb"]


def load(stack: Stack) -> dict[str, Any]:
    """The ModelLoad of the one loaded model."""
    models = httpx.get(f"{stack.neuron_url}/health").json()["models"]
    found: dict[str, Any] = models[0] if models else {"in_flight": -1, "queue_depth": -1}
    return found
