"""Every route on which a model answers, whatever the dialect: one way for streams and one for answers that are not streamed."""

import contextlib
import logging
import time
import uuid
from functools import partial

import httpx

from cortex_gateway.dialects.dialect import (
    Answer,
    AnswerId,
    Decoded,
    Earlier,
    Generation,
    GoesOn,
    Keep,
    Progress,
    Ready,
)
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.routes.ask import Outgoing, answered, fed, read, reading
from cortex_gateway.routes.background import in_background, keep_answer
from cortex_gateway.routes.exchange import Exchange
from cortex_gateway.routes.failures import refusal
from cortex_gateway.routes.kept import owner

log = logging.getLogger("cortex.gateway")
MOST_TOLD = 256


async def generate(it: Exchange, body: bytes, *, route: Generation) -> None:
    """Ask a neuron and answer the client. Raises RefusedError where `body` is no request, and as `ask.answered` does."""
    decoded = route.decode(body)
    identity = AnswerId(it.context.id, uuid.uuid4().hex, int(time.time()), it.record.timing)
    if isinstance(decoded, Ready):
        await _ready(it, decoded, identity)
        return
    if isinstance(decoded, GoesOn):
        decoded = decoded.decode(await _recalled(it, decoded))
    _tell(it, decoded)
    it = it.of_conversation(decoded.affinity)
    keep = decoded.keep(identity) if decoded.keep else None
    background = keep is not None and keep.background
    streams = decoded.stream or background
    path = decoded.neuron_path or route.neuron_path
    outgoing = Outgoing(model=decoded.model, path=path, body=decoded.body, stream=streams)
    if keep is not None and background:
        await in_background(it, keep, outgoing, stream=decoded.stream)
    elif decoded.stream:
        await _stream(it, keep.answer if keep else decoded.answer(identity), keep, outgoing)
    else:
        await _non_streaming(it, decoded, identity, keep, outgoing)


async def _ready(it: Exchange, wanted: Ready, identity: AnswerId) -> None:
    """Wait for a replica as a request does, and ask it nothing."""
    it.check_model(wanted.model)
    it.record.model = wanted.model
    async with await it.gateway.fleet.acquire(wanted.model, it.context) as lease:
        it.record.leased(lease)
        await it.client.answer(200, wanted.answer(identity))


async def _recalled(it: Exchange, wanted: GoesOn) -> Earlier:
    """The answers that a request goes on from, of those that are its sender's."""
    answers = it.gateway.answers
    chain = () if wanted.previous is None else await answers.chain(owner(it), wanted.previous)
    named = () if wanted.conversation is None else await answers.chain(owner(it), wanted.conversation)
    return Earlier(chain, await answers.several(owner(it), wanted.others), named[-1] if named else None)


def _tell(it: Exchange, decoded: Decoded) -> None:
    """What was left out of requests, each once: an agent sends the same a thousand times."""
    for sentence in decoded.dropped:
        if sentence not in it.gateway.told and len(it.gateway.told) < MOST_TOLD:
            it.gateway.told.add(sentence)
            log.warning("request %s: %s (said once)", it.context.id, sentence)


async def _non_streaming(
    it: Exchange, decoded: Decoded, identity: AnswerId, keep: Keep | None, outgoing: Outgoing
) -> None:
    async with answered(it, outgoing) as response:
        raw = await read(response)
    answer = decoded.non_streaming(raw, identity)
    it.record.usage = answer.usage
    if isinstance(answer.body, Failure):
        raise refusal(answer.body)
    if keep is not None:
        await keep_answer(it, keep, answer.body)
    await it.client.answer(200, answer.body)


async def _stream(it: Exchange, answer: Answer, keep: Keep | None, outgoing: Outgoing) -> None:
    keep_alive = partial(_keep_alive, it, answer, outgoing.model)
    async with contextlib.AsyncExitStack() as stack, it.streaming(keep_alive, answer.fail):
        response = await stack.enter_async_context(answered(it, outgoing))
        await it.client.begin_stream()
        await _relay(it, answer, keep, response)


def _keep_alive(it: Exchange, answer: Answer, model: str) -> bytes:
    """Until a replica has it the fleet knows what it waits for, from then on the neuron tells."""
    status = None if it.record.node else it.gateway.fleet.waits(model)
    waits = Progress(status.phase, status.done, status.total, status.unit) if status else None
    return answer.keep_alive(waits)


async def _relay(it: Exchange, answer: Answer, keep: Keep | None, response: httpx.Response) -> None:
    try:
        with reading():
            async for chunk in response.aiter_raw():
                ready = fed(it, answer, chunk)
                if keep is not None and keep.answer.ended:  # before the client sees its end, and goes on from it
                    await keep_answer(it, keep, keep.answer.whole())
                if ready:
                    await it.client.write(ready)
    finally:
        it.record.usage = answer.usage
    last = answer.close()
    if answer.failure:
        it.record.failed(answer.failure)
    await it.client.end(last)
