"""The whole way from ids to pieces, for one choice."""

from collections.abc import Sequence
from typing import Any

import pytest

from neuron_jax.text.output import OutputDelta, OutputText, Reading
from neuron_jax.text.pieces import Piece, Reasoning, Text, ToolArguments, ToolEnd, ToolStart, merged
from tests.fakes.codec import cuts
from tests.fakes.vocabularies import byte_level, sentence_piece

TOKENIZER = byte_level()
CALL = '{"name": "f", "arguments": {}}'
F: list[Piece] = [ToolStart(0, "call_0", "f"), ToolArguments(0, "{}"), ToolEnd(0)]


def output(*, stops: Sequence[str] = (), min_tokens: int = 0, **reading: Any) -> OutputText:
    return OutputText(TOKENIZER, Reading(**reading), stops=stops, min_tokens=min_tokens, call_prefix="call_")


def run(chosen: OutputText, chunks: list[list[int]]) -> tuple[tuple[Piece, ...], str | None, int]:
    """All pieces, the stop string, and the tokens counted."""
    deltas = [chosen.feed(chunk) for chunk in chunks]
    deltas.append(chosen.close())
    stops = [delta.stop for delta in deltas if delta.stop is not None]
    return (
        merged(piece for delta in deltas for piece in delta.pieces),
        stops[0] if stops else None,
        deltas[-1].tokens_seen,
    )


@pytest.mark.parametrize(
    ("options", "text", "expected", "stop"),
    [
        ({}, "hello 🚀", [Text("hello 🚀")], None),
        ({"stops": ("w",)}, "hello world", [Text("hello ")], "w"),
        ({"stops": ("🚀",)}, "go 🚀 go", [Text("go ")], "🚀"),
        ({"reasoning": "think"}, "<think>a</think>b", [Reasoning("a"), Text("b")], None),
        ({"reasoning": "think_opened", "stops": ("X",)}, "aXb</think>", [Reasoning("a")], "X"),
        ({"tools": "hermes"}, f"a <tool_call>{CALL}</tool_call>", [Text("a"), *F], None),
        ({"tools": "hermes", "stops": ("</tool_call>",)}, f"<tool_call>{CALL}</tool_call>", F, "</tool_call>"),
        ({"tools": "llama3_json"}, f"<|python_tag|>{CALL}", F, None),
        ({}, "<|python_tag|>x", [Text("x")], None),
        (
            {"reasoning": "think_opened", "tools": "hermes"},
            f"call<tool_call>{CALL}</tool_call>",
            [Reasoning("call"), *F],
            None,
        ),
    ],
)
def test_every_cut_of_the_ids_gives_the_same_pieces(
    options: dict[str, Any], text: str, expected: list[Piece], stop: str | None
) -> None:
    """Stop strings cut first, then thinking is told apart, then calls."""
    ids = TOKENIZER.encode(text, add_special=False)
    results = [run(output(**options), chunks) for chunks in cuts(ids)]

    assert {(pieces, found) for pieces, found, _ in results} == {(tuple(expected), stop)}
    assert len({seen for _, _, seen in results}) == 1


def test_tokens_are_counted_up_to_the_one_that_ended_the_choice() -> None:
    """What the engine made beyond it is neither shown nor billed."""
    chosen = output(stops=("lo",))
    ids = [TOKENIZER.id_of(name) or 0 for name in ("he", "l", "l", "o", "w")]

    assert chosen.feed(ids) == OutputDelta((Text("hel"),), "lo", 4, ended=True)
    assert chosen.feed(ids) == OutputDelta((), None, 4, ended=True)
    assert chosen.close() == OutputDelta((), None, 4, ended=True)


def test_thinking_tokens_and_calls_are_known_at_the_end() -> None:
    """Usage and the finish reason need them."""
    chosen = output(reasoning="think_opened", tools="hermes")
    chosen.feed(TOKENIZER.encode(f"ab</think><tool_call>{CALL}</tool_call>", add_special=False))
    chosen.close()

    assert chosen.reasoning_tokens == len("ab</think>")
    assert chosen.called_tools


