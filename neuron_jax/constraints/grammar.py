"""What a client asks of a text's form → a grammar of llguidance; pure, must not know tokens, engines or wires.

Whatever a grammar lets through is valid: what llguidance does not carry out is refused by name, never left out.
"""

import json
import re
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from neuron_jax.constraints.calls import calls_grammar
from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.schema import plain_schema
from neuron_jax.workers.frames import Constraint

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # nowhere but in its types

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=150_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
"""Some 20 ms for the parts of a grammar, 10 ms for the tokens that may come next, and 40 MB of states, after all of which a
text is given up. Source: the speeds that llguidance's documentation gives."""

JSON: "JsonCompileOptions" = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
"""JSON is written on one line, as Python's `json.dumps` does: a model that may put in white space anywhere never ends, and
what is forced need not be drawn. Nothing in a schema changes this."""

MAX_SOURCE = 262_144
"""Characters of one constraint."""

_KEYWORD = re.compile(r"Unimplemented keys: \[(?P<keys>[^\]]*)\]|^(?P<one>oneOf) constraints are not supported")
_FORMAT = re.compile(r"Unknown format: (?P<name>.*)")
_ANY_OBJECT = '{"type": "object"}'


def grammar_of(constraint: Constraint) -> str:
    """llguidance's own notation of it. Raises GrammarError where it cannot be written so; `check` says the rest."""
    if len(constraint.source) > MAX_SOURCE:
        raise GrammarError(f"it has {len(constraint.source)} characters; at most {MAX_SOURCE} are taken")
    try:
        return _written(constraint.kind, constraint.source)
    except GrammarError:
        raise
    except RecursionError as error:
        raise GrammarError("it is nested too deeply") from error
    except Exception as error:  # the library raises bare ValueErrors, and its GBNF reader errors of its own
        raise GrammarError(_brief(str(error))) from error


def check(constraint: Constraint) -> None:
    """Raises GrammarError when no text can be made by it. It may take as long and as much as somebody wants it to:
    whoever asks for a stranger bounds it from outside.
    """
    matcher = LLMatcher(_BYTES, grammar_of(constraint), log_level=0, limits=LIMITS)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise refusal(matcher.get_error())


def refusal(message: str) -> GrammarError:
    """llguidance's words as an error."""
    found = _KEYWORD.search(message)
    keywords = tuple(key.strip(' "') for key in (found["keys"] or found["one"]).split(",")) if found else ()
    unknown = _FORMAT.search(message)
    if unknown is not None:
        return GrammarError(f"the format {unknown['name'].strip()[:100]} is not carried out", ("format",))
    if keywords:
        return GrammarError(f"the keyword {', '.join(keywords)} is not carried out", keywords)
    return GrammarError(_brief(message))


def _written(kind: str, source: str) -> str:
    match kind:
        case "json_object":
            return LLMatcher.grammar_from_json_schema(_ANY_OBJECT, overrides=JSON)
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(json.dumps(plain_schema(json.loads(source))), overrides=JSON)
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            source = "start: " + " | ".join(json.dumps(choice) for choice in json.loads(source))
        case "calls":
            source = calls_grammar(json.loads(source), JSON)
        case "gbnf":
            source = gbnf_to_lark(source)
    return LLMatcher.grammar_from_lark(source)


def _brief(message: str) -> str:
    line = message.strip().split("\n", 1)[0]
    return line[:300] or "nothing can be written by it"


_BYTES = LLTokenizer("byte")
"""A vocabulary of the 256 bytes: enough to see whether a grammar begins."""
