"""Stands in for a neuron host: the wire of docs/wire.md section 1 and 3 with scripted answers and no model behind it.

In memory it is an ASGI app; `python -m tests.fakes.neuron_double --port N` serves it as the do-nothing neuron, which
answers at once: `max_tokens` chunks of " token" (16 when absent).
"""

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import msgspec
from attrs import define, field, frozen

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Delta = Mapping[str, Any]
CREATED = 1_700_000_000
OPEN = ("/version", "/health", "/metrics")
GENERATION = ("/v1/chat/completions", "/v1/completions")


@frozen(kw_only=True)
class Answer:
    """What the double says to one generation request.

    Attributes:
        deltas: the stream's deltas after the role chunk; a whole answer is made of the same.
        finish, stop_reason: how it ends.
        prompt, cached: token counts; every delta counts as one token. The role chunk knows of no cache yet.
        refusal: (status, body, headers) instead of an answer.
        gate: wait for it before the first byte of the body.
        comments: that many heartbeat comments before the role chunk.
        dies_after: break the connection after so many deltas.
        error_after: (number of deltas, error envelope): fail as a neuron does, in the stream.
        unfinished: leave out `[DONE]`.
        usage_comment: send the `: usage` comments.
        pause: seconds before each piece, or before a whole answer.
    """

    deltas: Sequence[Delta] = ({"content": "Hello"}, {"content": " there"})
    finish: str = "stop"
    stop_reason: str | int | None = None
    prompt: int = 7
    cached: int = 0
    refusal: tuple[int, bytes, Mapping[str, str]] | None = None
    gate: asyncio.Event | None = None
    comments: int = 0
    dies_after: int | None = None
    error_after: tuple[int, Mapping[str, Any]] | None = None
    unfinished: bool = False
    usage_comment: bool = True
    pause: float = 0.0

    def usage(self, completion: int) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": completion,
            "total_tokens": self.prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self.cached if completion else 0},
        }


@frozen
class Seen:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return msgspec.json.decode(self.raw)


class DiedError(Exception):
    """Ends the double's work in the middle, as a killed process would."""


@define
class NeuronDouble:
    """The app. `answers` are used up one by one, the last one stays; `seen` and `left` tell what happened."""

    models: Sequence[str] = ("demo",)
    answers: list[Answer] = field(factory=lambda: [Answer()])
    tokenizers: Sequence[str] | None = None  # models it can tokenize for; None = all of them
    groups: list[dict[str, Any]] = field(factory=list)  # as in GET /discovery
    secret: str = ""  # what it wants to be shown for everything but GET /version and /health
    seen: list[Seen] = field(factory=list)
    begun: int = 0  # generation requests that arrived
    left: int = 0  # generation requests whose client went away before the end

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        request = Seen(scope["path"], _headers(scope), await _body(receive))
        self.seen.append(request)
        if self.secret and not self._shown(request):
            await _json(send, 401, msgspec.json.encode(_envelope("wants its secret", "missing_secret")))
        elif request.path in GENERATION:
            await self._generate(request, receive, send)
        else:
            status, value = self._control(request)
            await _json(send, status, msgspec.json.encode(value))

    def _shown(self, request: Seen) -> bool:
        return request.path in OPEN or request.headers.get("authorization") == f"Bearer {self.secret}"

    @property
    def asked(self) -> list[Seen]:
        """What it was asked to generate; watching and counting left out."""
        return [request for request in self.seen if request.path in GENERATION]

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def _control(self, request: Seen) -> tuple[int, Any]:
        if request.path == "/tokenize":
            return self._tokenize(request.body)
        if request.path == "/detokenize":
            return 200, {"prompt": " ".join(map(str, request.body["tokens"]))}
        routes: dict[str, Any] = {
            "/version": {"package_version": "0", "features": []},
            "/discovery": {
                "hostname": "double",
                "devices": [_DEVICE],
                "harnesses": ["jax"],
                "max_prompt_tokens": 8192,
                "groups": self.groups,
            },
            "/health": {
                "uptime_secs": 1,
                "devices": [{"index": 0, "vram_used_mb": 0, "vram_free_mb": 8192}],
                "models": [],
            },
            "/models": [{"id": name, "harness": "jax", "status": "loaded", "devices": [0]} for name in self.models],
            "/models/load": {"status": "loaded"},
            "/models/unload": {"status": "unloaded"},
            "/models/reload": {"status": "reloaded", "weights": {"source": "tuned", "digest": "0f", "reloads": 1}},
        }
        if request.path in routes:
            return 200, routes[request.path]
        return 404, _envelope(f"no {request.path}", "not_found")

    def _tokenize(self, body: Any) -> tuple[int, Any]:
        known = self.models if self.tokenizers is None else self.tokenizers
        if body["model"] not in known:
            return 404, _envelope(f"no files of {body['model']}", "model_not_found")
        words = msgspec.json.encode(body.get("messages", body.get("prompt"))).split()
        return 200, {"count": len(words), "tokens": list(range(len(words))), "max_model_len": 8192}

    async def _generate(self, request: Seen, receive: Receive, send: Send) -> None:
        self.begun += 1
        answer = self.next_answer()
        refusal = answer.refusal or _unreadable(request)
        if refusal:
            status, body, headers = refusal
            await _json(send, status, body, headers)
            return
        work = asyncio.create_task(self._answer(request, answer, send))
        gone = asyncio.create_task(_disconnected(receive))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        self.left += not work.done()
        for task in (work, gone):
            task.cancel()
        await asyncio.wait((work, gone))
        if not work.cancelled():
            work.result()

    async def _answer(self, request: Seen, answer: Answer, send: Send) -> None:
        body = request.body
        if not body.get("stream"):
            if answer.gate:
                await answer.gate.wait()
            if answer.dies_after is not None:
                raise DiedError
            await asyncio.sleep(answer.pause)
            await _json(send, 200, msgspec.json.encode(whole(request.path, body, answer)))
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for _ in range(answer.comments):
            await _write(send, b":\n\n")
        if answer.gate:
            await answer.gate.wait()
        for chunk in stream(request.path, body, answer):
            if answer.pause:
                await asyncio.sleep(answer.pause)
            await _write(send, chunk)
        if answer.dies_after is not None:
            raise DiedError
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _unreadable(request: Seen) -> tuple[int, bytes, Mapping[str, str]] | None:
    """What a neuron answers to a body that is no JSON: the gateway passes on what it need not read itself."""
    try:
        msgspec.json.decode(request.raw)
    except (msgspec.MsgspecError, ValueError) as error:
        return 400, msgspec.json.encode(_envelope(str(error), "malformed_json")), {}
    return None


