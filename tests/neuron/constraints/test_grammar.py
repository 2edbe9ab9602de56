"""Constraints to grammars: what is let through, what is refused and in which words."""

import json
from typing import Any

import pytest

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.grammar import MAX_SOURCE, check
from neuron_jax.constraints.matcher import Tokens
from neuron_jax.constraints.schema import plain_schema
from neuron_jax.text.bound_calls import calls_or_answer, forced_calls, free_calls
from neuron_jax.text.calls.table import FORMATS
from neuron_jax.text.formats import form_of, tool_parser
from neuron_jax.text.pieces import Text, ToolEnd
from neuron_jax.workers.frames import Constraint, Vocabulary

BYTES = Tokens(Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], (256,), (256,)), 257)


def admits(constraint: Constraint, text: str) -> bool:
    """Whether `text`, whole, is one of those that the constraint allows."""
    matcher = BYTES.matcher(constraint)
    try:
        matcher.take(list(text.encode()))
    except GrammarError:
        return False
    return matcher.complete or bool(matcher.masks[0][256 // 32] & 1)


def schema(value: Any) -> Constraint:
    return Constraint("json_schema", json.dumps(value))


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        (Constraint("json_object"), '{"a": [1, null]}', "[1]"),
        (schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}), '{"a": 1}', "{}"),
        (schema({"enum": ["x", 2]}), "2", "3"),
        (schema({"type": "string", "pattern": "^a+$"}), '"aa"', '"ab"'),
        (Constraint("regex", "[0-9]{3}"), "123", "12"),
        (Constraint("choice", '["yes", "no\\n\\"\\u00e9"]'), 'no\n"é', "maybe"),
        (Constraint("gbnf", 'root ::= "a" [0-9]+ | "b"'), "a12", "a"),
        (Constraint("lark", 'start: "a" /[0-9]/'), "a1", "1a"),
    ],
)
def test_a_constraint_admits_what_it_says(constraint: Constraint, good: str, bad: str) -> None:
    check(constraint)

    assert admits(constraint, good)
    assert not admits(constraint, bad)


@pytest.mark.parametrize(
    "keyword", ["uniqueItems", "not", "if", "contains", "dependentRequired", "unevaluatedProperties"]
)
def test_a_keyword_that_is_not_carried_out_is_named(keyword: str) -> None:
    """Never left out: the answer would be called valid and be none."""
    with pytest.raises(GrammarError) as raised:
        check(schema({"type": ["array", "object"], keyword: {}}))

    assert raised.value.keywords == (keyword,)


@pytest.mark.parametrize("where", ["x-guidance", "properties"])
def test_a_schema_cannot_say_that_keywords_be_left_out(where: str) -> None:
    lenient = {"lenient": True}
    inner = {"x-guidance": lenient, "type": "array", "uniqueItems": True}
    asked = inner if where == "x-guidance" else {"type": "object", "properties": {"a": inner}}
    with pytest.raises(GrammarError):
        check(schema(asked))


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "a("),
        Constraint("lark", "start: nothing"),
        Constraint("gbnf", "root := 3"),
        Constraint("json_schema", "["),
        Constraint("json_schema", "3"),
        Constraint("json_schema", '{"type": "nope"}'),
        Constraint("json_schema", "[" * 100_000),
        Constraint("regex", "a" * (MAX_SOURCE + 1)),
        Constraint("regex", "(" * 5000 + "a" + ")" * 5000),
        schema(False),
        schema({"type": "string", "format": "nonsense"}),
    ],
)
def test_what_is_no_constraint_is_refused(constraint: Constraint) -> None:
    with pytest.raises(GrammarError):
        check(constraint)


