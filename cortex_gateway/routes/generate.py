"""Every route on which a model answers, whatever the dialect: one way for streams and one for answers that are not streamed."""

import contextlib
import uuid

import httpx

from cortex_gateway.dialects.dialect import Answer, AnswerId, Decoded, Generation
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.routes.ask import Outgoing, answered, read, reading
from cortex_gateway.routes.exchange import Exchange
from cortex_gateway.routes.failures import refusal


async def generate(it: Exchange, body: bytes, *, route: Generation) -> None:
    """Ask a neuron and answer the client. Raises RefusedError where `body` is no request, and as `ask.answered` does."""
    decoded = route.decode(body)
    it = it.of_conversation(decoded.affinity)
    identity = AnswerId(it.context.id, uuid.uuid4().hex)
    outgoing = Outgoing(model=decoded.model, path=route.neuron_path, body=decoded.body, stream=decoded.stream)
    await (_stream if decoded.stream else _non_streaming)(it, decoded, identity, outgoing)


async def _non_streaming(it: Exchange, decoded: Decoded, identity: AnswerId, outgoing: Outgoing) -> None:
    async with answered(it, outgoing) as response:
        raw = await read(response)
    answer = decoded.non_streaming(raw, identity)
    it.record.usage = answer.usage
    if isinstance(answer.body, Failure):
        raise refusal(answer.body)
    await it.client.answer(200, answer.body)


async def _stream(it: Exchange, decoded: Decoded, identity: AnswerId, outgoing: Outgoing) -> None:
    answer = decoded.answer(identity)
    async with contextlib.AsyncExitStack() as stack, it.streaming(answer.keep_alive, answer.fail):
        response = await stack.enter_async_context(answered(it, outgoing))
        await it.client.begin_stream()
        await _relay(it, answer, response)


async def _relay(it: Exchange, answer: Answer, response: httpx.Response) -> None:
    try:
        with reading():
            async for chunk in response.aiter_raw():
                ready = answer.feed(chunk)
                if answer.passed:
                    it.record.token(answer.passed)
                if ready:
                    await it.client.write(ready)
    finally:
        it.record.usage = answer.usage
    last = answer.close()
    if answer.failure:
        it.record.failed(answer.failure)
    await it.client.end(last)
