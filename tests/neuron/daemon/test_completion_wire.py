"""The log-probabilities of a raw completion, where tokens are no words."""

from pathlib import Path
from typing import Literal

import attrs
import pytest

from neuron_jax.daemon.chat_wire import ChatAnswer, ChatStream
from neuron_jax.daemon.completion_wire import CompletionAnswer, CompletionStream
from neuron_jax.daemon.generation import Admitted, Chosen, Ended, GenerationJob, GrowingChoice, Grown
from neuron_jax.daemon.model_text import read_text
from neuron_jax.daemon.prepare import Outside, chat_job, completion_job, with_bound_calls
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import CompletionRequest, read_chat, read_completion
from neuron_jax.daemon.wire_common import HEARTBEAT_LINE, Beats, sse
from neuron_jax.text.pieces import Text
from neuron_jax.text.prompt import Rendered
from neuron_jax.workers.frames import Alternative, Output
from tests.fakes.tiny_model import USER, write_tiny_model
from tests.fakes.vocabularies import sentence_piece


def test_special_tokens_are_named_and_take_no_room_in_the_text(tmp_path: Path) -> None:
    """Their text is in no answer, so what follows begins where they stand."""
    request = read_completion({"model": "m", "prompt": "x", "logprobs": 0})
    job = completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100))
    answer = CompletionAnswer(job)
    answer.feed(Grown(0, [Text("ab")], [Chosen(token, -0.5, ()) for token in (97, USER, 98)]))
    answer.feed(Ended(0, "stop", None))
    found = answer.body(request.params)["choices"][0]["logprobs"]

    assert found["tokens"] == ["a", "<|user|>", "b"]
    assert found["text_offset"] == [0, 1, 1]


def test_tokens_of_the_same_text_have_an_entry_each(tmp_path: Path) -> None:
    """A letter is a token of its own and a byte: the chosen one goes by the name in `tokens`, the other by its bytes."""
    byte, letter, word = 3 + ord("h"), 271, 260
    text = attrs.evolve(read_text(write_tiny_model(tmp_path)), tokenizer=sentence_piece())
    request = read_completion({"model": "m", "prompt": "h", "logprobs": 3})
    answer = CompletionAnswer(completion_job(request, text, Outside("x", 7, 1, 100)))
    likeliest = [Alternative(letter, -0.1), Alternative(byte, -2.0), Alternative(word, -3.0)]
    answer.feed(Grown(0, [Text("h")], [Chosen(byte, -2.0, likeliest)]))
    answer.feed(Ended(0, "stop", None))
    found = answer.body(request.params)["choices"][0]["logprobs"]

    assert found["tokens"] == ["h"]
    assert found["top_logprobs"] == [{"h": -2.0, r"bytes:\x68": -0.1, "he": -3.0}]


def grown(index: int, text: str, *logprobs: float) -> Grown:
    return Grown(index, (Text(text),), tuple(Chosen(97, logprob, ()) for logprob in logprobs))


@pytest.mark.parametrize("logprobs", [None, 0])
def test_of_several_answers_the_likeliest_are_told(tmp_path: Path, logprobs: int | None) -> None:
    """By the mean of their tokens, best first; each prompt has its own, and all are counted. Log-probabilities where asked."""
    body = {"model": "m", "prompt": ["x", "y"], "n": 2, "best_of": 3, "logprobs": logprobs}
    request = read_completion(body)
    job = completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100))
    answer = CompletionAnswer(job)
    for index, (text, *each) in enumerate(
        [("a", -1.0, -1.0), ("b", -0.1, -0.3), ("c", -0.9), ("d", -3.0), ("e", -2.0), ("f", -2.5)]
    ):
        answer.feed(grown(index, text, *each))  # type: ignore[arg-type]
        answer.feed(Ended(index, "stop", None))
    choices = answer.body(request.params)["choices"]

    assert request.answers == len(job.submits) == 6
    assert all(submit.sampling.logprobs == 0 for submit in job.submits)
    assert [(choice["index"], choice["text"]) for choice in choices] == [(0, "b"), (1, "c"), (2, "e"), (3, "f")]
    assert [choice["logprobs"] is not None for choice in choices] == [logprobs is not None] * 4