def test_json_is_written_on_one_line_so_that_it_ends() -> None:
    asked = schema({"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]})

    assert admits(asked, '{"a": 1, "b": [1, 2]}')
    assert not admits(asked, '{"a":  1}')
    assert not admits(asked, '{\n"a": 1}')


@pytest.mark.parametrize("several", [False, True])
def test_forced_calls_are_what_the_parser_reads(several: bool) -> None:
    """Arguments by the schema of the tool that is called, and of no other; references are to their own schema."""
    one = {
        "name": "look",
        "parameters": {"properties": {"at": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}},
    }
    two = {"name": 'say "é"', "parameters": {"properties": {"at": {"type": "string"}}, "required": ["at"]}}
    source = forced_calls("hermes", [one, two], several=several)
    asked = Constraint("calls", source)
    look = '<tool_call>\n{"name": "look", "arguments": {"at": 1}}\n</tool_call>'
    say = '<tool_call>\n{"name": "say \\"é\\"", "arguments": {"at": "x"}}\n</tool_call>'
    check(asked)

    assert admits(asked, look)
    assert admits(asked, say)
    assert not admits(asked, look.replace("1", '"x"'))
    assert not admits(asked, "I would rather not.")
    assert admits(asked, f"{look}\n{say}") is several


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", [one.name for one in FORMATS])
def test_calls_that_may_come_are_bound_from_where_they_begin(name: str, several: bool) -> None:
    """Any text else; and the functions that are not strict take any object."""
    parameters = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    strict = {"name": "f", "parameters": parameters, "strict": True}
    form = form_of(name)
    asked = Constraint("calls", free_calls(name, [strict, {"name": "g", "parameters": parameters}], several=several))
    write = lambda name, arguments: (
        form.start + form.head + (f'"{name}"' if form.quoted else name) + form.neck + arguments + form.tail + form.end
    )
    call, before = write("f", '{"a": 1}'), "" if form.trigger is None else "Wait.\n\n"
    check(asked)

    assert admits(asked, "I would rather not: 1 < 2.")
    assert admits(asked, "")
    assert admits(asked, before + call)
    assert admits(asked, write("g", '{"b": 2}'))
    assert not admits(asked, before + write("f", '{"b": 2}'))
    assert admits(asked, before + write("h", "{}")) is (name == "glm4")  # where that is any text
    if form.trigger is not None:
        assert admits(asked, f"{call}\n{call}") is (several and form.several)
    if form.trigger is not None and form.start:
        one = call.removeprefix(form.start).removesuffix(form.end)
        assert admits(asked, form.start + form.between.join([one, one]) + form.end) is several
        assert not admits(asked, f"{call} and {write('f', '3')}")


def test_an_answer_that_is_to_be_json_may_be_calls_instead() -> None:
    """And nothing else; each is bound by its own schema."""
    strict = {"name": "f", "parameters": {"required": ["a"], "properties": {"a": {"type": "integer"}}}, "strict": True}
    answer = json.dumps({"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]})
    asked = Constraint("calls", calls_or_answer("hermes", [strict], answer, several=True))
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    check(asked)

    assert admits(asked, '{"b": true}')
    assert admits(asked, call)
    assert admits(asked, f"{call}\n{call}")
    assert not admits(asked, '{"b": 1}')
    assert not admits(asked, call.replace("1", "true"))
    assert not admits(asked, f'{call}{{"b": true}}')
    with pytest.raises(GrammarError):
        check(Constraint("calls", calls_or_answer("hermes", [strict], "[", several=True)))


def test_a_token_that_begins_a_call_and_goes_on_is_bound_too() -> None:
    """Where a token ends is nobody's choice: what stands behind the marker in it must be what may stand there."""
    words = [b"<tool", b"_call>\n{", b"_call>\nno", b"_calls"]
    tokens = Tokens(Vocabulary([*(bytes([byte]) for byte in range(256)), *words, b"<end>"], (260,), (260,)), 261)
    matcher = tokens.matcher(Constraint("calls", free_calls("hermes", [{"name": "f", "strict": True}], several=True)))
    matcher.take([256])
    may = [bool(matcher.masks[0].view("uint32")[token // 32] >> token % 32 & 1) for token in range(256, 261)]

    assert may == [True, True, False, True, True]


@pytest.mark.parametrize("name", [one.name for one in FORMATS])
def test_calls_of_every_format_can_be_bound(name: str) -> None:
    """What is let through is read by the format's own parser, and is in the schema."""
    function = {"name": "f", "parameters": {"properties": {"a": {"type": "integer"}}, "required": ["a"]}}
    form = form_of(name)
    asked = Constraint("calls", forced_calls(name, [function], several=True))
    f = '"f"' if form.quoted else "f"
    one = f'{form.head}{f}{form.neck}{{"a": 1}}{form.tail}'
    both = form.start + form.between.join([one, one] if form.several else [one]) + form.end
    parser = tool_parser(name, "call_", functions=[function])
    pieces = [*parser.feed(both), *parser.close()]
    check(asked)

    assert admits(asked, both)
    assert not admits(asked, both.replace('"a"', '"b"'))
    assert not any(isinstance(piece, Text) for piece in pieces)
    assert sum(isinstance(piece, ToolEnd) for piece in pieces) == (2 if form.several else 1)


def test_formats_are_made_exact_wherever_a_schema_stands_and_nowhere_else() -> None:
    """What a value must be equal to, and a property that is called as a keyword is, are no schemas."""
    date = {"type": "string", "format": "date"}
    made = plain_schema(
        {
            "properties": {"format": date, "allOf": date},
            "anyOf": [date],
            "items": date,
            "enum": [date],
            "const": date,
            "default": date,
            "required": ["format"],
        }
    )

    assert all("format" not in one for one in (*made["properties"].values(), made["anyOf"][0], made["items"]))
    assert (made["enum"], made["const"], made["default"], made["required"]) == ([date], date, date, ["format"])


def test_a_host_s_name_has_253_characters_at_most() -> None:
    name = ".".join(["a" * 49] * 5)
    asked = schema({"type": "string", "format": "hostname"})

    assert admits(asked, f'"{name}.aaa"')
    assert not admits(asked, f'"{name}.aaaa"')
