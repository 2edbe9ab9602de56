"""Many requests at once through a real gateway whose neurons' answers are spoilt in every way: each has an honest end."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
from attrs import define

from cortex_gateway.dialects.sse import SseParser
from tests.fakes.fault_proxy import Fault, FaultProxy, fault_proxy
from tests.fakes.gateway_rig import BODIES, CHAT, MESSAGES
from tests.fakes.live_gateway import in_thread, live_gateway, served
from tests.fakes.neuron_double import Answer, NeuronDouble
from tests.fakes.waiting import until

TIMES, AT_ONCE, ROUNDS = 40, 32, 4
FAULTS = [Fault.NONE, Fault.CUT, Fault.SLOW, Fault.BUSY, Fault.HALF, Fault.STALL, Fault.PAUSE, Fault.RESET, Fault.NONE]


@define
class EchoNeuron(NeuronDouble):
    """Says what it was asked, TIMES times."""

    def next_answer(self) -> Answer:
        said = self.seen.pop().body["messages"][-1]["content"]
        word = said if isinstance(said, str) else said[0]["text"]
        return Answer(deltas=({"content": word},) * TIMES)


@contextlib.asynccontextmanager
async def spoilt() -> AsyncIterator[list[FaultProxy]]:
    """Two neurons, each behind a proxy; together they go through FAULTS again and again."""
    faults = itertools.cycle(FAULTS)
    async with contextlib.AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(served(EchoNeuron())) for _ in range(2)]
        yield [await stack.enter_async_context(fault_proxy(url, faults)) for url in urls]


async def ask(client: httpx.AsyncClient, path: str, word: str, *, stream: bool) -> str:
    """How it ended; asserts that what was said is the word, and that the end is one of the dialect."""
    body = {**BODIES[path], "messages": [{"role": "user", "content": word}], "stream": stream}
    answer = await client.post(path, json=body)
    if answer.status_code != 200:
        assert answer.status_code in (502, 503), answer.text
        check_envelope(path, answer.json())
        return "refused"
    if not stream:
        assert whole_text(path, answer.json()) == word * TIMES
        return "whole"
    events = [
        (one.event, msgspec.json.decode(one.data)) for one in SseParser().feed(answer.content) if one.data[:1] == b"{"
    ]
    said = "".join(text_of(path, one) for _, one in events)
    if (b"[DONE]" if path == CHAT else b"message_stop") in answer.content:
        assert said == word * TIMES
        return "whole"
    name, last = events[-1]
    check_envelope(path, last)
    assert name == (None if path == CHAT else "error")
    assert (word * TIMES).startswith(said)
    return "broken off"


def check_envelope(path: str, said: Any) -> None:
    assert said["error"]["message"]
    assert said["error"]["type"]
    assert said.get("type") == (None if path == CHAT else "error")


def whole_text(path: str, said: Any) -> str:
    text = said["choices"][0]["message"]["content"] if path == CHAT else said["content"][0]["text"]
    assert isinstance(text, str)
    return text


def text_of(path: str, event: Any) -> str:
    if path == CHAT:
        return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
    return str(event["delta"].get("text", "")) if event.get("type") == "content_block_delta" else ""


async def round_of(client: httpx.AsyncClient, number: int, proxies: list[FaultProxy]) -> Counter[str]:
    """So many at once, of every kind; those whose answer hangs for ever are given up when all others have ended."""
    kinds = itertools.cycle(itertools.product((CHAT, MESSAGES), (False, True)))
    tasks = [
        asyncio.create_task(ask(client, path, f"<{number}.{at}>", stream=stream))
        for at, (path, stream) in zip(range(AT_ONCE), kinds, strict=False)
    ]
    await until(lambda: sum(not task.done() for task in tasks) == sum(proxy.stalled for proxy in proxies), 60)
    hanging = [task for task in tasks if not task.done()]
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    return Counter(task.result() for task in tasks if task not in hanging) + Counter({"given up": len(hanging)})


async def nothing_in_flight(client: httpx.AsyncClient, proxies: list[FaultProxy]) -> None:
    """Who has given up is gone from both sides, as soon as the gateway has noticed."""
    async with asyncio.timeout(20):
        for _ in itertools.count():
            if not await in_flight(client) and not any(proxy.stalled for proxy in proxies):
                return
            await asyncio.sleep(0.01)


async def in_flight(client: httpx.AsyncClient) -> int:
    nodes = (await client.get("/admin/fleet")).json()["nodes"]
    return sum(model["in_flight"] for node in nodes for model in node["models"])


def test_every_request_has_an_honest_end_and_nothing_leaks() -> None:
    """Whole, or an error of the dialect; never somebody else's words; and then nothing is in flight, on either side."""

    async def use(url: str, proxies: list[FaultProxy]) -> Counter[str]:
        ends: Counter[str] = Counter()
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for number in range(ROUNDS):
                ends += await round_of(client, number, proxies)
                await nothing_in_flight(client, proxies)
        return ends

    with in_thread(spoilt()) as proxies:
        hosts = {f"n{at}": proxy.url for at, proxy in enumerate(proxies)}
        with live_gateway(hosts) as gateway:
            ends = asyncio.run(use(gateway.url, proxies))
        used = sum((proxy.done for proxy in proxies), Counter[Fault]())

    assert sum(ends.values()) == ROUNDS * AT_ONCE
    assert set(ends) == {"whole", "refused", "broken off", "given up"}
    assert all(used[fault] for fault in Fault)
