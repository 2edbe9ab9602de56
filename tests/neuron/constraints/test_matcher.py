"""One text followed through its grammar: what is forced, what is foreseen, how far tokens may come, and where it waits."""

import numpy as np
import pytest

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.grammar import check
from neuron_jax.constraints.matcher import Mask, Matcher, Tokens
from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.workers.frames import Constraint, Thoughts, Vocabulary

A, B, C, THINK, CLOSE = range(5)
LETTERS = Tokens(Vocabulary([b"a", b"b", b"c", b"<think>", b"</think>"], (), (THINK, CLOSE)), 5)


def matcher(source: str, after: int | None = None, opens: int | None = None) -> Matcher:
    return LETTERS.matcher(Constraint("regex", source, after=after, opens=opens))


def allowed(mask: Mask) -> list[int]:
    return [token for token in range(5) if mask.view(np.uint32)[0] >> token & 1]


def test_what_must_come_is_forced() -> None:
    it = matcher("abc(a|b)c")

    assert it.forced() == [A, B, C]
    it.take([A, B, C])
    assert it.forced() == []
    it.take([A])
    assert it.forced() == [C]
    it.take([C])
    assert it.complete


def test_guesses_are_foreseen_up_to_the_first_that_may_not_come() -> None:
    """There is a mask for the next token and one behind each of those; and the text stands where it stood."""
    it = matcher("a(b|c)ab")

    assert it.foresee([A, C, B, B]) == 2
    assert [allowed(mask) for mask in it.masks] == [[A], [B, C], [A]]
    assert it.foresee([]) == 0
    assert [allowed(mask) for mask in it.masks] == [[A]]
    it.take([A, B, A])
    assert it.forced() == [B]


@pytest.mark.parametrize(
    ("tokens", "right"), [([A, B], 2), ([A, CLOSE, A, B], 4), ([A, CLOSE, B], 2), ([CLOSE, A, C], 2), ([CLOSE], 1)]
)
def test_while_it_waits_anything_may_come(tokens: list[int], right: int) -> None:
    """Behind the token that it waits for, what the grammar lets."""
    it = matcher("ab", after=CLOSE)

    assert (it.active, it.forced(), it.foresee([A])) == (False, [], 0)
    assert it.follows(tokens) == right


@pytest.mark.parametrize(("first", "bound"), [(THINK, False), (A, True)])
def test_a_text_that_may_begin_with_thoughts_waits_only_if_it_does(first: int, bound: bool) -> None:
    it = matcher("abc", after=CLOSE, opens=THINK)
    assert allowed(it.masks[0]) == [A, THINK]
    assert (it.chooses, it.forced()) == (True, [])
    it.take([first])

    assert (it.chooses, it.active, it.forced()) == (False, bound, [B, C] if bound else [])


def test_a_copy_goes_its_own_way() -> None:
    it = matcher("(a|b)c")
    twin = it.copy()
    it.take([A])

    assert allowed(twin.masks[0]) == [A, B]
    assert allowed(it.masks[0]) == [C]
    with pytest.raises(GrammarError):
        twin.take([C])


@pytest.mark.parametrize("vocab", [31, 32, 33, 63, 64])
def test_every_token_can_be_let_come_and_nothing_behind_them(vocab: int) -> None:
    """Also where one that ends a text must be thought of, for there is none."""
    tokens = Tokens(Vocabulary([b"%d;" % number for number in range(vocab)], (), ()), vocab)
    mask = tokens.matcher(Constraint("regex", "([0-9]+;)+")).masks[0].view(np.uint32)

    assert len(mask) == -(-vocab // 32)
    assert all(mask[token // 32] >> token % 32 & 1 for token in range(vocab))
    assert not any(mask[token // 32] >> token % 32 & 1 for token in range(vocab, 32 * len(mask)))


def test_what_is_wrong_with_a_grammar_is_told_in_the_library_s_words() -> None:
    with pytest.raises(GrammarError, match="regex"):
        check(Constraint("regex", "a("))


def test_behind_thoughts_that_have_a_budget_the_grammar_foresees() -> None:
    """While they are closed, what closes them; its last token only tells what the grammar lets come."""
    it = ThinkingLimit(Thoughts(2, CLOSE, (A, CLOSE)), 1, matcher("bc(a|b)", after=CLOSE))
    assert (it.active, it.foresee([A])) == (False, 0)
    it.take([B, B])
    assert (it.forced(), it.foresee([A, CLOSE])) == ([A, CLOSE], 1)
    it.take([A, CLOSE])

    assert (it.forced(), it.foresee([B, C, C])) == ([B, C], 2)
    assert [allowed(mask) for mask in it.masks] == [[B], [C], [A, B]]


@pytest.mark.parametrize("opens", [31, 32, 35])
def test_what_opens_thoughts_may_come_whatever_its_number(opens: int) -> None:
    tokens = Tokens(Vocabulary([b"%d;" % number for number in range(40)], (), (opens,)), 40)
    (mask,) = tokens.matcher(Constraint("regex", "0;", after=39, opens=opens)).masks

    assert [token for token in range(40) if mask.view(np.uint32)[token // 32] >> token % 32 & 1] == [0, opens]
