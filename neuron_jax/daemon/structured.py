"""The fields that bind an answer to a form, in the words of OpenAI, vLLM and llama.cpp; must not know grammars or models."""

from collections.abc import Callable, Mapping

import msgspec
from attrs import frozen

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.problems import Problem, invalid_body, unsupported
from neuron_jax.workers.frames import Constraint

MAX_CHOICES = 4_096

FIELDS = (
    "response_format",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
    "grammar",
    "json_schema",
)
"""Of which a request may have one."""


@frozen
class Binding:
    """A constraint, and the field that asks for it. `among_text`: any text may come, thoughts too, up to what it binds."""

    constraint: Constraint
    field: str
    among_text: bool = False

    def refused(self, error: GrammarError) -> Problem:
        """What a client is told of a constraint that cannot be followed: where a keyword is not carried out, which."""
        if error.keywords:
            return unsupported(f"{self.field}.{error.keywords[0]}", f"{self.field}: {error}.")
        return invalid_body(self.field, f"{self.field}: {error}.")


def read_constraint(fields: Fields) -> Binding | None:
    """What the answer must look like, if it is bound at all. Raises Problem."""
    asked = [
        one for name in FIELDS if fields.get(name) is not None and (one := _READERS[name](fields, name)) is not None
    ]
    if len(asked) > 1:
        raise invalid_body(
            asked[1].field, f"{asked[1].field}: {asked[0].field} says already what the answer looks like."
        )
    return asked[0] if asked else None


def _response_format(fields: Fields, name: str) -> Binding | None:
    given = fields.object(name)
    assert given is not None
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return Binding(Constraint("json_object"), name)
        case "json_schema":
            described = given.object("json_schema")
            if described is None or described.get("schema") is None:
                raise given.wrong("json_schema", "an object with a schema")
            described.text("name")
            described.flag("strict")
            return _schema(described, "schema")
        case str(other):
            raise unsupported(given.name("type"), f"{given.name('type')} {other!r} is not supported by this server.")
    raise given.wrong("type", '"text", "json_object" or "json_schema"')


def _structured_outputs(fields: Fields, name: str) -> Binding | None:
    given = fields.object(name)
    assert given is not None
    said = [key for key, value in given.values.items() if value not in (None, False)]
    known = [key for key in said if key in _STRUCTURED]
    other = next((key for key in said if key not in known and key not in _HARMLESS), None)
    if other is not None:
        raise unsupported(given.name(other), f"{given.name(other)} is not supported by this server; leave it out.")
    if len(known) != 1:
        raise fields.wrong(name, "an object with one of " + ", ".join(_STRUCTURED))
    return _STRUCTURED[known[0]](given, known[0])


def _schema(fields: Fields, name: str) -> Binding:
    """A JSON schema as an object, or as text."""
    value = fields.get(name)
    if not isinstance(value, str | dict | bool):
        raise fields.wrong(name, "a JSON schema")
    source = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return Binding(Constraint("json_schema", source), fields.name(name))


def _regex(fields: Fields, name: str) -> Binding:
    return Binding(Constraint("regex", _said(fields, name)), fields.name(name))


def _choice(fields: Fields, name: str) -> Binding:
    choices = fields.get(name)
    if (
        not isinstance(choices, list)
        or not 1 <= len(choices) <= MAX_CHOICES
        or not all(isinstance(choice, str) and choice for choice in choices)
    ):
        raise fields.wrong(name, f"a list of 1 to {MAX_CHOICES} strings, none of them empty")
    return Binding(Constraint("choice", msgspec.json.encode(choices).decode()), fields.name(name))


def _grammar(fields: Fields, name: str) -> Binding:
    """GBNF, as llama.cpp has it, or Lark: only the first writes `::=`."""
    source = _said(fields, name)
    return Binding(Constraint("gbnf" if "::=" in source else "lark", source), fields.name(name))


def _object(fields: Fields, name: str) -> Binding:
    fields.flag(name)
    return Binding(Constraint("json_object"), fields.name(name))


def _said(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if not text:
        raise fields.wrong(name, "a string that is not empty")
    return text


_READERS: Mapping[str, Callable[[Fields, str], Binding | None]] = {
    "response_format": _response_format,
    "guided_json": _schema,
    "guided_regex": _regex,
    "guided_choice": _choice,
    "guided_grammar": _grammar,
    "structured_outputs": _structured_outputs,
    "grammar": _grammar,
    "json_schema": _schema,
}
_STRUCTURED: Mapping[str, Callable[[Fields, str], Binding]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _object,
}
_HARMLESS = ("disable_fallback",)
"""What vLLM's clients send beside, and that changes nothing here."""
