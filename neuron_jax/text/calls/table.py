"""How each family writes its calls of tools: one entry of `FORMATS` is all that is known of a format; must not know streams.

The notations are those of the families' own chat templates and model cards.
"""

from collections.abc import Callable, Sequence
from functools import partial

from attrs import frozen

from neuron_jax.text.calls import cohere, harmony, hunyuan, notations, seed
from neuron_jax.text.calls.envelopes import Body, between
from neuron_jax.text.calls.json_calls import json_calls
from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Waits

Pair = tuple[str, str]

HERMES: Pair = ("<tool_call>", "</tool_call>")
_DEEPSEEK: Pair = (notations.CALLS_BEGIN, notations.CALLS_END)
_DSML: Pair = (f"<{notations.DSML}function_calls>", f"</{notations.DSML}function_calls>")
_FUNCTION_GEMMA: Pair = ("<start_function_call>", "<end_function_call>")
_GEMMA: Pair = ("<|tool_call>", "<tool_call|>")
_GRANITE: Pair = ("<|tool_call|>", "")
_LFM: Pair = ("<|tool_call_start|>", "<|tool_call_end|>")
_MINIMAX: Pair = ("<minimax:tool_call>", "</minimax:tool_call>")
_MISTRAL: Pair = ("[TOOL_CALLS]", "")
_NEMOTRON: Pair = ("<TOOLCALL>", "</TOOLCALL>")
_OLMO: Pair = ("<function_calls>", "</function_calls>")
_PHI: Pair = ("<|tool_call|>", "<|/tool_call|>")
_PYTHON: Pair = ("<|python_start|>", "<|python_end|>")
_PYTHON_TAG = "<|python_tag|>"
_TO_FUNCTION = f"{harmony.CHANNEL}commentary to=functions."


@frozen
class Form:
    """How calls are written where a grammar binds them: `head`, the name, `neck`, the JSON of the arguments, `tail`; `between`
    calls, and around all of them `start` and `end`. `quoted`: the name is a JSON string.

    `trigger` is the part of what comes first that begins a call wherever the model writes it; None: only at the very beginning.
    `several`: more than one call is understood.
    """

    head: str
    neck: str
    tail: str
    start: str = ""
    between: str = ""
    end: str = ""
    trigger: str | None = None
    quoted: bool = True
    several: bool = True


@frozen
class ToolFormat:
    """`seen`: what in a template shows it. `markers` may be special tokens, whose text the reader needs; `opens` are those that
    end thinking that was left open. `thinks`: it tells thoughts from answers as well.
    """

    name: str
    seen: str
    markers: Sequence[str]
    read: Callable[[CallReader], Waits[None]]
    form: Form
    opens: Sequence[str] = ()
    thinks: bool = False


_HEAD, _NECK = '{"name": ', ', "arguments": '
"""Around the name of a call that is a JSON object."""


def _each(around: Pair, space: str = "") -> Form:
    """Every call a JSON object between its own markers."""
    opens, closes = around
    return Form(f"{opens}{space}{_HEAD}", _NECK, f"}}{space}{closes}", between="\n", trigger=opens)


def _list(around: Pair) -> Form:
    """A JSON list of calls between markers."""
    opens, closes = around
    return Form(_HEAD, _NECK, "}", start=f"{opens}[", between=", ", end=f"]{closes}", trigger=opens)


def _marked(
    name: str, seen: str, around: Pair, body: Body, form: Form, *, more: Sequence[str] = (), shown: bool = False
) -> ToolFormat:
    """A format whose calls stand between two markers, or behind one."""
    opens, closes = around
    ends = (closes,) if closes else ()
    read = between((opens,), ends, body, shown=shown)
    return ToolFormat(name, seen, (opens, *ends, *more), read, form, opens=(opens,))


def _own(name: str, seen: str, around: Pair, body: Body) -> ToolFormat:
    """A format with a notation of its own between its markers; where it is bound, JSON stands there."""
    return _marked(name, seen, around, body, _each(around))


def _hermes(name: str, seen: str, body: Body) -> ToolFormat:
    """A format with the markers of Hermes around its own notation; where it is bound, Hermes' JSON stands there."""
    return _marked(name, seen, HERMES, body, _each(HERMES, "\n"), shown=True)


_MISTRAL_MORE = (notations.ARGS, notations.CALL_ID)
_BARE_JSON = partial(json_calls, bare=True)

