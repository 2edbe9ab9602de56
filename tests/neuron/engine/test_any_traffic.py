"""Whatever traffic a scheduler gets, every text is the one that any engine must say: guessed, drafted, bound, preempted, found
again, with recurrent states and without, on a device of plain Python."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from attrs import define, evolve
from msgspec.structs import replace

from neuron_jax.constraints.forced import Forced, Recital
from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.engine.requests import Follower
from neuron_jax.workers.frames import Constraint, Submit, Thoughts
from tests.fakes.engines import submit
from tests.fakes.plain_device import (
    CONTEXT,
    FORM,
    LETTERS,
    VOCAB,
    Kind,
    Rule,
    answer,
    form,
    free,
    logprob,
    new_loop,
)

CLOSE, CLOSING = 6, (5, 6)


def behind_thoughts(said: list[int]) -> set[int] | None:
    return form(said[said.index(CLOSE) + 1 :]) if CLOSE in said else None


def thinking(most: int, behind: Rule) -> Rule:
    def rule(said: list[int]) -> set[int] | None:
        if CLOSE in said[: most + len(CLOSING)]:
            return behind(said)
        return {CLOSING[len(said) - most]} if len(said) >= most else None

    return rule


@define
class Asked:
    """A request, what follows its text, and what it must say."""

    submit: Submit
    rule: Rule = free
    follower: Callable[[], Follower | None] = lambda: None
    given: int = 0

    def said(self, window: int) -> list[int]:
        one = self.submit
        return answer(one.prompt, one.max_tokens, one.stop_ids, given=self.given, rule=self.rule, window=window)


def asked(rng: random.Random, id_: int, prompt: list[int]) -> Asked:
    """Of any kind."""
    options: dict[str, Any] = {"max_tokens": rng.randint(1, 30)}
    if rng.random() < 0.4:
        options["stop"] = (rng.randrange(VOCAB),)
    if rng.random() < 0.2:
        options["logprobs"] = 0
    if rng.random() < 0.2:
        options |= {"temperature": 1.0, "top_p": 0.9}
    one = submit(id_, prompt, **options)
    match rng.randrange(9):
        case 0:
            return Asked(replace(one, stop_ids=()), form, lambda: LETTERS.matcher(Constraint("regex", FORM)))
        case 1:
            wanted = Constraint("regex", FORM, after=CLOSE)
            return Asked(replace(one, stop_ids=()), behind_thoughts, lambda: LETTERS.matcher(wanted))
        case 2:
            begins = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))]
            rule = lambda said: {begins[len(said)]} if len(said) < len(begins) else None
            one = replace(one, begins=tuple(begins), max_tokens=len(begins) + one.max_tokens)
            return Asked(one, rule, lambda: Recital(Forced(1, list(begins))), given=len(begins))
        case 3:
            thoughts = Thoughts(rng.randrange(12), CLOSE, CLOSING)
            return Asked(one, thinking(thoughts.most, free), lambda: ThinkingLimit(thoughts, 1))
        case 4:
            thoughts = Thoughts(rng.randrange(12), CLOSE, CLOSING)
            wanted = Constraint("regex", FORM, after=CLOSE)
            follower = lambda: ThinkingLimit(thoughts, 1, LETTERS.matcher(wanted))
            return Asked(replace(one, stop_ids=()), thinking(thoughts.most, behind_thoughts), follower)
    return Asked(one)


KINDS = [
    evolve(Kind(guesses=guesses, drafts=drafts, steps=steps), **more)
    for guesses, drafts, steps in ((0, 0, 1), (0, 0, 4), (3, 0, 1), (3, 0, 2), (3, 2, 4))
    for more in (
        {},
        {"overlap": False},
        {"by_draws": True},
        {"recurs": True},
        {"recurs": True, "overlap": False},
        {"window": 9},
        {"window": 9, "recurs": True, "by_draws": True},
    )
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_text_is_right(kind: Kind) -> None:
    rng = random.Random(100 * kind.guesses + 10 * kind.drafts + kind.steps)
    it, window = new_loop(kind), kind.window or CONTEXT
    texts, expected = [[rng.randrange(VOCAB) for _ in range(30)]], dict[int, tuple[Asked, list[int]]]()
    for id_ in range(120):
        known = rng.choice(texts[-8:])
        prompt = [*known[: rng.randrange(len(known))], *(rng.randrange(VOCAB) for _ in range(rng.randint(1, 6)))][:50]
        one = asked(rng, id_, prompt)
        said = one.said(window)
        expected[id_] = one, said
        it.add(one.submit, one.follower())
        texts.append(prompt + said)
        for _ in range(rng.randrange(14)):
            it.step()
        if rng.random() < 0.2:
            it.scheduler.cancel(victim := rng.choice(list(expected)))
            it.scheduler.check_integrity()
            if not it.outputs.get(victim) or it.outputs[victim][-1].finish is None:
                del expected[victim]
        if rng.random() < 0.05:
            it.land()
            it.scheduler.begin_again()
    it.drain()
    it.scheduler.check_idle()

    for id_, (one, said) in expected.items():
        assert it.said(id_) == said, one.submit
        if one.submit.sampling.logprobs is not None:
            told = [value for output in it.outputs[id_] for value in output.logprobs or ()]
            wanted = [logprob([*one.submit.prompt, *said[:at]][-window:]) for at in range(len(said))]
            assert told == pytest.approx(wanted)
            assert not any(likeliest for output in it.outputs[id_] for likeliest in output.alternatives or ())
    scheduler = it.scheduler
    assert scheduler.preemptions > 0
    assert scheduler.cache.hit_tokens > 0
    assert (scheduler.guessed_tokens > scheduler.right_guesses > 0) == (kind.guesses > 0)
    assert (scheduler.drafted_tokens > scheduler.right_drafts > 0) == (kind.drafts > 0)
    several = [step for step in it.steps if step.key.steps > 1]
    assert bool(several) == (kind.steps > 1) or kind.drafts
    assert all(step.key.tokens < 2 * len(step.rows) for step in several)