def test_the_prompt_comes_before_the_answer(tmp_path: Path) -> None:
    """Of `echo`: of every choice, as text where it was ids, in both forms."""
    request = read_completion({"model": "m", "prompt": ["ab", [99, USER]], "n": 2, "echo": True})
    job = completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100))
    whole, streamed = CompletionAnswer(job), CompletionStream(job, request.params)
    chunks = streamed.feed(Admitted())
    for event in [event for index in range(4) for event in (grown(index, "!"), Ended(index, "stop", None))]:
        whole.feed(event)
        chunks += streamed.feed(event)
    expected = ["ab!", "ab!", "c<|user|>!", "c<|user|>!"]
    told = [choice for chunk in chunks for choice in chunk["choices"]]

    assert [choice["text"] for choice in whole.body(request.params)["choices"]] == expected
    assert ["".join(one["text"] for one in told if one["index"] == index) for index in range(4)] == expected


def recital(tmp_path: Path, **asked: object) -> tuple[GenerationJob, CompletionRequest]:
    body = {"model": "m", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 2, **asked}
    request = read_completion(body)
    return completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100)), request


def made(tokens: str, finish: Literal["stop", "length"] | None = None) -> Output:
    """What an engine tells of these tokens."""
    likeliest = [[Alternative(120, -0.25)] for _ in tokens]
    return Output(0, list(tokens.encode()), [-0.5 * (at + 1) for at in range(len(tokens))], likeliest, finish)


CUTS = (
    [made("bc"), made("de", "length")],
    [made("b"), made("cd"), made("e", "length")],
    [made("bcde", "length")],
)


@pytest.mark.parametrize("outputs", CUTS)
def test_a_prompt_s_log_probabilities_come_before_the_answer_s(tmp_path: Path, outputs: list[Output]) -> None:
    """Of `echo` with `logprobs`, however engines cut it: of the first token none is known, and only the answer is counted."""
    job, request = recital(tmp_path)
    choice, whole, streamed = GrowingChoice(job, 0), CompletionAnswer(job), CompletionStream(job, request.params)
    chunks = streamed.feed(Admitted())
    for event in (event for output in outputs for event in choice.feed(output)):
        whole.feed(event)
        chunks += streamed.feed(event)
    body = whole.body(request.params)
    (told,), parts = body["choices"], [chunk["choices"][0] for chunk in chunks]

    (submit,) = job.submits
    assert (submit.prompt, submit.begins, submit.max_tokens) == ([97], (98, 99), 4)
    assert (told["text"], told["finish_reason"]) == ("abcde", "length")
    assert told["logprobs"]["tokens"] == list("abcde")
    assert told["logprobs"]["text_offset"] == [0, 1, 2, 3, 4]
    assert [told["logprobs"][name][0] for name in ("token_logprobs", "top_logprobs")] == [None, None]
    assert told["logprobs"]["top_logprobs"][1] == {"b": -0.5, "x": -0.25}
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (3, 2)
    assert "".join(part["text"] for part in parts) == "abcde"
    for name, values in told["logprobs"].items():
        assert [value for part in parts if part["logprobs"] for value in part["logprobs"][name]] == values


