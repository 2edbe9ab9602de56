"""One line on stderr per request: what was asked, who served it, how it ended. Knows ASGI and the metrics' record."""

import logging
import time
from contextvars import ContextVar
from typing import Any

from attrs import field, frozen
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from cortex_gateway.metrics import Metrics, RequestRecord
from neuron_jax.common.log_format import word

log = logging.getLogger("cortex.access")


@frozen
class AccessLog:
    """ASGI middleware around the whole app. `metrics` tells it which replica served the request that is running."""

    app: ASGIApp
    metrics: Metrics
    _record: ContextVar[list[RequestRecord]] = field(factory=lambda: ContextVar("record"), init=False)

    def __attrs_post_init__(self) -> None:
        self.metrics.listen(self._note)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http: dict[str, Any] = scope  # type: ignore[assignment]  # litestar types the two scopes apart
        if http["type"] != "http":
            await self.app(scope, receive, send)
            return
        records: list[RequestRecord] = []
        self._record.set(records)
        started, status = time.perf_counter(), [499]

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            path = http.get("raw_path", b"").decode("latin-1") or http["path"]
            log.info("%s", line(http["method"], path, status[0], time.perf_counter() - started, records))

    def _note(self, record: RequestRecord) -> None:
        records = self._record.get(None)
        if records is not None:
            records.append(record)


def line(method: str, path: str, status: int, seconds: float, records: list[RequestRecord]) -> str:
    """`POST /v1/messages [messages] demo on local 200 ok 812 ms 36+8 tokens req_7`; what is not known is left out.

    Text of a client is one word each. `path` is best as it was sent, %0a and all.
    """
    parts = [word(method), word(path)]
    record = records[-1] if records else None
    if record:
        parts += [
            f"[{record.dialect}]",
            word(record.model),
            f"on {record.node or 'no node'}",
            str(record.status),
            record.outcome,
        ]
    else:
        parts.append(str(status))
    parts.append(f"{seconds * 1000:.0f} ms")
    if record and record.completion_tokens is not None:
        prompt = "?" if record.prompt_tokens is None else record.prompt_tokens
        parts.append(f"{prompt}+{record.completion_tokens} tokens")
    if record and record.request_id:
        parts.append(word(record.request_id))
    return " ".join(parts)
