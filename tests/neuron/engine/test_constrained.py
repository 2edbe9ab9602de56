"""Requests with a constraint: their texts keep it, beside others, guessed ahead, preempted; and nobody else notices."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from neuron_jax.engine.engine import Engine
from neuron_jax.engine.guesses import Hope
from neuron_jax.workers.frames import Constraint, Output, Submit, Thoughts
from tests.fakes.constraints import END, VOCABULARY, bound, text
from tests.fakes.engines import drain, submit, tokens, words

SAMPLINGS = [{"temperature": 0.0}, {"temperature": 1.0, "seed": 5}, {"temperature": 1.5, "seed": 6, "logprobs": 2}]


@pytest.fixture
def engine(new_engine: Callable[..., Engine]) -> Engine:
    made = new_engine()
    made.matchers.learn(VOCABULARY)
    return made


def served(engine: Engine, *submits: object) -> dict[int, list[Output]]:
    for one in submits:
        engine.submit(one)  # type: ignore[arg-type]
    return drain(engine)


def is_valid(found: str) -> bool:
    value = json.loads(found)
    return list(value) == ["name", "count"] and isinstance(value["name"], str) and 0 <= value["count"] <= 999


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_what_is_drawn_keeps_the_schema(engine: Engine, sampling: dict[str, float]) -> None:
    """Of random weights, which know nothing of JSON."""
    outputs = served(engine, bound(1, words(20, 1), **sampling))[1]

    assert outputs[-1].finish == "complete"
    assert is_valid(text(tokens(outputs)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_tokens_alone_and_beside_others(new_engine: Callable[..., Engine], sampling: dict[str, float]) -> None:
    """Whoever is bound and whoever is not: neither has other tokens for it, guessed ahead or not."""
    prompts = [words(20, seed) for seed in range(4)]
    asked = [bound(0, prompts[0], **sampling), bound(1, prompts[1], **sampling)]
    asked += [submit(i, prompts[i], max_tokens=30, **sampling) for i in (2, 3)]
    found = []
    for options in ({}, {"guessing": True}, {"overlap": False}):
        together, alone = new_engine(**options), new_engine(**options)
        for engine in (together, alone):
            engine.matchers.learn(VOCABULARY)
        beside = served(together, *asked)
        found += [[tokens(beside[i]) for i in range(4)], [tokens(served(alone, one)[one.request]) for one in asked]]

    assert all(one == found[0] for one in found)
    assert is_valid(text(found[0][0]))


def test_what_is_forced_takes_fewer_steps(new_engine: Callable[..., Engine]) -> None:
    steps = []
    for guessing in (False, True):
        engine = new_engine(guessing=guessing, steps=1)
        engine.matchers.learn(VOCABULARY)
        served(engine, bound(1, words(20, 1), temperature=1.0, seed=5))
        steps.append(engine.load.steps)
        assert engine.load.right_guesses == engine.load.guessed_tokens

    assert steps[1] <= steps[0] - 5


@pytest.mark.parametrize(("sampling", "hopes"), [({}, True), ({"top_p": 0.9}, False), ({"logprobs": 1}, False)])
def test_where_most_may_come_several_tokens_are_drawn_in_a_step(
    new_engine: Callable[..., Engine], sampling: dict[str, Any], hopes: bool
) -> None:
    """They are those of steps of one token; where what is drawn depends on what else may be, none are."""
    thinks = Constraint("regex", "a+", after=290)  # which does not come
    asked = bound(1, words(20, 1), thinks, max_tokens=60, temperature=1.0, seed=5, **sampling)
    found, steps = [], []
    for options in ({"guessing": True}, {"guessing": True, "steps": 1}):
        engine = new_engine(**options)
        engine.matchers.learn(VOCABULARY)
        found.append(tokens(served(engine, asked)[1]))
        steps.append(engine.load.steps)

    assert found[0] == found[1]
    assert (2 * steps[0] <= steps[1]) is hopes


def test_hope_that_is_disappointed_rests_longer_and_longer() -> None:
    hope = Hope()
    rests = []
    for _ in range(5):
        hope.learn(4, 3)
        rests.append(hope.rest)
    hope.wait()

    assert rests == [4, 8, 16, 32, 32]
    assert hope.rest == 31
    hope.learn(4, 4)
    hope.wait()
    assert hope.rest == 0


def test_a_preempted_text_goes_on_where_it_was(new_engine: Callable[..., Engine]) -> None:
    """The pool has room for one of three texts."""
    asked = [bound(i, words(40, i), temperature=1.3, seed=i) for i in range(3)]
    narrow, wide = new_engine(pages=7, prefix=False), new_engine()
    for engine in (narrow, wide):
        engine.matchers.learn(VOCABULARY)
    expected = served(wide, *asked)
    outputs = served(narrow, *asked)

    assert narrow.load.preemptions > 0
    assert {i: tokens(outputs[i]) for i in range(3)} == {i: tokens(expected[i]) for i in range(3)}


def test_a_text_that_is_cut_says_so(engine: Engine) -> None:
    outputs = served(engine, bound(1, words(20, 1), max_tokens=5))[1]

    assert outputs[-1].finish == "length"
    assert len(tokens(outputs)) == 5


def test_it_ends_where_the_grammar_lets_it(engine: Engine) -> None:
    """`a+` may go on for ever: only a drawn end ends it, and it may not come first."""
    likely = {END: 100.0}
    outputs = served(engine, bound(1, words(20, 1), Constraint("regex", "a+"), logit_bias=likely))[1]

    assert outputs[-1].finish == "stop"
    assert tokens(outputs)[0] != END
    assert tokens(outputs)[-1] == END


def test_thinking_is_free(engine: Engine) -> None:
    """Behind the token that ends it the constraint holds."""
    options: dict[str, Any] = {"temperature": 1.2, "seed": 3, "logit_bias": {END: -100.0}}
    free = submit(1, words(20, 1), max_tokens=30, **options)
    thought = tokens(served(engine, free)[1])
    at = next(i for i, token in enumerate(thought) if thought.index(token) == i and i > 5)
    close = thought[at]
    asked = bound(2, words(20, 1), Constraint("regex", "(yes|no)!", after=close), **options)
    outputs = served(engine, asked)[2]

    assert tokens(outputs)[: at + 1] == thought[: at + 1]
    assert text(tokens(outputs)[at + 1 :]) in ("yes!", "no!")
    assert outputs[-1].finish == "complete"


def test_what_no_text_can_keep_is_refused_and_others_go_on(engine: Engine) -> None:
    wrong = Constraint("json_schema", json.dumps({"type": "array", "uniqueItems": True}))
    outputs = served(engine, bound(1, words(20, 1), wrong), bound(2, words(20, 2)), submit(3, words(20, 3)))

    assert [output.finish for output in outputs[1]] == ["error"]
    assert "uniqueItems" in (outputs[1][0].error or "")
    assert outputs[2][-1].finish == "complete"
    assert outputs[3][-1].finish == "length"


def test_who_leaves_before_the_grammar_is_read_leaves_nothing(engine: Engine) -> None:
    engine.submit(bound(1, words(20, 1)))
    engine.cancel(1)

    assert engine.idle
    assert drain(engine) == {}


def test_log_probabilities_are_those_of_all_tokens(engine: Engine) -> None:
    """What the model would have said without the constraint."""
    free = served(engine, submit(1, words(20, 1), max_tokens=1, logprobs=20))[1][0]
    found = served(engine, bound(2, words(20, 1), max_tokens=1, logprobs=20))[2][0]

    assert found.tokens != free.tokens
    assert free.alternatives is not None
    assert found.alternatives is not None
    # What the prefix cache had is computed in a step of another size: the last bits may differ.
    for one, other in zip(found.alternatives[0], free.alternatives[0], strict=True):
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


LINE, CLOSE = 10, 291
CLOSING = (LINE, CLOSE, LINE)


def thinking(request: int, most: int, **options: Any) -> Submit:
    """One that has begun to think, with a budget."""
    asked = {"max_tokens": 30, "temperature": 1.2, "seed": 3, **options}
    return structs.replace(submit(request, words(20, 1), **asked), thoughts=Thoughts(most, CLOSE, CLOSING))


@pytest.mark.parametrize("options", [{}, {"guessing": True}, {"overlap": False}])
@pytest.mark.parametrize("most", [0, 1, 9])
def test_thoughts_are_closed_after_so_many_tokens(
    new_engine: Callable[..., Engine], options: dict[str, bool], most: int
) -> None:
    """As if the model had closed them: what comes before is what it would have thought anyway, beside anybody."""
    free = submit(1, words(20, 1), max_tokens=30, temperature=1.2, seed=3)
    beside = submit(3, words(9, 2), max_tokens=30, temperature=1.0, seed=4)
    thought = tokens(served(new_engine(**options), free)[1])
    alone = tokens(served(new_engine(**options), beside)[3])
    outputs = served(new_engine(**options), thinking(2, most), beside)
    found = tokens(outputs[2])

    assert found[: most + 3] == [*thought[:most], *CLOSING]
    assert len(found) == 30
    assert outputs[2][-1].finish == "length"
    assert tokens(outputs[3]) == alone


def test_a_form_begins_where_thoughts_are_closed(engine: Engine) -> None:
    constraint = Constraint("regex", "(yes|no)!", after=CLOSE)
    asked = bound(2, words(20, 1), constraint, temperature=1.2, seed=3, logit_bias={END: -100.0, CLOSE: -100.0})
    asked = structs.replace(asked, thoughts=Thoughts(4, CLOSE, (LINE, CLOSE)))
    found = tokens(served(engine, asked)[2])

    assert found[4:6] == [LINE, CLOSE]
    assert text(found[6:]) in ("yes!", "no!")
