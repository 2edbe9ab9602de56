"""Texts whose beginning is given: its tokens come as they were given, with the log-probabilities that they always have."""

from collections.abc import Callable

import pytest
from msgspec import structs

from neuron_jax.engine.engine import Engine
from tests.fakes.engines import drain, logprobs, submit, tokens, words


@pytest.mark.parametrize("options", [{}, {"guessing": True}, {"overlap": False}])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.2, "seed": 7, "top_k": 40}])
def test_what_was_said_is_recited_with_its_log_probabilities(
    new_engine: Callable[..., Engine], options: dict[str, bool], sampling: dict[str, float]
) -> None:
    """And gone on from as if it had been a prompt, beside others who notice nothing."""
    engine, prompt = new_engine(**options), words(20, 1)
    said = submit(1, prompt, max_tokens=30, logprobs=2, **sampling)
    other = submit(2, words(9, 2), max_tokens=40, temperature=1.0, seed=3)
    for one in (said, other):
        engine.submit(one)
    first = drain(engine)
    answer = tokens(first[1])

    again = structs.replace(
        said, request=3, prompt=prompt[:1], begins=(*prompt[1:], *answer[:20]), max_tokens=len(prompt) - 1 + 30
    )
    for one in (again, structs.replace(other, request=4)):
        engine.submit(one)
    outputs = drain(engine)

    assert tokens(outputs[3]) == [*prompt[1:], *answer]
    assert outputs[3][-1].finish == "length"
    assert tokens(outputs[4]) == tokens(first[2])
    for told, wanted in zip(logprobs(outputs[3])[len(prompt) - 1 :], logprobs(first[1]), strict=True):
        assert told == pytest.approx(wanted, abs=1e-4)


def test_nothing_that_is_recited_ends_the_text(new_engine: Callable[..., Engine]) -> None:
    """A token that ends texts does so only where it was drawn."""
    engine = new_engine()
    free = submit(1, words(9, 4), max_tokens=3)
    engine.submit(free)
    drawn = tokens(drain(engine)[1])
    engine.submit(structs.replace(free, begins=(drawn[0], drawn[1], drawn[1]), max_tokens=9, stop_ids=(drawn[1],)))
    recited = tokens(drain(engine)[1])

    assert recited[:3] == [drawn[0], drawn[1], drawn[1]]
    assert len(recited) > 3
    assert drawn[1] not in recited[3:-1]


def test_a_beginning_takes_no_form(new_engine: Callable[..., Engine]) -> None:
    """The daemon asks for no such thing."""
    engine = new_engine()
    engine.submit(structs.replace(submit(1, [1], max_tokens=3), begins=(2,), min_tokens=2))
    (output,) = drain(engine)[1]

    assert (output.finish, output.tokens) == ("error", [])
    assert "beginning is given" in str(output.error)
