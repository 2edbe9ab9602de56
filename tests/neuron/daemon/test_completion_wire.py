"""The log-probabilities of a raw completion, where tokens are no words."""

from pathlib import Path

from neuron_jax.daemon.completion_wire import CompletionAnswer
from neuron_jax.daemon.generation import Chosen, Ended, Grown
from neuron_jax.daemon.model_text import read_text
from neuron_jax.daemon.prepare import Outside, completion_job
from neuron_jax.daemon.schema import read_completion
from neuron_jax.text.pieces import Text
from tests.fakes.tiny_model import USER, write_tiny_model


def test_special_tokens_are_named_and_take_no_room_in_the_text(tmp_path: Path) -> None:
    """Their text is in no answer, so what follows begins where they stand."""
    request = read_completion({"model": "m", "prompt": "x", "logprobs": 0})
    job = completion_job(request, read_text(write_tiny_model(tmp_path)), Outside("x", 7, 1, 100))
    answer = CompletionAnswer(job)
    answer.feed(Grown(0, [Text("ab")], [Chosen(token, -0.5, ()) for token in (97, USER, 98)]))
    answer.feed(Ended(0, "stop", None))
    found = answer.body(request.wish)["choices"][0]["logprobs"]

    assert found["tokens"] == ["a", "<|user|>", "b"]
    assert found["text_offset"] == [0, 1, 1]
