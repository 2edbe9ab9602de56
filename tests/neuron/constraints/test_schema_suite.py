"""The JSON Schema Test Suite, draft 2020-12: what we take, we hold to; what we do not carry out, we refuse."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.constraints.grammar import check
from tests.neuron.constraints.test_grammar import admits, schema

SUITE = Path(__file__).parents[2] / "data" / "json-schema-2020-12.jsonl"
LEAST_TAKEN = 200
"""Of its 461 schemas; a new release of the library may take more."""


def orders(instance: Any) -> Iterator[Any]:
    """`instance` with its members in every order: a grammar knows only one of them."""
    if not isinstance(instance, dict) or not 1 < len(instance) <= 4:
        yield instance
        return
    yield from (dict(members) for members in itertools.permutations(instance.items()))


def _written(instance: Any) -> str:
    return json.dumps(instance, ensure_ascii=False)


def test_nothing_that_is_invalid_is_let_through() -> None:
    """Schemas that are taken admit no instance that the suite calls invalid, in any order of its members."""
    taken, wrong = 0, list[Any]()
    for line in SUITE.read_text().splitlines():
        name, about, wanted, invalid = json.loads(line)
        asked = schema(wanted)
        try:
            check(asked)
        except GrammarError:
            continue
        taken += 1
        wrong += [(name, about, one) for each in invalid for one in orders(each) if admits(asked, _written(one))]

    assert not wrong
    assert taken >= LEAST_TAKEN


@pytest.mark.parametrize(
    ("asked", "keyword"),
    [
        ({"oneOf": [{"type": "integer"}, {"minimum": 2}]}, "oneOf"),
        ({"type": "string", "format": "uri-template"}, "format"),
        ({"properties": {"a": {"propertyNames": {"maxLength": 3}}}}, "propertyNames"),
        ({"$dynamicRef": "#a"}, "$dynamicRef"),
    ],
)
def test_what_is_not_carried_out_is_named_wherever_it_stands(asked: Any, keyword: str) -> None:
    with pytest.raises(GrammarError) as raised:
        check(schema(asked))

    assert keyword in raised.value.keywords


@pytest.mark.parametrize(
    ("asked", "good", "bad"),
    [
        ({"type": "string", "format": "date", "pattern": "^2"}, "2024-02-29", "1999-01-01"),
        ({"type": "string", "format": "date"}, "2000-02-29", "1900-02-29"),
        ({"type": "string", "format": "date-time"}, "2024-02-29T23:59:59Z", "2023-02-29T23:59:59Z"),
        ({"type": "string", "format": "time", "allOf": [{"pattern": "^1"}]}, "12:00:00Z", "02:00:00Z"),
        ({"type": "string", "format": "hostname"}, "a.b-c.example", "xn--a.example"),
        (
            {"type": "object", "properties": {"format": {"const": "date"}}, "required": ["format"]},
            {"format": "date"},
            {},
        ),
        ({"type": "string", "pattern": r"^\\S$"}, r"\S", r"\x"),
    ],
)
def test_formats_are_held_to_beside_what_else_is_asked(asked: Any, good: Any, bad: Any) -> None:
    """A property that is called format is none."""
    assert admits(schema(asked), json.dumps(good))
    assert not admits(schema(asked), json.dumps(bad))
