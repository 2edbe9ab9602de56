"""One request from its body to its record: routed, sent on, retried, answered; knows HTTP and the fleet, no dialect."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import httpx
from attrs import Factory, field, frozen
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from cortex_gateway.auth import policy
from cortex_gateway.auth.guard import Admission
from cortex_gateway.auth.principal import Principal
from cortex_gateway.dialects import openai_errors
from cortex_gateway.errors import ShuttingDown, UpstreamMalformed, UpstreamReadFailed, UpstreamUnreachable
from cortex_gateway.fleet.client import DENIED, denied
from cortex_gateway.routes.failures import Spelling, refusal, report
from cortex_gateway.routes.gateway import Gateway, Record
from cortex_gateway.stream import Client, ClientGoneError

ATTEMPTS = 3  # a kept connection that had gone stale, a node that is down, one that is up
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


@frozen
class Exchange:
    """One request on its way. `principal` is who sent it; his key goes no further than here."""

    gateway: Gateway
    client: Client
    record: Record
    principal: Principal

    def check_model(self, model: str) -> None:
        """Raises Forbidden where who sent it may not use the model."""
        policy.check_model(self.principal, model, self.gateway.fleet.resolve)

    @contextlib.asynccontextmanager
    async def answered(self, outgoing: Outgoing) -> AsyncIterator[httpx.Response]:
        """A neuron's good answer, its body not read yet; on another replica when the first cannot be reached.

        Raises Forbidden, what `Fleet.acquire` raises, NeuronRefused, UpstreamUnreachable, UpstreamMalformed.
        """
        self.check_model(outgoing.model)
        for attempt in range(1, ATTEMPTS + 1):
            self.record.model = outgoing.model
            lease = await self.gateway.fleet.acquire(outgoing.model, request_id=self.client.request_id)
            async with lease:
                self.record.leased(lease)
                request = self._request(lease.base_url, outgoing, lease.model)
                try:
                    response = await self._send(request)
                except UpstreamUnreachable as error:
                    if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
                        lease.suspect(error.message)
                    if attempt == ATTEMPTS:
                        raise
                    continue
                lease.heard = functools.partial(getattr, response, "num_bytes_downloaded")
                try:
                    await _check(response, outgoing)
                    yield response
                finally:
                    await response.aclose()
                return

    @contextlib.asynccontextmanager
    async def asked(self, base_url: str, outgoing: Outgoing, model: str) -> AsyncIterator[httpx.Response]:
        """One node's good answer, without a lease and without a second try. Raises as `answered` does."""
        response = await self._send(self._request(base_url, outgoing, model))
        try:
            await _check(response, outgoing)
            yield response
        finally:
            await response.aclose()

    def _request(self, base_url: str, outgoing: Outgoing, model: str) -> httpx.Request:
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if outgoing.stream else "application/json",
            "accept-encoding": "identity",
            "x-request-id": self.client.request_id,
        }
        timeout = {"connect": CONNECT_SECONDS, "read": outgoing.silence, "write": SILENCE_SECONDS, "pool": None}
        return httpx.Request(
            "POST",
            base_url + outgoing.path,
            headers=headers,
            content=outgoing.body(model),
            extensions={"timeout": timeout},
        )

    async def _send(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self.gateway.fleet.client.send(request, stream=True)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise UpstreamUnreachable(f"The neuron could not be reached: {why}") from error


async def _check(response: httpx.Response, outgoing: Outgoing) -> None:
    """Let only a good answer of the right kind through."""
    if response.status_code != 200:
        raw = await read(response)
        if response.status_code in DENIED:
            raise denied("The neuron", raw)
        failure = openai_errors.read(response.status_code, raw, _retry_after(response))
        if failure is None or response.status_code < 400:
            raise UpstreamMalformed(f"The neuron answered {response.status_code} without an error that can be read.")
        raise refusal(failure)
    media = response.headers.get("content-type", "")
    if outgoing.stream and not media.startswith("text/event-stream"):
        raise UpstreamMalformed(f"The neuron answered a stream request with {media!r}.")


def _retry_after(response: httpx.Response) -> int | None:
    sent = response.headers.get("retry-after", "")
    return int(sent) if sent.isascii() and sent.isdigit() else None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Around every read of an answer's body. Raises UpstreamReadFailed when it breaks off."""
    try:
        yield
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise UpstreamReadFailed(f"The neuron's answer broke off: {why}") from error


async def read(response: httpx.Response) -> bytes:
    """The whole body."""
    with reading():
        return await response.aread()


def exchange(
    gateway: Gateway,
    dialect: str | None,
    spelling: Spelling,
    work: Callable[[Exchange, bytes], Awaitable[None]],
    *,
    need: policy.Need = policy.INFER,
) -> ASGIApp:
    """An ASGI app for one request: `work(exchange, body)`, every failure told in the client's dialect.

    `dialect` is the name that metrics know it by; None for what generates nothing and is not counted. Nobody's body is
    read before it is known that he may.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http: HTTPScope = scope  # type: ignore[assignment]  # only HTTP handlers return this app
        client, record = Client(http, receive, send), Record(dialect or "")
        admission: Admission | None = None
        try:
            admission = gateway.guard.admit(http, need)
            client.before_end = lambda: admission.end(record.tokens)
            body = await client.body(gateway.max_body_bytes, gateway.body_silence_secs)
            async with client.connected():
                await work(Exchange(gateway, client, record, admission.principal), body)
        except ClientGoneError:
            record.outcome = "cancelled"
        except Exception as error:  # noqa: BLE001 -- the last place where the client can still be told
            record.failed(await report(client, error, spelling))
        except asyncio.CancelledError:  # the server stops, and has waited long enough for this one
            record.failed(await report(client, ShuttingDown("The gateway is going down."), spelling))
            raise
        finally:
            if admission is not None:
                admission.end(record.tokens)
            if dialect is not None:
                gateway.metrics.observe_request(record.finish(client.status))

    return app
