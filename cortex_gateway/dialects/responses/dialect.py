"""OpenAI's Responses over a neuron's chat: the dialect's record, and nothing of its fields."""

from collections.abc import Callable, Mapping, Sequence

import msgspec
from attrs import evolve

from cortex_gateway.dialects.chat import decode_non_streaming
from cortex_gateway.dialects.dialect import (
    AnswerId,
    Count,
    Decoded,
    Dialect,
    Earlier,
    Generation,
    GoesOn,
    Joined,
    Keep,
    Kept,
    KeptAnswers,
    NonStreamingAnswer,
    ToCount,
)
from cortex_gateway.dialects.events import Error, Finish, Usage
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.fields import kind, refused
from cortex_gateway.dialects.openai import errors
from cortex_gateway.dialects.responses import conversations
from cortex_gateway.dialects.responses import request as requests
from cortex_gateway.dialects.responses.earlier import RESPONSE, answers_of
from cortex_gateway.dialects.responses.page import page
from cortex_gateway.dialects.responses.request import Asked, ResponsesRequest
from cortex_gateway.dialects.responses.response import response_id, with_ids
from cortex_gateway.dialects.responses.stream import NO_SUMMARY, ResponseEncoder
from cortex_gateway.dialects.translation import Translation

PATH = "/v1/responses"


class ResponseAnswer(Translation):
    """A `dialect.KeptAnswer`."""

    def __init__(self, encoder: ResponseEncoder) -> None:
        super().__init__(encoder)
        self._response = encoder

    @property
    def ended(self) -> bool:
        """See `dialect.KeptAnswer`."""
        return self._response.ended

    def queued(self) -> bytes:
        """See `dialect.KeptAnswer`."""
        return self._response.queued()

    def working(self) -> bytes:
        """See `dialect.KeptAnswer`."""
        return self._response.working()

    def cancel(self) -> None:
        """See `dialect.KeptAnswer`."""
        self._response.cancel()

    def whole(self) -> bytes:
        """See `dialect.KeptAnswer`."""
        return self._response.whole()


def _decode(body: bytes) -> Decoded | GoesOn:
    return _with_earlier(requests.read(body), _decoded)


def _with_earlier(asked: Asked, decode: Callable[[Asked, Earlier], Decoded]) -> Decoded | GoesOn:
    if asked.alone:
        return decode(asked, Earlier())
    others = answers_of(asked.references)
    return GoesOn(asked.previous, others, lambda earlier: decode(asked, earlier), asked.conversation)


def _decoded(asked: Asked, earlier: Earlier) -> Decoded:
    request = requests.decode(asked, earlier)
    return Decoded(
        model=asked.model,
        stream=asked.stream,
        body=request.neuron_body,
        answer=lambda identity: ResponseAnswer(ResponseEncoder(request, identity)),
        non_streaming=lambda raw, identity: _non_streaming(request, raw, identity),
        affinity=request.cache_key,
        keep=(lambda identity: _keep(request, identity)) if asked.store or asked.conversation else None,
        dropped=request.dropped,
    )


def _compact(body: bytes) -> Decoded | GoesOn:
    """The same with an item that asks for a summary of all before it, answered in one piece and not kept."""
    asked = requests.read(body)
    only = {"stream": False, "background": False}
    asked = evolve(asked, top={**asked.top, **only}, items=[*asked.items, {"type": "compaction_trigger"}])
    return _with_earlier(asked, _compacting)


def _compacting(asked: Asked, earlier: Earlier) -> Decoded:
    request = requests.decode(asked, earlier)
    return evolve(
        _decoded(asked, earlier), non_streaming=lambda raw, identity: _compacted(request, raw, identity), keep=None
    )


def _compacted(request: ResponsesRequest, raw: bytes, identity: AnswerId) -> NonStreamingAnswer:
    answer = _non_streaming(request, raw, identity)
    if isinstance(answer.body, Failure):
        return answer
    told = msgspec.json.decode(answer.body)
    if told["status"] == "failed":
        return NonStreamingAnswer(NO_SUMMARY, answer.usage)
    users = [item for item in request.items if item.get("role") == "user"]
    compacted = {
        "id": told["id"],
        "object": "response.compaction",
        "created_at": told["created_at"],
        "output": [*with_ids(users, identity), *told["output"]],
        "usage": told["usage"],
    }
    return NonStreamingAnswer(msgspec.json.encode(compacted), answer.usage)


def _keep(request: ResponsesRequest, identity: AnswerId) -> Keep:
    items = with_ids(request.items, identity)
    named = request.asked.conversation
    return Keep(
        id=response_id(identity),
        previous=request.asked.previous,
        input=msgspec.json.encode(items),
        answer=ResponseAnswer(ResponseEncoder(request, identity)),
        background=request.asked.background,
        by_itself=request.asked.store,
        joined=Joined(named, lambda found, body: conversations.answered(found, items, body)) if named else None,
    )


def _non_streaming(request: ResponsesRequest, raw: bytes, identity: AnswerId) -> NonStreamingAnswer:
    """The body with which a stream of the same answer ends."""
    encoder = ResponseEncoder(request, identity)
    usage: Usage | None = None
    for event in decode_non_streaming(raw):
        if isinstance(event, Error):
            return NonStreamingAnswer(event.failure)
        encoder.feed(event)
        usage = event.usage if isinstance(event, Finish) else None
    return NonStreamingAnswer(encoder.whole(), usage)


def _to_count(body: bytes) -> ToCount:
    asked = requests.read(body)
    if not asked.alone:
        field = "input" if asked.references else "conversation" if asked.conversation else "previous_response_id"
        raise refused(field, "what was said before is not counted here: send it", "unsupported_parameter")
    return ToCount(asked.model, requests.decode(asked, Earlier()).tokenize_body)


def _counted(count: int) -> bytes:
    return msgspec.json.encode({"object": "response.input_tokens", "input_tokens": count})


def _items(chain: Sequence[Kept], query: Mapping[str, str]) -> bytes:
    """All that the answer was made from."""
    said = []
    for at, kept in enumerate(chain):
        said += msgspec.json.decode(kept.input)
        if at + 1 < len(chain):
            said += msgspec.json.decode(kept.answer)["output"]
    return page(said, query)


def _missing(identity: str) -> Failure:
    message = f"Response with id {kind(identity)} not found: it was not kept, not for so long, or not under this key."
    return Failure(404, "invalid_request_error", "response_not_found", message, "response_id")


def _running(body: bytes) -> bool:
    told = msgspec.json.decode(body)
    if not told["background"]:
        message = "Only an answer in the background can be cancelled: this one was not."
        raise RefusedError(Failure(400, "invalid_request_error", "invalid_request_body", message, "response_id"))
    return told["status"] in ("queued", "in_progress")


def _deleted(identity: str) -> bytes:
    return msgspec.json.encode({"id": identity, "object": "response", "deleted": True})


RESPONSES = Dialect(
    prefixes=(PATH,),
    error=lambda failure, _: errors.body(failure),
    routes=(
        Generation(PATH, "/v1/chat/completions", "responses", _decode),
        Generation(f"{PATH}/compact", "/v1/chat/completions", "responses", _compact),
        Count(f"{PATH}/input_tokens", _to_count, _counted),
        KeptAnswers(PATH, RESPONSE, items=_items, deleted=_deleted, missing=_missing, running=_running),
        conversations.ROUTES,
    ),
)
