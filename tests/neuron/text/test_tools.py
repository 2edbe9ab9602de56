"""Tool calls are found in text, whole and nothing else, wherever the chunks end."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron_jax.text.calls.table import FORMATS
from neuron_jax.text.formats import tool_parser
from neuron_jax.text.pieces import Piece, Text, ToolArguments, ToolEnd, ToolStart, merged
from tests.fakes.codec import check, collect, pieces_of

WEATHER = '{"name": "weather", "arguments": {"city": "Köln", "days": 2}}'
TIME = '{"name": "time", "parameters": {}}'


def call(index: int, name: str, arguments: str) -> list[Piece]:
    return [ToolStart(index, f"call_x{index}", name), ToolArguments(index, arguments), ToolEnd(index)]


FIRST = call(0, "weather", '{"city": "Köln", "days": 2}')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<tool_call>\n{WEATHER}\n</tool_call>", FIRST),
        (f"Let me look.\n\n<tool_call>{WEATHER}</tool_call>\n", [Text("Let me look."), *FIRST]),
        (f"<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{TIME}</tool_call>", [*FIRST, *call(1, "time", "{}")]),
        (f"<tool_call>{WEATHER}</tool_call>\n Done. ", [*FIRST, Text("Done. ")]),
        (f"<tool_call>{WEATHER}</tool_call> a </tool_call> b", [*FIRST, Text("a </tool_call> b")]),
        (f"<tool_call>[{WEATHER}, {TIME}]</tool_call>", [*FIRST, *call(1, "time", "{}")]),
        (f"<tool_call>\n{WEATHER}", FIRST),
        (f"<tool_call>\n{WEATHER}\n</tool_", FIRST),
        ('<tool_call>\n{"name": "weather", "argu', [Text('<tool_call>\n{"name": "weather", "argu')]),
        ("a <tool_call>later</tool_call> b", [Text("a <tool_call>later</tool_call> b")]),
        (f"<tool_call>{WEATHER} and more</tool_call>", [*FIRST, Text("and more")]),
        ("<tool_call></tool_call>", [Text("<tool_call></tool_call>")]),
        ("a <tool_ b\n", [Text("a <tool_ b\n")]),
        ("x <tool_call", [Text("x <tool_call")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', call(0, "f", '{"a": 1}')),
        (r'<tool_call>{"name": "f", "arguments": "{\"ä\": \"é\"}"}</tool_call>', call(0, "f", '{"ä": "é"}')),
        ('<tool_call>{"name": "f", "arguments": ""}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"arguments": null, "name": "f"}</tool_call>', call(0, "f", "{}")),
        ('<tool_call>{"name": "f"}</tool_call>', call(0, "f", "{}")),
        (
            '<tool_call>{"name": "", "arguments": {}}</tool_call>',
            [Text('<tool_call>{"name": "", "arguments": {}}</tool_call>')],
        ),
        (
            '<tool_call>{"name": "f", "arguments": 3}</tool_call>',
            [Text('<tool_call>{"name": "f", "arguments": 3}</tool_call>')],
        ),
        (f"<tool_call>[{WEATHER}, 3]</tool_call>", [*FIRST, Text("3]")]),
        ('<tool_call>{"name": 3}</tool_call>', [Text('<tool_call>{"name": 3}</tool_call>')]),
        ("<tool_call>7</tool_call>", [Text("<tool_call>7</tool_call>")]),
        (f"<tool_call>{'[' * 5000}</tool_call>", [Text(f"<tool_call>{'[' * 5000}</tool_call>")]),
    ],
)
def test_envelopes_of_hermes(text: str, expected: list[Piece]) -> None:
    """Calls in any number, text around them, envelopes left open or filled with something else."""
    check(lambda: tool_parser("hermes", "call_x"), text, *expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WEATHER, FIRST),
        (f"\n<|python_tag|>{WEATHER}", FIRST),
        (f"{WEATHER}; {TIME}", [*FIRST, *call(1, "time", "{}")]),
        (f"{WEATHER}\nDone.", [*FIRST, Text("Done.")]),
        (f"Let me see.<|python_tag|>{TIME}", [Text("Let me see."), *call(0, "time", "{}")]),
        ('{"type": "function", "function": {"name": "f", "parameters": {"a": 1}}}', call(0, "f", '{"a": 1}')),
        ('{"type": "function", "function": "f", "parameters": {"a": 1}}', call(0, "f", '{"a": 1}')),
        (
            '{"function": {"function": {"name": "f", "parameters": {}}}}',
            [Text('{"function": {"function": {"name": "f", "parameters": {}}}}')],
        ),
        ('{"answer": 42}', [Text('{"answer": 42}')]),
        ('{"name": "Ada", "born": 1815}', [Text('{"name": "Ada", "born": 1815}')]),
        ('{"name": "wea', [Text('{"name": "wea')]),
        ("<|python_tag|>print(1)", [Text("print(1)")]),
        ("Hello {name}", [Text("Hello {name}")]),
        (" ", [Text(" ")]),
        ("<|python", [Text("<|python")]),
    ],
)
def test_llama_3_calls_are_bare_json_or_behind_its_tag(text: str, expected: list[Piece]) -> None:
    """JSON that is no call is an answer in JSON."""
    check(lambda: tool_parser("llama3_json", "call_x"), text, *expected)


def test_what_was_closed_has_ended() -> None:
    """Nothing comes of what is fed or closed again."""
    parser = tool_parser("hermes", "call_x")

    assert merged([*parser.feed("a b "), *parser.close()]) == (Text("a b "),)
    assert parser.ended
    assert [*parser.feed("c"), *parser.close()] == []


def test_text_that_cannot_be_a_call_is_not_held_back() -> None:
    """An answer in prose streams although tools were offered."""
    parser = tool_parser("llama3_json", "call_x")

    assert parser.feed("Hel") == [Text("Hel")]
    assert merged(tool_parser("llama3_json", "call_x").feed('{"answer')) == (Text('{"answer'),)


def test_white_space_without_end_is_not_held_for_ever() -> None:
    """A model that writes nothing but spaces is not a call; what could stand before one comes at the end."""
    parser = tool_parser("llama3_json", "call_x")

    assert merged(parser.feed(" " * 1000)) == (Text(" " * 800),)
    assert parser.close() == [Text(" " * 200)]


def test_a_call_that_shows_itself_late_is_still_one() -> None:
    """White space before it, and in it, up to a length."""
    spaced = '{"name"' + " " * 180 + ': "f", "parameters": {}}'

    assert collect(tool_parser("llama3_json", "call_x"), [spaced]) == tuple(call(0, "f", "{}"))
    assert collect(tool_parser("llama3_json", "call_x"), [" " * 200 + TIME]) == (Text(" " * 200 + TIME),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"[TOOL_CALLS] [{WEATHER}]", FIRST),
        (f"Sure. [TOOL_CALLS][{WEATHER}, {TIME}]", [Text("Sure."), *FIRST, *call(1, "time", "{}")]),
        ("[TOOL_CALLS] maybe", [Text(" maybe")]),
        ("[TOOL_CALLS]time[ARGS]{}", call(0, "time", "{}")),
        (
            '[TOOL_CALLS]time[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}[TOOL_CALLS]f[ARGS]{}',
            [*call(0, "time", '{"a": 1}'), *call(1, "f", "{}")],
        ),
        (WEATHER, [Text(WEATHER)]),
    ],
)
def test_mistral_calls_stand_behind_its_tag(text: str, expected: list[Piece]) -> None:
    """A list of calls ends the turn."""
    check(lambda: tool_parser("mistral", "call_x"), text, *expected)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("NaN", "null"),
        ("-Infinity", "null"),
        ("1e999", "null"),
        ("[NaN]", "[null]"),
        ('{"b": Infinity}', '{"b": null}'),
        ("01", "1"),
        ("True", "true"),
        ("'it\\'s'", '"it\'s"'),
        ('"a\nb\\x"', r'"a\nb\\x"'),
        ("[1, 2,]", "[1, 2]"),
        ('{"b": 1, }', '{"b": 1 }'),
        ('{"b": {"c": 1}, "d": [{}], "e": 2}', '{"b": {"c": 1}, "d": [{}], "e": 2}'),
        (r'"\d\x4a\x4"', r'"\\d\u004a\\x4"'),
        (r'"\u00e9\/"', r'"\u00e9\/"'),
        ("+1.50", "1.5"),
        ("2.", "2"),
        ("1e3", "1e3"),
    ],
)
def test_arguments_that_are_nearly_json_become_json(value: str, written: str) -> None:
    """What goes out as arguments can be read by every client."""
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": {value}}}}}</tool_call>'
    check(lambda: tool_parser("hermes", "call_x"), text, *call(0, "f", f'{{"a": {written}}}'))
    json.loads(written)


@pytest.mark.parametrize(
    ("begun", "written"),
    [
        ("", '{"a": 1}'),
        (', "b"', '{"a": 1}'),
        (', "b": ', '{"a": 1}'),
        (', "b": 12', '{"a": 1, "b": 12}'),
        (', "b": 12.', '{"a": 1, "b": 12}'),
        (', "b": 1e', '{"a": 1, "b": 1}'),
        (', "b": fal', '{"a": 1, "b": false}'),
        (', "b": N', '{"a": 1, "b": null}'),
        (', "b": [', '{"a": 1, "b": []}'),
        (', "b": [{"c": "d', '{"a": 1, "b": [{"c": "d"}]}'),
        (r', "b": "d\u00', '{"a": 1, "b": "d"}'),
    ],
)
def test_what_was_begun_when_a_call_breaks_off_is_what_it_began_to_be(begun: str, written: str) -> None:
    """And nothing is made up."""
    parser = tool_parser("hermes", "call_x")
    pieces = [*parser.feed('<tool_call>{"name": "f", "arguments": {"a": 1' + begun), *parser.close(cut=True)]

    assert merged(pieces) == (ToolStart(0, "call_x0", "f"), ToolArguments(0, written), ToolEnd(0))


def test_arguments_come_as_they_are_written() -> None:
    """Not at the end of the call: a file that is written takes its time."""
    parser = tool_parser("hermes", "call_x")
    begun = parser.feed('<tool_call>{"name": "f", "arguments": {"text": "one')
    more = parser.feed(" two")

    assert merged(begun) == (ToolStart(0, "call_x0", "f"), ToolArguments(0, '{"text": "one'))
    assert merged(more) == (ToolArguments(0, " two"),)


def test_half_a_surrogate_pair_stays_escaped() -> None:
    """UTF-8 has no bytes for it, JSON has an escape; a function of such a name there cannot be."""
    text = r'<tool_call>{"name": "f", "arguments": {"a": "\ud800é"}}</tool_call>'
    arguments = r'{"a": "\ud800é"}'
    check(
        lambda: tool_parser("hermes", "call_x"),
        text,
        ToolStart(0, "call_x0", "f"),
        ToolArguments(0, arguments),
        ToolEnd(0),
    )
    named = r'<tool_call>{"name": "\ud800", "arguments": {}}</tool_call>'
    check(lambda: tool_parser("hermes", "call_x"), named, Text(named))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("hermes", f"Hm. <tool_call>{WEATHER}</tool_call>\n<tool_call>{TIME}</tool_call> x", [Text("Hm."), *FIRST]),
        ("hermes", f"<tool_call>[{WEATHER}, {TIME}]</tool_call>", FIRST),
        ("hermes", f"<tool_call>no</tool_call><tool_call>{WEATHER}</tool_call> x", None),
        ("mistral", f"Sure. [TOOL_CALLS][{WEATHER}, {TIME}]", [Text("Sure."), *FIRST]),
        ("llama3_json", f"{WEATHER}; {TIME} and more", FIRST),
        ("pythonic", "[f(), g()] and more", call(0, "f", "{}")),
        ("llama3_json", "no call", [Text("no call")]),
    ],
)
def test_the_only_call_ends_the_output(name: str, text: str, expected: list[Piece] | None) -> None:
    """With `only_one` nothing comes after the first call, in any envelope; what is no call does not count."""
    refused = [Text("<tool_call>no</tool_call>"), *FIRST]
    check(lambda: tool_parser(name, "call_x", only_one=True), text, *(refused if expected is None else expected))


FRAGMENTS = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    WEATHER,
    TIME,
    "[f(a=1)",
    "<function=f>",
    "<arg_key>a</arg_key>",
    "[",
    "]",
    ", ",
    "; ",
    " ",
    "\n",
)
WORDS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text('ab{}"<', max_size=4)), max_size=8).map("".join)


@pytest.mark.parametrize("only_one", [False, True])
@pytest.mark.parametrize("name", [one.name for one in FORMATS])
@settings(max_examples=30)
@given(WORDS, st.data())
def test_any_text_cut_anywhere_says_what_the_whole_says(
    name: str, only_one: bool, text: str, data: st.DataObject
) -> None:
    """Where the chunks end decides nothing, for calls, for text, and for what is neither."""
    whole = collect(tool_parser(name, "call_x", only_one=only_one), [text])
    chunks = data.draw(pieces_of(text))

    assert collect(tool_parser(name, "call_x", only_one=only_one), chunks) == whole


@pytest.mark.parametrize("name", ["hermes", "llama3_json", "mistral"])
@given(WORDS)
def test_text_without_a_call_goes_through(name: str, text: str) -> None:
    """What is no call is shown as it came, but for the tag that Llama and Mistral begin one with."""
    found = collect(tool_parser(name, "call_x"), [text])
    if not any(isinstance(piece, ToolStart) for piece in found):
        shown = "".join(piece.text for piece in found if isinstance(piece, Text))
        tag = {"hermes": None, "llama3_json": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}[name]
        assert shown.replace(tag or "\0", "") == text.replace(tag or "\0", "")
