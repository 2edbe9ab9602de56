"""A passed-through stream keeps every byte, and what metrics need is read on the way."""

import json

import pytest

from cortex_gateway.dialects.chat import CUT_SHORT
from cortex_gateway.dialects.dialect import AnswerId, Decoded, Generation
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.openai import errors
from cortex_gateway.dialects.openai.dialect import OPENAI
from cortex_gateway.dialects.openai.relay import StreamRelay, non_streaming_usage, relay_non_streaming
from cortex_gateway.dialects.sse import COMMENT as COMMENT_ONLY
from cortex_gateway.dialects.sse import SseParser
from tests.fakes.codec import cuts
from tests.gateway.dialects.chat_streams import DONE, call, delta, event, finish, role, total

COMMENT = b': usage {"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1}}\n\n'


def relayed(chunks: list[bytes]) -> tuple[StreamRelay, bytes, list[bytes]]:
    relay = StreamRelay("demo")
    sent = [relay.feed(chunk) for chunk in chunks]
    return relay, b"".join(sent) + relay.close(), sent


@pytest.mark.parametrize(
    "stream",
    [
        role() + delta(content="a\nb") + finish("stop") + total(5, 2) + COMMENT + DONE,
        (role() + delta(content="a") + DONE).replace(b"\n", b"\r\n"),
        role() + b"data: [DONE]\n",
        role() + event(error={"message": "x"}),
    ],
)
def test_every_byte_goes_through_in_order(stream: bytes) -> None:
    """However it is cut, what comes out is what came in."""
    for chunks in cuts(stream):
        assert relayed(chunks)[1] == stream


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_only_whole_events_are_sent(end: bytes) -> None:
    """A heartbeat or an error event can come between any two sends, whatever ends the lines."""
    stream = (role() + delta(content="a") + finish("stop") + DONE).replace(b"\n", end)
    for chunks in cuts(stream):
        assert all(not sent or sent.endswith(end * 2) for sent in relayed(chunks)[2])


def test_an_event_cut_by_a_broken_line_is_kept_back() -> None:
    """Half an event never reaches the client."""
    relay = StreamRelay("demo")

    assert relay.feed(role() + b'data: {"choi') == role()
    assert relay.close() == errors.event(CUT_SHORT)
    assert relay.failure == CUT_SHORT


def test_a_stream_that_something_else_ends_has_its_error() -> None:
    """What the gateway itself ends it with counts as its end."""
    relay = StreamRelay("demo")
    relay.feed(role())

    assert relay.fail(CUT_SHORT) == errors.event(CUT_SHORT)
    assert relay.failure == CUT_SHORT


def test_of_ten_signs_of_life_one_is_a_chunk() -> None:
    """For those who count what they can parse (dialects.md 4.3.8)."""
    relay = StreamRelay("demo", b"idle")

    assert [relay.keep_alive(None) for _ in range(20)] == [*[COMMENT_ONLY] * 9, b"idle"] * 2


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("/v1/chat/completions", "chatcmpl-", "chat.completion.chunk"),
        ("/v1/completions", "cmpl-", "text_completion"),
    ],
)
def test_it_is_one_of_the_route_s_own(path: str, name: str, kind: str) -> None:
    """Without a word in it, and under the name that the client has for the model."""
    (route,) = [row for row in OPENAI.routes if isinstance(row, Generation) and row.path == path]
    decoded = route.decode(b'{"model":"demo"}')
    assert isinstance(decoded, Decoded)
    answer = decoded.answer(AnswerId("req_1", "7" * 32, 5))
    chunk = [json.loads(event.data) for _ in range(10) for event in SseParser().feed(answer.keep_alive(None))]

    assert [(one["model"], one["created"], len(one["choices"])) for one in chunk] == [("demo", 5, 1)]
    assert (chunk[0]["id"], chunk[0]["object"]) == (name + "7" * 32, kind)
    assert chunk[0]["choices"][0] == {
        "index": 0,
        **({"delta": {}} if "chat" in path else {"text": ""}),
        "finish_reason": None,
    }
    assert not answer.passed


def test_an_enormous_event_passes_in_pieces() -> None:
    """Nothing is held back without limit."""
    relay = StreamRelay("demo")

    assert relay.feed(b"data: " + b"x" * (300 << 10)) != b""


@pytest.mark.parametrize("space", [b"", b" "])
def test_the_model_has_the_name_that_the_client_knows_it_by(space: bytes) -> None:
    """Wherever the bytes are cut; what looks like the name in a text is no name, and nothing else changes."""
    said = delta(content='"model":"org/demo"')
    stream = b'data: {"id":"1","model":%s"org/demo"}\n\n' % space + said + DONE

    for chunks in cuts(stream):
        relay = StreamRelay('my "demo"')
        sent = b"".join(map(relay.feed, chunks)) + relay.close()
        assert sent == b'data: {"id":"1","model":"my \\"demo\\""}\n\n' + said + DONE


def test_the_model_of_a_whole_answer_has_it_too() -> None:
    """Only there: a log-probability's token may be called so."""
    raw = b'{"model":"org/demo","choices":[{"top_logprobs":[{"model":-1.0}]}],"usage":{"prompt_tokens":1}}'

    answer = relay_non_streaming(raw, "mine")

    assert answer.body == raw.replace(b"org/demo", b"mine")
    assert relay_non_streaming(raw, "org/demo").body == raw
    assert relay_non_streaming(b"[]", "mine").body == b"[]"
    assert answer.usage == Usage(1)


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (role(), False),
        (role() + finish("stop") + DONE, False),
        (delta(tool_calls=[]), False),
        (role() + delta(content="x"), True),
        (delta(reasoning_content="x"), True),
        (delta(reasoning="x"), True),
        (call(0, "a", "f"), True),
        (event(choices=[{"text": "x"}]), True),
        (event(choices=[{"text": ""}]), False),
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', True),
        (b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n', True),
        (event(note='"content": "x"'), False),
    ],
)
def test_the_first_token_is_text_reasoning_or_a_call(stream: bytes, found: bool) -> None:
    """Never the role chunk (wire.md 2.9.10), wherever the bytes are cut."""
    for chunks in cuts(stream):
        assert (relayed(chunks)[0].passed > 0) is found


