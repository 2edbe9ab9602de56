"""Asks a neuron for an answer, and another one where that may help; knows HTTP and the fleet, no dialect."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
from attrs import Factory, define, field, frozen

from cortex_gateway.context import RequestContext
from cortex_gateway.dialects.dialect import Answer
from cortex_gateway.dialects.openai import errors as openai_errors
from cortex_gateway.errors import (
    CortexError,
    NotConnected,
    UpstreamMalformed,
    UpstreamReadFailed,
    UpstreamUnreachable,
)
from cortex_gateway.fleet.client import DENIED, denied
from cortex_gateway.fleet.leases import Lease
from cortex_gateway.routes.exchange import Exchange
from cortex_gateway.routes.failures import refusal
from cortex_gateway.routes.gateway import Gateway
from cortex_gateway.routes.retry import ATTEMPTS, BROKEN, Again, blames, fault

CONNECT_SECONDS = 5.0
# A neuron's stream is never silent for long (docs/wire.md section 3): one that is has lost its host.
SILENCE_SECONDS = 30.0


@frozen
class Outgoing:
    """What to ask a neuron.

    Attributes:
        model: as the client called it.
        path: the neuron's route.
        body: resolved model id -> the bytes to post.
        stream: whether the answer is a stream.
        silence: seconds without a byte after which no answer is expected; None = as long as the node answers looks.
    """

    model: str
    path: str
    body: Callable[[str], bytes]
    stream: bool
    silence: float | None = field(
        default=Factory(lambda self: SILENCE_SECONDS if self.stream else None, takes_self=True)
    )


@contextlib.asynccontextmanager
async def answered(it: Exchange, outgoing: Outgoing) -> AsyncIterator[httpx.Response]:
    """A neuron's good answer, its body not read yet; of another replica where `retry` says that this one may be asked.

    Raises Forbidden, NeuronRefused, UpstreamError, and what `Fleet.acquire` raises.
    """
    it.check_model(outgoing.model)
    it.record.model = outgoing.model
    tries = Tries(it.gateway, outgoing.model, it.context)
    lease = await tries.first()
    while True:
        async with lease:
            it.record.leased(lease)
            try:
                response = await _good(it, lease.base_url, outgoing, lease.model)
            except CortexError as error:
                failed = error
                _blame(it, lease, error)
            else:
                async with _heard(it, lease, response):
                    yield response
                return
        lease = await tries.next(lease, failed)


@contextlib.asynccontextmanager
async def _heard(it: Exchange, lease: Lease, response: httpx.Response) -> AsyncIterator[None]:
    """While the rest of an answer is read; what that says of the replica is told to the fleet."""
    lease.heard = functools.partial(getattr, response, "num_bytes_downloaded")
    lease.begun()
    try:
        async with contextlib.aclosing(response):
            yield
    except CortexError as error:
        _blame(it, lease, error)
        raise
    failure = it.record.failure
    if failure is None:
        lease.served()
    elif blames(failure):
        _failed(it, lease, f"{failure.status}: {failure.message}")


def _blame(it: Exchange, lease: Lease, error: CortexError) -> None:
    """Tell the fleet what a failure says of its node and of the replica."""
    found = fault(error)
    if found.suspect:
        lease.suspect(error.message)
    if found.absent:
        lease.absent()
    if found.blames:
        _failed(it, lease, f"{error.status}: {error.message}")


def _failed(it: Exchange, lease: Lease, reason: str) -> None:
    lease.failed(reason)
    it.gateway.metrics.observe_failure(lease.model, lease.node)


@contextlib.asynccontextmanager
async def asked(it: Exchange, base_url: str, outgoing: Outgoing, model: str) -> AsyncIterator[httpx.Response]:
    """One node's good answer, without a lease and without a second try. Raises as `answered` does."""
    response = await _good(it, base_url, outgoing, model)
    async with contextlib.aclosing(response):
        yield response