def test_an_unfinished_character_comes_out_with_close() -> None:
    """Cut off by max_tokens inside a character."""
    chosen = output(stops=("zz",))
    first = TOKENIZER.encode("zé", add_special=False)[:-1]

    assert chosen.feed(first).pieces == ()
    assert chosen.close() == OutputDelta((Text("z\ufffd"),), None, 2, ended=True)


def test_a_stop_string_may_be_completed_by_the_end_itself() -> None:
    """The replacement character is text like any other."""
    chosen = output(stops=("\ufffd",))
    chosen.feed(TOKENIZER.encode("é", add_special=False)[:1])

    assert chosen.close() == OutputDelta((), "\ufffd", 1, ended=True)


def test_completions_go_on_from_their_prompt() -> None:
    """The space before the first word belongs to the text."""
    tokenizer = sentence_piece()
    ids = [tokenizer.id_of("\u2581world") or 0]
    make = lambda continues: OutputText(tokenizer, Reading(continues=continues))

    assert make(continues=True).feed(ids).pieces == (Text(" world"),)
    assert make(continues=False).feed(ids).pieces == (Text("world"),)


def test_a_stop_string_counts_only_after_the_first_tokens() -> None:
    """Where the token that completes it is one of the first `min_tokens`, it is text; the next time it ends the choice."""
    ids = [TOKENIZER.id_of(name) or 0 for name in ("h", "w", "h", "w", "h")]

    assert run(output(stops=("w",)), [ids]) == ((Text("h"),), "w", 2)
    assert run(output(stops=("h",)), [ids]) == ((), "h", 1)
    assert run(output(stops=("w",), min_tokens=1), [ids]) == ((Text("h"),), "w", 2)
    assert run(output(stops=("w",), min_tokens=2), [ids]) == ((Text("hwh"),), "w", 4)
    assert run(output(stops=("w",), min_tokens=4), [ids]) == ((Text("hwhwh"),), None, 5)


def test_the_only_call_that_is_wanted_ends_the_choice() -> None:
    """With the token that completes it; without the wish a second one follows."""
    once = f"<tool_call>{CALL}</tool_call>"
    ids = TOKENIZER.encode(once * 2, add_special=False)
    first = len(TOKENIZER.encode(once.removesuffix("</tool_call>"), add_special=False))
    second: list[Piece] = [ToolStart(1, "call_1", "f"), ToolArguments(1, "{}"), ToolEnd(1)]

    assert run(output(tools="hermes", one_call=True), [ids]) == (tuple(F), None, first)
    assert run(output(tools="hermes"), [ids]) == ((*F, *second), None, len(ids))


def test_what_is_bound_to_calls_shows_nothing_else() -> None:
    """Cut off in the middle of what begins a call, or of the call."""
    whole = f"<tool_call>{CALL}</tool_call>"
    for length in range(len(whole)):
        chosen = output(tools="hermes", only_calls=True)
        ids = TOKENIZER.encode(whole[:length], add_special=False)
        pieces = [*chosen.feed(ids).pieces, *chosen.close(cut=True).pieces]

        assert not any(isinstance(piece, Text) for piece in pieces)


def test_harmony_tells_thoughts_without_any_tools() -> None:
    """Its thoughts are counted, and its headers never shown."""
    text = "<|channel|>analysis<|message|>ab<|end|><|start|>assistant<|channel|>final<|message|>c"
    chosen = output(reasoning="harmony")
    pieces = [*chosen.feed(TOKENIZER.encode(text, add_special=False)).pieces, *chosen.close().pieces]

    assert merged(pieces) == (Reasoning("ab"), Text("c"))
    assert chosen.reasoning_tokens == len("ab<|end|>")


def test_nothing_is_counted_that_did_not_come() -> None:
    """Neither thinking nor a call."""
    chosen = output(reasoning="think", tools="hermes")
    chosen.feed(TOKENIZER.encode("hello", add_special=False))
    chosen.close()

    assert (chosen.reasoning_tokens, chosen.called_tools) == (0, False)


def test_an_answer_begins_without_the_space_of_its_vocabulary() -> None:
    """Unless it is said to go on from a prompt."""
    tokenizer = sentence_piece()
    chosen = OutputText(tokenizer, Reading())

    assert chosen.feed([tokenizer.id_of("\u2581world") or 0]).pieces == (Text("world"),)
