"""What all dialects have in common: whose errors a path has, and a translated stream as what metrics read of it."""

import json

import pytest

from cortex_gateway.dialects.anthropic.dialect import ANTHROPIC
from cortex_gateway.dialects.anthropic.stream import PING, MessageEncoder
from cortex_gateway.dialects.chat import CUT_SHORT
from cortex_gateway.dialects.dialect import AnswerId, Count, Generation, Progress
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.ollama.dialect import OLLAMA
from cortex_gateway.dialects.openai.dialect import OPENAI
from cortex_gateway.dialects.table import DIALECTS, spoken
from cortex_gateway.dialects.translation import Translation
from tests.gateway.dialects.chat_streams import DONE, call, delta, event, finish, role, total

ANSWER = AnswerId(request="req_1", unique="7" * 32)
BODY = b'{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messages/batches/7", ANTHROPIC),
        ("/v1/messagesses", OPENAI),
        ("/v1/chat/completions", OPENAI),
        ("/v1", OPENAI),
        ("/nowhere", OPENAI),
        ("/api/chat", OLLAMA),
        ("/api/pull", OLLAMA),
        ("/apis", OPENAI),
    ],
)
def test_errors_are_told_in_the_dialect_of_the_path(path: str, dialect: object) -> None:
    """Whether or not there is such a path; OpenAI's where it is nobody's."""
    assert spoken(DIALECTS, path) is dialect
    assert ANTHROPIC.covers(path) is (dialect is ANTHROPIC)
    assert not OPENAI.covers(path)


def translation() -> Translation:
    return Translation(MessageEncoder(message_id="msg_1", model="m", request_id="req_1"))


def test_pieces_of_an_answer_are_counted_as_they_go_by() -> None:
    """Text, thoughts, calls and their arguments; neither the start, nor the end of anything, nor what is empty."""
    answer = translation()
    passed = []
    for chunk in (role(), delta(reasoning="hm"), delta(content="a") * 2, call(0, "a", "f", "{}"), finish("stop"), DONE):
        answer.feed(chunk)
        passed.append(answer.passed)

    assert passed == [0, 1, 3, 5, 5, 5]
    assert answer.failure is None
    assert answer.close() == b""


def test_a_translated_stream_tells_its_counts_and_its_failure() -> None:
    """As far as they came."""
    answer = translation()
    assert answer.usage is None

    answer.feed(role(9) + delta(content="a") + total(9, 1))
    assert answer.usage == Usage(9, 1)

    assert json.loads(answer.close().split(b"data: ")[1])["error"]["message"] == CUT_SHORT.message
    assert answer.failure == CUT_SHORT


def test_a_translated_stream_can_be_ended_by_something_else() -> None:
    """The gateway's own end is its failure, and a beat is a ping."""
    answer, failure = translation(), Failure(503, "api_error", "shutting_down", "bye")
    assert answer.keep_alive(None) == PING

    assert b"bye" in answer.fail(failure)
    assert answer.failure == failure


def test_a_beat_says_what_the_neuron_does() -> None:
    """It knows better than the gateway; once there is something of an answer nothing is waited for, and nonsense is nothing."""
    answer = translation()
    answer.feed(b': progress {"phase":"prompt","done":7,"total":9,"unit":"tokens"}\n\n')

    told = b': progress {"phase":"prompt","done":7,"total":9,"unit":"tokens"}\n\n'
    assert answer.keep_alive(Progress("queued")) == told + PING
    answer.feed(b": progress {]\n\n")
    assert answer.keep_alive(None) == PING
    answer.feed(told + role(9) + delta(content="a"))
    assert answer.keep_alive(None) == PING


def test_an_error_of_the_neuron_is_the_failure_of_the_stream() -> None:
    """It is told once."""
    answer = translation()

    assert answer.feed(event(error={"message": "died", "type": "api_error"})).count(b"died") == 1
    assert answer.failure is not None
    assert answer.failure.message == "died"


def test_a_whole_message_has_its_counts_or_its_failure() -> None:
    """What is recorded of an answer that is no stream."""
    (generation, *_, count) = ANTHROPIC.routes
    assert isinstance(generation, Generation)
    assert isinstance(count, Count)
    decoded = generation.decode(BODY)
    good = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}

    answer = decoded.non_streaming(json.dumps(good).encode(), ANSWER)
    assert answer.usage == Usage(5)
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["id"] == f"msg_{'7' * 32}"

    broken = decoded.non_streaming(b"{}", ANSWER)
    assert broken.usage is None
    assert isinstance(broken.body, Failure)


def test_counting_needs_no_limit() -> None:
    """And its answer is one number."""
    (*_, count) = ANTHROPIC.routes
    assert isinstance(count, Count)
    asked = count.decode(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')

    assert json.loads(asked.body("n")) == {"model": "n", "messages": [{"role": "user", "content": "x"}]}
    assert json.loads(count.encode(7)) == {"input_tokens": 7}