async def _good(it: Exchange, base_url: str, outgoing: Outgoing, model: str) -> httpx.Response:
    """The answer to one try, to be closed by the caller. Raises where it is none."""
    response = await _send(it, _request(it, base_url, outgoing, model))
    try:
        await _check(response, outgoing)
    except BaseException:
        await response.aclose()
        raise
    return response


def _request(it: Exchange, base_url: str, outgoing: Outgoing, model: str) -> httpx.Request:
    headers = {
        "content-type": "application/json",
        "accept": "text/event-stream" if outgoing.stream else "application/json",
        "accept-encoding": "identity",
        "x-request-id": it.context.id,
    }
    timeout = {"connect": CONNECT_SECONDS, "read": outgoing.silence, "write": SILENCE_SECONDS, "pool": None}
    return httpx.Request(
        "POST",
        _url(base_url + outgoing.path),
        headers=headers,
        content=outgoing.body(model),
        extensions={"timeout": timeout},
    )


@functools.lru_cache(1024)
def _url(text: str) -> httpx.URL:
    """A few for each node: reading one takes longer than all else of a request's making."""
    return httpx.URL(text)


async def _send(it: Exchange, request: httpx.Request) -> httpx.Response:
    try:
        return await it.gateway.fleet.send(request)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise NotConnected(f"The neuron could not be reached: {_words(error)}") from error
    except httpx.TransportError as error:
        raise UpstreamUnreachable(
            f"The neuron had the request and gave no answer: {_words(error)}. "
            "It was not sent to another one, for it may be what kept this one from it."
        ) from error


@define
class Tries:
    """How often and where one request was tried."""

    gateway: Gateway
    model: str
    context: RequestContext
    _failed_on: list[str] = field(factory=list, init=False)
    _again: list[Again] = field(factory=list, init=False)

    async def first(self) -> Lease:
        """Raises as `Fleet.acquire` does."""
        return await self.gateway.fleet.acquire(self.model, self.context)

    async def next(self, lease: Lease, error: CortexError) -> Lease:
        """Another one after `lease` has failed with `error`, which is raised where there is none."""
        self._failed_on.append(lease.node)
        self._again.append(fault(error).again)
        if self._again[-1] == "never" or len(self._again) == ATTEMPTS or self._again.count("broken") > BROKEN:
            raise error
        found = await self.first() if set(self._again) == {"anywhere"} else await self._elsewhere()
        if found is None:
            raise error
        self.gateway.metrics.observe_retry(lease.model, lease.node)
        return found

    async def _elsewhere(self) -> Lease | None:
        return await self.gateway.fleet.another(self.model, self.context, besides=self._failed_on)


async def _check(response: httpx.Response, outgoing: Outgoing) -> None:
    """Let only a good answer of the right kind through."""
    if response.status_code != 200:
        raw = await read(response)
        if response.status_code in DENIED:
            raise denied("The neuron", raw)
        failure = openai_errors.read(response.status_code, raw, _retry_after(response))
        if failure is None or response.status_code < 400:
            raise UpstreamMalformed(
                f"The neuron answered {response.status_code} without an error that can be read.",
                answered=response.status_code,
            )
        raise refusal(failure)
    media = response.headers.get("content-type", "")
    if outgoing.stream and not media.startswith("text/event-stream"):
        raise UpstreamMalformed(f"The neuron answered a stream request with {media!r}.")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after(response: httpx.Response) -> int | None:
    sent = response.headers.get("retry-after", "")
    return int(sent) if sent.isascii() and sent.isdigit() else None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around every read of an answer's body. Raises UpstreamReadFailed when it breaks off."""
    try:
        yield
    except httpx.TransportError as error:
        raise UpstreamReadFailed(f"The neuron's answer broke off: {_words(error)}") from error


def fed(it: Exchange, answer: Answer, chunk: bytes) -> bytes:
    """What of a stream goes on to the client, counted."""
    ready = answer.feed(chunk)
    if answer.passed:
        it.record.token(answer.passed)
    return ready


async def read(response: httpx.Response) -> bytes:
    """The whole body."""
    with reading():
        return await response.aread()
