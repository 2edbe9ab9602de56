"""Thinking and answer are told apart, wherever the chunks end."""

import pytest

from neuron_jax.text.pieces import Piece, Reasoning, Text
from neuron_jax.text.reasoning import ReasoningParser
from tests.fakes.codec import check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nhm, <b>\n</think>\n\nYes.\n", [Reasoning("hm, <b>"), Text("Yes.\n")]),
        (" \n<think>hm</think>Yes", [Reasoning("hm"), Text("Yes")]),
        ("<think>\n\n</think>\n\nYes", [Text("Yes")]),
        ("Yes. <think>no</think>", [Text("Yes. <think>no</think>")]),
        ("<thin air", [Text("<thin air")]),
        ("<thi", [Text("<thi")]),
        ("  ", [Text("  ")]),
        ("", []),
        ("<think>a</think>b</think><think>c", [Reasoning("a"), Text("b</think><think>c")]),
        ("<think>a\n\nb</think>", [Reasoning("a\n\nb")]),
        ("<think>never closed </thin\n", [Reasoning("never closed </thin\n")]),
    ],
)
def test_thinking_stands_at_the_start_of_a_turn(text: str, expected: list[Piece]) -> None:
    """Tags anywhere else are text; the newlines around belong to neither side."""
    check(lambda: ReasoningParser(opened=False), text, *expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\nhm</think>\nYes", [Reasoning("hm"), Text("Yes")]),
        ("</think>Yes", [Text("Yes")]),
        ("cut off", [Reasoning("cut off")]),
    ],
)
def test_a_prompt_may_have_opened_the_tag(text: str, expected: list[Piece]) -> None:
    """Then the output begins inside the thinking."""
    check(lambda: ReasoningParser(opened=True), text, *expected)


def test_a_call_ends_thinking_that_was_left_open() -> None:
    """Some models call a tool without closing the tag: the envelope stays in the text, for the next parser."""
    make = lambda: ReasoningParser(opened=True, until=("<tool_call>",))

    check(make, "I call\n<tool_call>{}", Reasoning("I call"), Text("<tool_call>{}"))
    check(make, "I <tool>\n</think>\n<tool_call>", Reasoning("I <tool>"), Text("<tool_call>"))


def test_thinking_is_known_token_by_token() -> None:
    """The tokens of the thinking are counted while it lasts."""
    parser = ReasoningParser(opened=False)
    states = []
    for chunk in ("<think>", "a", "</think>", "b"):
        parser.feed(chunk)
        states.append(parser.thinking)

    assert states == [True, True, False, False]