def stream(path: str, body: Mapping[str, Any], answer: Answer) -> list[bytes]:
    """The events of a streamed answer, each as its bytes."""
    options = body.get("stream_options") or {}
    chunk = _Chunks(path, body["model"], answer, continuous=bool(options.get("continuous_usage_stats")))
    role = [chunk.role()] if "chat" in path else []
    events = role + [chunk.delta(index, delta) for index, delta in enumerate(answer.deltas)]
    if answer.usage_comment and answer.deltas:
        events[len(role)] = _usage_comment(answer.usage(1)) + events[len(role)]
    if answer.dies_after is not None:
        return events[: len(role) + answer.dies_after]
    if answer.error_after is not None:
        count, envelope = answer.error_after
        return [*events[: len(role) + count], _event({"error": envelope})]
    events.append(chunk.finish())
    usage = answer.usage(len(answer.deltas))
    if options.get("include_usage"):
        events.append(_event({**chunk.head, "choices": [], "usage": usage}))
    if answer.usage_comment:
        events.append(_usage_comment(usage))
    return events if answer.unfinished else [*events, b"data: [DONE]\n\n"]


def whole(path: str, body: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """A non-streamed answer: the deltas put together."""
    merged = _merged(answer.deltas)
    ending = {"index": 0, "finish_reason": answer.finish, "stop_reason": answer.stop_reason}
    if "chat" in path:
        choice = {"message": {"role": "assistant", "content": None, **merged}, **ending}
    else:
        choice = {"text": merged.get("content", ""), **ending}
    kind = "chat.completion" if "chat" in path else "text_completion"
    usage = answer.usage(len(answer.deltas))
    head = {"id": "chatcmpl-double", "object": kind, "created": CREATED, "model": body["model"]}
    return {**head, "choices": [choice], "usage": usage}


def _merged(deltas: Sequence[Delta]) -> dict[str, Any]:
    """Text joined, tool calls put together by their index."""
    merged: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for key, value in delta.items():
            if key != "tool_calls":
                merged[key] = merged.get(key, "") + value
        for piece in delta.get("tool_calls", ()):
            call = calls.setdefault(piece["index"], {**piece, "function": {**piece["function"], "arguments": ""}})
            call["function"]["arguments"] += piece["function"].get("arguments", "")
    return {**merged, "tool_calls": list(calls.values())} if calls else merged


@frozen
class _Chunks:
    path: str
    model: str
    answer: Answer
    continuous: bool

    @property
    def head(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if "chat" in self.path else "text_completion"
        return {"id": "chatcmpl-double", "object": kind, "created": CREATED, "model": self.model}

    def role(self) -> bytes:
        return self._chunk({"delta": {"role": "assistant", "content": ""}}, 0)

    def delta(self, index: int, delta: Delta) -> bytes:
        said = {"delta": delta} if "chat" in self.path else {"text": delta.get("content", "")}
        return self._chunk(said, index + 1)

    def finish(self) -> bytes:
        said: dict[str, Any] = {"delta": {}} if "chat" in self.path else {"text": ""}
        ending = {"finish_reason": self.answer.finish, "stop_reason": self.answer.stop_reason}
        return self._chunk({**said, **ending}, len(self.answer.deltas))

    def _chunk(self, said: Mapping[str, Any], completion: int) -> bytes:
        usage = {"usage": self.answer.usage(completion)} if self.continuous else {}
        return _event({**self.head, "choices": [{"index": 0, "finish_reason": None, **said}], **usage})


_DEVICE = {"index": 0, "name": "double", "kind": "cpu", "vram_total_mb": 8192, "compute_capability": None}


def _usage_comment(usage: Mapping[str, Any]) -> bytes:
    return b": usage %b\n\n" % msgspec.json.encode(usage)


def _envelope(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, "param": None}}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(value)


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in scope["headers"]}


async def _body(receive: Receive) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _write(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _json(send: Send, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    named = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode()) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


@define
class InstantNeuron(NeuronDouble):
    """The do-nothing neuron: `max_tokens` pieces at once, so that only what stands in front of it takes time."""

    pause: float = 0.0

    def next_answer(self) -> Answer:
        asked = self.seen.pop().body
        count = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        return Answer(deltas=({"content": " token"},) * count, pause=self.pause)


def main() -> None:
    """Serve the do-nothing neuron until it is stopped."""
    import uvicorn

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", action="append", help="an id it has loaded; may be repeated (default: demo)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each piece (default: none)")
    told = parser.parse_args()
    secret = os.environ.get("NEURON_SECRET", "")
    app = InstantNeuron(models=told.model or ["demo"], pause=told.pause, secret=secret)
    uvicorn.run(app, host=told.host, port=told.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
