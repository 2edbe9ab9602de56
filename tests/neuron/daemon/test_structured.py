"""What binds an answer to a form, in the words of OpenAI, vLLM and llama.cpp."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.structured import Binding, read_constraint
from neuron_jax.workers.frames import Constraint

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
TEXT = json.dumps(SCHEMA, separators=(",", ":"))
NAMED = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("body", "constraint", "field"),
    [
        ({"response_format": NAMED}, Constraint("json_schema", TEXT), "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object"), "response_format"),
        ({"guided_json": SCHEMA}, Constraint("json_schema", TEXT), "guided_json"),
        ({"guided_json": TEXT}, Constraint("json_schema", TEXT), "guided_json"),
        ({"guided_regex": "a+"}, Constraint("regex", "a+"), "guided_regex"),
        ({"guided_choice": ["x", "y"]}, Constraint("choice", '["x","y"]'), "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, Constraint("lark", 'start: "a"'), "guided_grammar"),
        ({"grammar": 'root ::= "a"'}, Constraint("gbnf", 'root ::= "a"'), "grammar"),
        ({"json_schema": SCHEMA}, Constraint("json_schema", TEXT), "json_schema"),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", TEXT), "structured_outputs.json"),
        ({"structured_outputs": {"regex": "a", "json": None}}, Constraint("regex", "a"), "structured_outputs.regex"),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_object"), "structured_outputs.json_object"),
    ],
)
def test_every_spelling_is_read(body: Mapping[str, Any], constraint: Constraint, field: str) -> None:
    """The order of a schema's keys is kept: it is that of the answer."""
    assert read_constraint(Fields(body)) == Binding(constraint, field)


@pytest.mark.parametrize("body", [{}, {"response_format": {"type": "text"}}, {"guided_json": None}])
def test_most_answers_are_free(body: Mapping[str, Any]) -> None:
    assert read_constraint(Fields(body)) is None


def test_a_keyword_that_is_not_carried_out_is_named() -> None:
    asked = Binding(Constraint("json_schema", "{}"), "guided_json")
    problem = asked.refused(GrammarError("the keyword not is not carried out", ("not",)))

    assert (problem.status, problem.code, problem.param) == (400, "unsupported_parameter", "guided_json.not")
    assert asked.refused(GrammarError("bad")).param == "guided_json"
