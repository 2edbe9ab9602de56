"""The log-probabilities of a raw completion, where tokens are no words."""

from pathlib import Path

import attrs

from neuron_jax.daemon.completion_wire import CompletionAnswer
from neuron_jax.daemon.generation import Chosen, Ended, Grown
from neuron_jax.daemon.model_text import read_text
from neuron_jax.daemon.prepare import Outside, completion_job
from neuron_jax.daemon.schema import read_completion
from neuron_jax.text.pieces import Text
from neuron_jax.workers.frames import Alternative
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