@pytest.mark.parametrize("outputs", CUTS)
@pytest.mark.parametrize("asked", [{}, {"logprobs": 0}, {"logprobs": 0, "echo": True}, {"n": 2}])
def test_a_prompt_s_log_probabilities_are_told_apart(
    tmp_path: Path, outputs: list[Output], asked: dict[str, object]
) -> None:
    """`prompt_logprobs`, in vLLM's shape and with as many alternatives as it asks for, whatever is told of the answer."""
    job, request = recital(tmp_path, **{"echo": False, "logprobs": None, "prompt_logprobs": 1, **asked})
    whole = CompletionAnswer(job)
    for at in range(len(job.submits)):
        choice = GrowingChoice(job, at)
        for event in (event for output in outputs for event in choice.feed(output)):
            whole.feed(event)

    for told in whole.body(request.params)["choices"]:
        assert told["prompt_logprobs"] == [
            None,
            {
                "98": {"logprob": -0.5, "rank": None, "decoded_token": "b"},
                "120": {"logprob": -0.25, "rank": 1, "decoded_token": "x"},
            },
            {
                "99": {"logprob": told["prompt_logprobs"][2]["99"]["logprob"], "rank": None, "decoded_token": "c"},
                "120": {"logprob": -0.25, "rank": 1, "decoded_token": "x"},
            },
        ]
        assert told["text"] == ("abcde" if asked.get("echo") else "de")
        assert (told["logprobs"] and "".join(told["logprobs"]["tokens"])) == (
            told["text"] if "logprobs" in asked else None
        )
    assert all(submit.sampling.logprobs == 1 for submit in job.submits)


def test_calls_are_not_bound_behind_a_prompt_that_is_told(tmp_path: Path) -> None:
    """What binds them would bind the prompt; the field is named."""
    text = read_text(write_tiny_model(tmp_path))
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt_logprobs": 0, "tools": [tool]}
    request = with_bound_calls(read_chat(body), text)

    with pytest.raises(Problem, match=r"tools: .*prompt_logprobs"):
        chat_job(request, Rendered("abc"), text, Outside("x", 7, 1, 100))


def test_a_chat_s_prompt_is_told_once(tmp_path: Path) -> None:
    """At the answer's top, by the first of its choices; the others compute it as ever."""
    text = read_text(write_tiny_model(tmp_path))
    request = read_chat({"model": "m", "messages": [{"role": "user", "content": "a"}], "prompt_logprobs": 0, "n": 2})
    job = chat_job(request, Rendered("abc"), text, Outside("x", 7, 1, 100))
    answer = ChatAnswer(job)
    for index, output in ((0, made("bcd", "stop")), (1, made("e", "stop"))):
        for event in GrowingChoice(job, index).feed(output):
            answer.feed(event)

    assert [len(submit.begins) for submit in job.submits] == [2, 0]
    assert [list(row or ()) for row in answer.body(request.params)["prompt_logprobs"]] == [[], ["98"], ["99"]]


@pytest.mark.parametrize(("prompt", "outputs"), [("abc", [made("bcd", "length")]), ("a", [made("d", "stop")])])
def test_of_an_echo_alone_nothing_follows(tmp_path: Path, prompt: str, outputs: list[Output]) -> None:
    """`max_tokens` 0: what the engine makes all the same is nobody's."""
    job, request = recital(tmp_path, prompt=prompt, max_tokens=0)
    choice, whole = GrowingChoice(job, 0), CompletionAnswer(job)
    for event in (event for output in outputs for event in choice.feed(output)):
        whole.feed(event)
    body = whole.body(request.params)
    (told,) = body["choices"]

    assert (told["text"], told["finish_reason"], told["logprobs"]["tokens"]) == (prompt, "length", list(prompt))
    assert body["usage"]["completion_tokens"] == 0


def test_of_ten_signs_of_life_in_a_row_one_is_a_chunk(tmp_path: Path) -> None:
    """For clients that only count what they can parse; anything else that is sent begins the row anew."""
    request = read_completion({"model": "m", "prompt": "x"})
    job = completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100))
    beats = Beats()
    for idle in (CompletionStream(job, request.params).idle(), ChatStream(job, request.params).idle()):
        beats.broken()
        sent = [beats.next(idle) for _ in range(10)]

        assert sent == [*[HEARTBEAT_LINE] * 9, sse(idle)]
        assert idle["choices"][0].get("text", "") == ""
        assert not idle["choices"][0].get("delta")