FORMATS: Sequence[ToolFormat] = (
    ToolFormat(
        "harmony",
        r"<\|channel\|>[\s\S]*<\|message\|>",
        harmony.MARKERS,
        harmony.read,
        Form(
            _TO_FUNCTION,
            f" <|constrain|>json{harmony.MESSAGE}",
            harmony.CALL,
            trigger=_TO_FUNCTION,
            quoted=False,
            several=False,
        ),
        thinks=True,
    ),
    ToolFormat(
        "cohere",
        r"<\|START_ACTION\|>",
        cohere.MARKERS,
        cohere.read,
        Form(
            '{"tool_name": ',
            ', "parameters": ',
            "}",
            start=f"{cohere.ACTION}[",
            between=", ",
            end=f"]{cohere.END_ACTION}",
            trigger=cohere.ACTION,
        ),
        thinks=True,
    ),
    ToolFormat(
        "command_r",
        "followed by a json-formatted list of actions",
        (),
        between(cohere.OLD_ACTION, (cohere.END_OLD_ACTION,), json_calls, shown=True),
        Form(
            '{"tool_name": ',
            ', "parameters": ',
            "}",
            start=f"{cohere.OLD_ACTION[0]}\n[",
            between=", ",
            end=f"]{cohere.END_OLD_ACTION}",
            trigger=cohere.OLD_ACTION[0],
        ),
    ),
    ToolFormat(
        "seed_oss", "<seed:tool_call>", seed.MARKERS, seed.read, _each((seed.CALL, seed.END_CALL), "\n"), thinks=True
    ),
    ToolFormat(
        "hunyuan",
        r"<tool_calls>\[",
        hunyuan.MARKERS,
        hunyuan.read,
        _list((hunyuan.CALLS, hunyuan.END_CALLS)),
        thinks=True,
    ),
    _own("deepseek_dsml", f"{notations.DSML}|dsml_token", _DSML, partial(notations.invoke_calls, mark=notations.DSML)),
    _own("minimax", "<minimax:tool_call>", _MINIMAX, notations.invoke_calls),
    _marked(
        "deepseek",
        notations.CALLS_BEGIN,
        _DEEPSEEK,
        notations.deepseek_calls,
        Form(
            notations.CALL_BEGIN,
            notations.SEP,
            notations.CALL_END,
            start=notations.CALLS_BEGIN,
            end=notations.CALLS_END,
            trigger=notations.CALLS_BEGIN,
            quoted=False,
        ),
        more=(notations.CALL_BEGIN, notations.CALL_END, notations.SEP),
    ),
    _own("gemma4", r"<\|tool_call>", _GEMMA, notations.gemma_calls),
    _own("functiongemma", "<start_function_call>", _FUNCTION_GEMMA, notations.gemma_calls),
    # The templates of LFM2.5 show none of its markers.
    _own("lfm2", r"<\|tool_(call_start|list_start)\|>|List of tools: \[", _LFM, notations.python_calls),
    _own("olmo3", "<function_calls>", _OLMO, partial(notations.python_calls, lines=True)),
    _marked("nemotron", "<TOOLCALL>", _NEMOTRON, json_calls, _list(_NEMOTRON)),
    _hermes("glm", "<arg_key>", notations.glm_calls),
    ToolFormat(
        "qwen3_coder",
        notations.FUNCTION,
        HERMES,
        between((HERMES[0], notations.FUNCTION), HERMES[1:], notations.coder_calls, shown=True),
        _each(HERMES, "\n"),
        opens=HERMES[:1],
    ),
    _hermes("hermes", "<tool_call>", json_calls),
    _marked("phi4", r"<\|/tool_call\|>", _PHI, json_calls, _list(_PHI)),
    _marked("granite", r"<\|tool_call\|>", _GRANITE, json_calls, _list(_GRANITE)),
    _marked(
        "mistral_args",
        r"\[ARGS\]",
        _MISTRAL,
        notations.mistral_calls,
        Form(_MISTRAL[0], notations.ARGS, "", trigger=_MISTRAL[0], quoted=False),
        more=_MISTRAL_MORE,
    ),
    _marked("mistral", r"\[TOOL_CALLS\]", _MISTRAL, notations.mistral_calls, _list(_MISTRAL), more=_MISTRAL_MORE),
    ToolFormat(
        "pythonic",
        r"<\|python_start\|>|\[func_name1?\(",
        _PYTHON,
        between(_PYTHON[:1], _PYTHON[1:], notations.python_calls, first=notations.python_calls),
        Form(_HEAD, _NECK, "}", start="[", between=", ", end="]"),
    ),
    ToolFormat(
        "llama3_json",
        r"<\|python_tag\|>|Environment: ipython",
        (_PYTHON_TAG,),
        between((_PYTHON_TAG,), (), _BARE_JSON, first=_BARE_JSON),
        # What Llama writes behind its first call is none.
        Form(_HEAD, ', "parameters": ', "}", several=False),
    ),
    ToolFormat(
        "glm4",
        r"<\|observation\|>",
        (),
        between((), (), notations.line_calls, first=notations.line_calls),
        Form("", "\n", "", quoted=False, several=False),
    ),
)
"""The first that a template shows is its format."""
