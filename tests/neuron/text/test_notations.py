"""Each family's calls in its own notation: as its documentation writes them, cut anywhere, and broken off anywhere."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from neuron_jax.text.calls.table import FORMATS
from neuron_jax.text.formats import tool_parser
from neuron_jax.text.pieces import Piece, Reasoning, Text, ToolArguments, ToolEnd, ToolStart
from tests.fakes.codec import check, collect

BAR = "\uff5c"
FUNCTIONS: Sequence[Mapping[str, Any]] = [
    {
        "name": "weather",
        "parameters": {
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "unit": {"enum": ["C", "F"]},
                "when": {},
                "also": {"type": "array"},
            }
        },
    },
    {"name": "time"},
]
ONE: Mapping[str, Any] = {"city": "Köln\n", "days": 2}
TWO = (("weather", ONE), ("time", {}))
OBJECT = '{"name": "weather", "arguments": {"city": "Köln\\n", "days": 2}}'
TIME = '{"name": "time", "arguments": {}}'
ARGUMENTS = '{"city": "Köln\\n", "days": 2}'

CASES: Sequence[tuple[str, str, Sequence[tuple[str, Mapping[str, Any]]]]] = [
    ("hermes", f"<tool_call>\n{OBJECT}\n</tool_call>\n<tool_call>\n{TIME}\n</tool_call>", TWO),
    (
        "qwen3_coder",
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
            "</function>\n</tool_call>\n<tool_call>\n<function=time>\n</function>\n</tool_call>"
        ),
        TWO,
    ),
    (
        "qwen3_coder",
        (
            "<tool_call><function=weather><parameter=unit>C</parameter><parameter=when>7</parameter>"
            "<parameter=also>['a', True]</parameter></function></tool_call>"
        ),
        [("weather", {"unit": "C", "when": 7, "also": ["a", True]})],
    ),
    (
        "qwen3_coder",
        "<tool_call><function=other><parameter=n>7</parameter><parameter=s>x</parameter></function></tool_call>",
        [("other", {"n": 7, "s": "x"})],
    ),
    ("qwen3_coder", f"<tool_call>\n{OBJECT}\n</tool_call>", TWO[:1]),
    ("qwen3_coder", "<function=time>\n</function>\n</tool_call>", TWO[1:]),
    (
        "glm",
        (
            "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln\n</arg_value>\n<arg_key>days</arg_key>\n"
            "<arg_value>2</arg_value>\n</tool_call>\n<tool_call>time\n</tool_call>"
        ),
        TWO,
    ),
    ("glm", "<tool_call>time</tool_call>", TWO[1:]),
    ("glm", f"<tool_call>\n{TIME}\n</tool_call>", TWO[1:]),
    ("llama3_json", OBJECT.replace("arguments", "parameters"), TWO[:1]),
    ("pythonic", "[weather(city='Köln\\n', days=2), time()]", TWO),
    ("pythonic", '<|python_start|>[weather(city="Köln\\n", days=2)]<|python_end|>', TWO[:1]),
    ("pythonic", f"[{OBJECT}, {TIME}]", TWO),
    ("lfm2", '<|tool_call_start|>[weather(city="Köln\\n", days=2), time()]<|tool_call_end|>', TWO),
    (
        "lfm2",
        "<|tool_call_start|>[weather(when=None, also=[(1, 2.5), {'a': False}])]<|tool_call_end|>",
        [("weather", {"when": None, "also": [[1, 2.5], {"a": False}]})],
    ),
    ("mistral", f"[TOOL_CALLS] [{OBJECT}, {TIME}]", TWO),
    ("mistral_args", f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}[TOOL_CALLS]time[ARGS]{{}}", TWO),
    ("mistral_args", f"[TOOL_CALLS]weather[CALL_ID]Ab3dE6gH9[ARGS]{ARGUMENTS}", TWO[:1]),
    (
        "deepseek",
        (
            f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>weather<{BAR}tool▁sep{BAR}>{ARGUMENTS}<{BAR}tool▁call▁end{BAR}>"
            f"<{BAR}tool▁call▁begin{BAR}>time<{BAR}tool▁sep{BAR}>{{}}<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end{BAR}>"
        ),
        TWO,
    ),
    (
        "deepseek",
        (
            f"<{BAR}tool▁calls▁begin{BAR}><{BAR}tool▁call▁begin{BAR}>function<{BAR}tool▁sep{BAR}>weather\n```json\n{ARGUMENTS}\n```"
            f"<{BAR}tool▁call▁end{BAR}>\n<{BAR}tool▁call▁begin{BAR}>function<{BAR}tool▁sep{BAR}>time\n```json\n{{}}\n```"
            f"<{BAR}tool▁call▁end{BAR}><{BAR}tool▁calls▁end{BAR}>"
        ),
        TWO,
    ),
    (
        "deepseek_dsml",
        (
            f'<{BAR}DSML{BAR}function_calls>\n<{BAR}DSML{BAR}invoke name="weather">\n'
            f'<{BAR}DSML{BAR}parameter name="city" string="true">Köln\n</{BAR}DSML{BAR}parameter>\n'
            f'<{BAR}DSML{BAR}parameter name="days" string="false">2</{BAR}DSML{BAR}parameter>\n</{BAR}DSML{BAR}invoke>\n'
            f'<{BAR}DSML{BAR}invoke name="time">\n</{BAR}DSML{BAR}invoke>\n</{BAR}DSML{BAR}function_calls>'
        ),
        TWO,
    ),
    (
        "gemma4",
        '<|tool_call>call:weather{city:<|"|>Köln\n<|"|>,days:2}<tool_call|><|tool_call>call:time{}<tool_call|>',
        TWO,
    ),
    (
        "gemma4",
        '<|tool_call>call:weather{also:[<|"|>a"b\\<|"|>,{<|"|>c<|"|>:true}]}<tool_call|>',
        [("weather", {"also": ['a"b\\', {"c": True}]})],
    ),
    (
        "functiongemma",
        "<start_function_call>call:weather{city:<escape>Köln\n<escape>,days:2}<end_function_call>",
        TWO[:1],
    ),
    ("olmo3", "<function_calls>\nweather(city='Köln\\n', days=2)\ntime()\n</function_calls>", TWO),
    (
        "olmo3",
        "<function_calls>f(a=null, b=true, c=[1, {'d': 'e'}])</function_calls>",
        [("f", {"a": None, "b": True, "c": [1, {"d": "e"}]})],
    ),
    ("hunyuan", f"<tool_calls>[{OBJECT}, {TIME}]</tool_calls>", TWO),
    (
        "seed_oss",
        (
            "<seed:tool_call>\n<function=weather>\n<parameter=city>\nKöln\n\n</parameter>\n<parameter=days>2</parameter>\n"
            "</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=time>\n</function>\n</seed:tool_call>"
        ),
        TWO,
    ),
    (
        "minimax",
        (
            '<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Köln\n</parameter>\n'
            '<parameter name="days">2</parameter>\n</invoke>\n<invoke name="time">\n</invoke>\n</minimax:tool_call>'
        ),
        TWO,
    ),
    (
        "cohere",
        (
            f'<|START_ACTION|>[\n    {{"tool_call_id": "0", "tool_name": "weather", "parameters": {ARGUMENTS}}},\n'
            '    {"tool_call_id": "1", "tool_name": "time", "parameters": {}}\n]<|END_ACTION|>'
        ),
        TWO,
    ),
    (
        "command_r",
        (
            f'Action:```json\n[\n    {{\n        "tool_name": "weather",\n        "parameters": {ARGUMENTS}\n    }},\n'
            '    {\n        "tool_name": "time",\n        "parameters": {}\n    }\n]\n```'
        ),
        TWO,
    ),
    ("command_r", 'Action: ```json\n[{"tool_name": "time", "parameters": {}}]```', TWO[1:]),
    ("nemotron", f"<TOOLCALL>[{OBJECT}, {TIME}]</TOOLCALL>", TWO),
    ("granite", f"<|tool_call|>[{OBJECT}, {TIME}]", TWO),
    ("phi4", f"<|tool_call|>[{OBJECT}, {TIME}]<|/tool_call|>", TWO),
    ("glm4", f"\nweather\n{ARGUMENTS}", TWO[:1]),
    (
        "harmony",
        (
            f"<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>"
            "<|start|>assistant to=functions.time<|channel|>commentary json<|message|>{}<|call|>"
        ),
        TWO,
    ),
]


def pieces(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
    """What comes of `calls`, the arguments as values."""
    return [
        piece
        for at, (name, arguments) in enumerate(calls)
        for piece in (ToolStart(at, f"call_{at}", name), (at, arguments), ToolEnd(at))
    ]


def valued(found: Sequence[Piece]) -> list[Any]:
    """Pieces with their arguments as values, so that spaces in them do not count."""
    return [(one.index, json.loads(one.text)) if isinstance(one, ToolArguments) else one for one in found]


def parsed(name: str, chunks: Sequence[str]) -> list[Any]:
    return valued(collect(tool_parser(name, "call_", functions=FUNCTIONS), chunks))


def test_every_format_has_a_case() -> None:
    assert {name for name, _, _ in CASES} == {one.name for one in FORMATS}


@pytest.mark.parametrize(("name", "text", "calls"), CASES)
def test_calls_as_the_family_writes_them(name: str, text: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """The same wherever the chunks end."""
    expected = pieces(calls)

    assert parsed(name, [text]) == expected
    assert parsed(name, list(text)) == expected
    assert all(parsed(name, [text[:at], text[at:]]) == expected for at in range(len(text)))


@pytest.mark.parametrize(("name", "text", "calls"), CASES)
def test_a_call_that_is_cut_off_anywhere_is_json_and_leaves_no_marker(
    name: str, text: str, calls: Sequence[tuple[str, Mapping[str, Any]]]
) -> None:
    """At the end of max_tokens: what was begun is closed, and of an envelope without a call nothing is shown."""
    markers = next(one.markers for one in FORMATS if one.name == name)
    for at in range(len(text)):
        parser = tool_parser(name, "call_", functions=FUNCTIONS)
        found = [*parser.feed(text[:at]), *parser.close(cut=True)]
        shown = "".join(piece.text for piece in found if isinstance(piece, Text))
        started = [piece for piece in found if isinstance(piece, ToolStart)]
        written = {one.index: "" for one in started}
        for piece in found:
            if isinstance(piece, ToolArguments):
                written[piece.index] += piece.text

        assert not any(shown.endswith(marker[:length]) for marker in markers for length in range(2, len(marker) + 1)), (
            shown
        )
        assert [one.name for one in started] == [called for called, _ in calls][: len(started)]
        assert all(isinstance(json.loads(arguments), dict) for arguments in written.values()), written
        assert sum(isinstance(piece, ToolEnd) for piece in found) == len(started)


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.opens])
def test_text_stands_around_calls(name: str) -> None:
    text, calls = next((text, calls) for kind, text, calls in CASES if kind == name)

    assert parsed(name, [f"Let me look.\n\n{text}"]) == [Text("Let me look."), *pieces(calls)]


def test_harmony_tells_thoughts_preambles_and_the_answer() -> None:
    """By channel; an answer that has no header at all is an answer."""
    text = (
        "<|channel|>analysis<|message|>Hm. A look.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.time <|constrain|>json<|message|>{}<|call|>"
    )
    answer = "<|channel|>final<|message|>It is <b>late</b>.<|return|>"
    calls = [ToolStart(0, "call_0", "time"), ToolArguments(0, "{}"), ToolEnd(0)]

    check(lambda: tool_parser("harmony", "call_"), text, Reasoning("Hm. A look."), Text("I look."), *calls)
    check(lambda: tool_parser("harmony", "call_"), answer, Text("It is <b>late</b>."))
    check(lambda: tool_parser("harmony", "call_"), "plain", Text("plain"))


def test_cohere_tells_thoughts_and_the_answer() -> None:
    call = '[{"tool_name": "time", "parameters": {}}]'
    text = f"<|START_THINKING|>Hm. A look.<|END_THINKING|><|START_ACTION|>{call}<|END_ACTION|>"
    answer = "<|START_THINKING|>Ah.<|END_THINKING|><|START_RESPONSE|>It is <b>late</b>.<|END_RESPONSE|>"
    calls = [ToolStart(0, "call_0", "time"), ToolArguments(0, "{}"), ToolEnd(0)]

    check(lambda: tool_parser("cohere", "call_"), text, Reasoning("Hm. A look."), *calls)
    check(lambda: tool_parser("cohere", "call_"), answer, Reasoning("Ah."), Text("It is <b>late</b>."))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seed_oss", "<seed:think>Hm.</seed:think>It is late."),
        ("seed_oss", "<seed:think>\nHm.\n</seed:think>\nIt is late."),
        ("hunyuan", "<think>\nHm.\n</think>\n<answer>\nIt is late.\n</answer>"),
        ("hunyuan", "<think>Hm.</think>It is late."),
    ],
)
def test_thoughts_and_answer_without_what_stands_around_them(name: str, text: str) -> None:
    check(lambda: tool_parser(name, "call_"), text, Reasoning("Hm."), Text("It is late."))


def test_glm_4_calls_are_those_of_functions_that_there_are() -> None:
    """A line of text before JSON is none."""
    text = "Sure\n{}"

    assert parsed("glm4", list(text)) == [Text(text)]


def test_names_of_arguments_stay_as_they_are_written() -> None:
    """Whatever their alphabet: an escape would say the same in more bytes."""
    text = "[f(größe=1, ß='é')]"

    check(
        lambda: tool_parser("pythonic", "call_"),
        text,
        ToolStart(0, "call_0", "f"),
        ToolArguments(0, '{"größe": 1, "ß": "é"}'),
        ToolEnd(0),
    )


@pytest.mark.parametrize(
    ("name", "text", "calls", "behind"),
    [
        ("pythonic", "time() or time()", TWO[1:], "or time()"),
        ("pythonic", "time()] or so", TWO[1:], "] or so"),
        ("pythonic", "[time()] or so", TWO[1:], "or so"),
        ("olmo3", "<function_calls>time()\n]</function_calls>", TWO[1:], "]"),
        ("glm4", "time\n{} and more", TWO[1:], "and more"),
    ],
)
def test_what_stands_behind_calls_is_text(name: str, text: str, calls: Any, behind: str) -> None:
    assert parsed(name, [text]) == [*pieces(calls), Text(behind)]


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.opens and not one.thinks])
def test_what_opens_calls_and_holds_none_leaves_the_text_as_it_is(name: str) -> None:
    """Some show what opened it, too. What would close it closes nothing."""
    entry = next(one for one in FORMATS if one.name == name)
    closes = entry.markers[1] if len(entry.markers) > 1 and name not in ("mistral", "mistral_args") else ""
    text = f"{entry.opens[0]}so much for that{closes}"
    shown = "".join(piece.text for piece in parsed(name, [text]))

    assert shown in (text, text.removeprefix(entry.opens[0]))


@pytest.mark.parametrize("name", [one.name for one in FORMATS if one.opens and not one.thinks])
def test_what_closes_calls_is_text_where_nothing_was_opened(name: str) -> None:
    marker = next(one.markers for one in FORMATS if one.name == name)[-1]
    text = f"so much for {marker} that"

    if not any(marker in one.opens for one in FORMATS if one.name == name):
        assert parsed(name, [text]) == [Text(text)]


@pytest.mark.parametrize(
    ("name", "opens", "closes"),
    [
        ("hunyuan", "<think>", "</think>"),
        ("seed_oss", "<seed:think>", "</seed:think>"),
        ("cohere", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("harmony", "<|channel|>analysis<|message|>", "<|end|>"),
    ],
)
def test_a_reader_knows_while_it_reads_thoughts(name: str, opens: str, closes: str) -> None:
    parser = tool_parser(name, "call_")
    known = []
    for text in (opens, "Hm. ", closes, " So."):
        parser.feed(text)
        known.append(parser.thinking)

    assert known == [True, True, False, False]
