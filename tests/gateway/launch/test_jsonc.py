"""JSON with comments: one member changed, every other character kept, and what is no JSON refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_gateway.cli.launch.jsonc import DEEPEST, JsoncError, has, parse, put

SETTINGS = """// Zed settings
{
  "theme": "One // Dark", /* keep */
  "agent": {
    "default_model": { "provider": "x", "model": "y" }, // mine
  },
  // the end
}
"""


@pytest.mark.parametrize(
    ("text", "path", "after"),
    [
        ("", ("a",), '{\n  "a": 1\n}\n'),
        ("// note", ("a",), '// note\n{\n  "a": 1\n}\n'),
        ("{}", ("a", "b"), '{\n  "a": {\n    "b": 1\n  }\n}'),
        ('{"b": 2}', ("a",), '{"b": 2,\n  "a": 1\n}'),
        ('{"a": 2, "b": 3}', ("a",), '{"a": 1, "b": 3}'),
        ('{\n\t"b": 2 // two\n}\n', ("a",), '{\n\t"b": 2, // two\n\t"a": 1\n}\n'),
        ('{\n    "b": [1,],\n}', ("a",), '{\n    "b": [1,],\n    "a": 1\n}'),
        ('{\r\n  "b": {}\r\n}', ("b", "a"), '{\r\n  "b": {\r\n    "a": 1\r\n  }\r\n}'),
        ('\ufeff{"a": 1}', ("a",), '\ufeff{"a": 1}'),
    ],
)
def test_one_member_changes(text: str, path: tuple[str, ...], after: str) -> None:
    """In the indentation and the newlines that are there."""
    assert put(text, path, 1) == after


def test_comments_and_all_else_stay() -> None:
    after = put(SETTINGS, ("agent", "mine"), {"new": True})

    assert [line for line in SETTINGS.splitlines() if line not in after] == []
    assert parse(after).value["agent"]["mine"] == {"new": True}
    assert put(after, ("agent", "mine"), {"new": True}) == after


def test_what_stands_there_is_kept_where_ours_yields() -> None:
    assert put(SETTINGS, ("agent", "default_model"), 1, yields=True) == SETTINGS
    assert parse(put(SETTINGS, ("agent", "other"), 1, yields=True)).value["agent"]["other"] == 1


@pytest.mark.parametrize(
    ("text", "found"),
    [("", False), ("// no\n", False), ('{"a": {"b": null}}', True), ('{"a": 1}', False), ('{"b": {"a": 1}}', False)],
)
def test_a_path_is_found(text: str, found: bool) -> None:
    assert has(text, ("a", "b")) is found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "line 1: a key or } is missing"),
        ('{"a": 1} x', "line 1: there is more behind the value"),
        ('{"a": 1\n "b": 2}', "line 2: a comma or } is missing"),
        ('{"a" 1}', "a colon is missing"),
        ('{"a": }', "a value is missing"),
        ('{"a": NaN}', "a value is missing"),
        ('{"a": "\\q"}', "this is no value"),
        ('{"a": 1, "a": 2}', "a is there twice"),
        ("{} /* open", "there is more behind the value"),
        ("[1]", "the file is not an object"),
        ('{"x": {"y": 3}}', "x.y is not an object"),
        ("[" * (DEEPEST + 2), f"nested more than {DEEPEST} deep"),
    ],
)
def test_what_is_none_is_refused(text: str, told: str) -> None:
    """With the line."""
    with pytest.raises(JsoncError, match="line") as refused:
        put(text, ("x", "y", "z"), 1)

    assert told in str(refused.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=4), values, max_size=4), st.text(max_size=4), values, st.sampled_from((None, 2))
)
def test_any_object_is_what_it_was_and_the_member(
    old: dict[str, Any], key: str, value: Any, indent: int | None
) -> None:
    """Held against the json of the standard library."""
    assert json.loads(put(json.dumps(old, indent=indent), (key,), value)) == old | {key: value}
