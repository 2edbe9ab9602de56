"""Answers that are made whether or not anybody waits for them: kept from their beginning, read along by who wants to."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

from cortex_gateway.dialects.dialect import Keep, Kept
from cortex_gateway.errors import AnswersUnusable, CortexError, ShuttingDown
from cortex_gateway.routes.ask import Outgoing, answered, fed, reading
from cortex_gateway.routes.exchange import Exchange
from cortex_gateway.routes.failures import INTERNAL, failure_of
from cortex_gateway.routes.followed import EventLog, read_along
from cortex_gateway.routes.kept import owner

LOG = logging.getLogger("cortex.gateway")
Tell = Callable[[bytes], None]
"""Takes whole events of an answer's stream."""
UNFINISHED = "The gateway went down, or the request's time was over, before the answer was whole."


async def in_background(it: Exchange, keep: Keep, outgoing: Outgoing, *, stream: bool) -> None:
    """The client has its word at once, or with `stream` reads along as long as it likes; the request goes on as any other,
    seen, limited and ended as such."""
    it.check_model(outgoing.model)
    it.gateway.fleet.resolve(outgoing.model)  # a name that nobody knows is told at once
    it.record.answer = keep.id
    it.outlives_client()
    await keep_answer(it, keep, keep.answer.whole(), running=True)
    if not stream:
        await it.client.answer(200, keep.answer.whole())
        await _make(it, keep, outgoing, _untold)
        return
    with it.gateway.followed.log(owner(it), keep.id) as log:
        log.add(keep.answer.queued())
        async with _reading_along(it, log):
            await _make(it, keep, outgoing, log.add)


@contextlib.asynccontextmanager
async def _reading_along(it: Exchange, log: EventLog) -> AsyncIterator[None]:
    """The client reads beside the block, which waits for it at its end, and not for one that has left."""
    reader = asyncio.create_task(read_along(it.client, log, 0, it.gateway.keep_alive_seconds))
    try:
        yield
    finally:
        log.end()
        await asyncio.wait((reader,))
        if not reader.cancelled() and (error := reader.exception()):
            LOG.error("request %s: its client was not told all: %r", it.context.id, error)


def _untold(_: bytes) -> None:
    """Nobody reads along."""


async def _make(it: Exchange, keep: Keep, outgoing: Outgoing, tell: Tell) -> None:
    try:
        await _work(it, keep, outgoing, tell)
    except asyncio.CancelledError:
        if it.record.outcome == "cancelled":
            keep.answer.cancel()
        else:
            tell(keep.answer.fail(failure_of(ShuttingDown(UNFINISHED))))
        raise
    except Exception as error:  # whatever it was, whoever asks later is told
        if not keep.answer.ended:
            tell(keep.answer.fail(failure_of(error) if isinstance(error, CortexError) else INTERNAL))
        raise
    finally:
        it.record.usage = keep.answer.usage
        await keep_answer(it, keep, keep.answer.whole())


async def _work(it: Exchange, keep: Keep, outgoing: Outgoing, tell: Tell) -> None:
    answer = keep.answer
    async with answered(it, outgoing) as response:
        tell(answer.working())
        await keep_answer(it, keep, answer.whole(), running=True)
        with reading():
            async for chunk in response.aiter_raw():
                tell(fed(it, answer, chunk))
        tell(answer.close())
        if answer.failure:
            it.record.failed(answer.failure)


async def keep_answer(it: Exchange, keep: Keep, body: bytes, *, running: bool = False) -> None:
    """As it stands now; at its end its conversation has it, too. Where that fails the log says so."""
    if keep.by_itself:
        await it.gateway.answers.keep(owner(it), Kept(keep.id, keep.previous, keep.input, body), running=running)
    joined = keep.joined
    if joined is None or running:
        return
    try:
        await it.gateway.answers.change(owner(it), joined.id, lambda found: joined.add(found, body))
    except AnswersUnusable as error:
        LOG.error("answer %s is not in conversation %s: %s", keep.id, joined.id, error)  # noqa: TRY400