@pytest.mark.parametrize(
    ("stream", "passed"),
    [
        (role(), 0),
        (role() + delta(content="a"), 1),
        (role() + delta(reasoning_content="a", reasoning="a") + delta(content="b"), 2),
        (role() + delta(content="a") + b": keep-alive\n\n" + delta(content="data: {}\ndata: {"), 2),
        ((role() + delta(content="a") * 5).replace(b"\n", b"\r\n"), 5),
        (role() + delta(content="a") + delta(content="b") + DONE, 2),
        (event(choices=[{"text": "x"}]) * 3, 3),
    ],
)
def test_chunks_of_the_answer_are_counted_as_they_go_by(stream: bytes, passed: int) -> None:
    """What is known of a stream's tokens when it is cut off; text that looks like an event is none."""
    for chunks in cuts(stream):
        assert relayed(chunks)[0].passed == passed


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        (role() + COMMENT + DONE, Usage(5, 2, 1)),
        (role() + total(6, 3) + DONE, Usage(6, 3)),
        (role() + total(6, 3) + COMMENT + DONE, Usage(5, 2, 1)),
        (delta(content=": usage {}") + DONE, None),
        (role() + event(choices=[], usage=None) + DONE, Usage(5, 0)),
        (b": usage {broken}\n\n" + DONE, None),
        (DONE, None),
    ],
)
def test_counts_come_from_the_comment_or_the_last_chunk_that_has_them(stream: bytes, counts: Usage | None) -> None:
    """The client need not have asked for usage."""
    for chunks in cuts(stream):
        assert relayed(chunks)[0].usage == counts


ROLE = event(choices=[{"delta": {"role": "assistant", "content": ""}}])
BEGUN = b': usage {"prompt_tokens":5,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":4}}\n\n'


@pytest.mark.parametrize(
    ("stream", "counts"),
    [
        (ROLE + BEGUN + delta(content="a") * 3, Usage(5, 3, 4)),
        (ROLE + BEGUN + delta(content="x" * 300) * 20, Usage(5, 20, 4)),
        (ROLE + BEGUN + delta(content="a") * 3 + COMMENT + DONE, Usage(5, 2, 1)),
        (ROLE + BEGUN + delta(content="a") * 3 + event(error={"message": "died"}), Usage(5, 3, 4)),
        (ROLE + delta(content="a") * 3, None),
        (ROLE + b": usage {broken}\n\n" + delta(content="a"), None),
        (b"", None),
    ],
)
def test_a_stream_that_was_cut_off_has_the_counts_of_its_beginning(stream: bytes, counts: Usage | None) -> None:
    """The prompt's were told before the first token; of the answer counts what has passed. A long one: each 11th cut."""
    whole, bytewise, *split = cuts(stream)
    for chunks in [whole, bytewise, *split[:: 1 if len(stream) < 4096 else 11]]:
        assert relayed(chunks)[0].usage == counts


@pytest.mark.parametrize(
    ("stream", "done"),
    [
        (role() + DONE, True),
        (role() + b"data:[DONE]\r\n\r\n", True),
        (DONE, True),
        (role(), False),
        (b"", False),
        (delta(content="data: [DONE]"), False),
        (DONE + role(), False),
    ],
)
def test_a_good_end_is_done_and_nothing_after_it(stream: bytes, done: bool) -> None:
    """Whatever else ends a stream, the neuron died."""
    for chunks in cuts(stream):
        assert relayed(chunks)[0].done is done


def test_the_neuron_s_own_error_is_recognised() -> None:
    """It is passed on as it is, and counted as an error."""
    relay = relayed([role() + b'data: {"error":{"message":"died","type":"api_error"}}\n\n'])[0]

    assert relay.failure is not None
    assert (relay.failure.status, relay.failure.message) == (500, "died")
    assert relayed([role() + DONE])[0].failure is None


def test_a_long_stream_s_end_is_still_read() -> None:
    """Only the last bytes are kept, and they are enough."""
    relay = relayed([role(), *[delta(content="x" * 50)] * 1000, COMMENT, DONE])[0]

    assert relay.done
    assert relay.usage == Usage(5, 2, 1)


@pytest.mark.parametrize(
    ("raw", "counts"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}', Usage(1, 2)),
        (b'{"usage":null}', None),
        (b"{}", None),
        (b"no", None),
        (b'{"usage":{"prompt_tokens":"x"}}', None),
    ],
)
def test_a_non_streaming_answer_s_counts(raw: bytes, counts: Usage | None) -> None:
    """Unreadable counts are unknown counts, never an error for the client."""
    assert non_streaming_usage(raw) == counts


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
def test_vectors_and_scores_are_never_streamed(path: str) -> None:
    """Whatever a body says."""
    (route,) = [row for row in OPENAI.routes if isinstance(row, Generation) and row.path == path]
    decoded = route.decode(b'{"model":"demo","stream":true}')

    assert isinstance(decoded, Decoded)
    assert not decoded.stream
