"""A setting is one field: what the reader makes of it from a file and a variable, and what it says where it does not fit."""

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from attrs import field, frozen
from attrs.validators import ge

from neuron_jax.common.errors import ConfigError
from neuron_jax.common.kinds import FILE_ONLY, HIDDEN, Rule, within
from neuron_jax.common.reader import Reader, read_record
from neuron_jax.common.variables import names


@frozen(kw_only=True)
class Oven:
    """Settings of each kind, with a rule and without one."""

    name: str
    heat: int = field(default=180, validator=within(50, 250))
    hours: float | None = field(default=None, validator=within(0.5))
    fan: bool = False
    mode: Literal["bake", "grill"] = "bake"
    racks: tuple[int, ...] = field(
        default=(), validator=Rule(" that rises", lambda found: sorted(found) == list(found))
    )
    book: pathlib.Path | None = None
    pin: str | None = field(default=None, repr=False, metadata=HIDDEN)


@frozen(kw_only=True)
class Kitchen:
    """A table, a list of tables and a mapping."""

    main: Oven = Oven(name="main")
    ovens: tuple[Oven, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    chairs: int = field(default=4, validator=ge(1))
    old: int | None = field(default=None, metadata=FILE_ONLY)


def read(table: dict[str, Any], **environ: str) -> Kitchen:
    return Reader("kitchen.toml").read(Kitchen, table, "K_", {f"K_{name}": text for name, text in environ.items()})


def problems(table: dict[str, Any], **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        read(table, **environ)
    return list(raised.value.problems)


@pytest.mark.parametrize(
    ("key", "value", "text", "found"),
    [
        ("name", "7", "7", "7"),
        ("heat", 200, "200", 200),
        ("hours", 2, "2", 2.0),
        ("fan", True, "True", True),
        ("mode", "grill", "grill", "grill"),
        ("racks", [1, 2], "1, 2", (1, 2)),
        ("racks", [1, 2], "[1, 2]", (1, 2)),
        ("racks", [], "", ()),
        ("book", "~/a", "~/a", pathlib.Path("~/a").expanduser()),
        ("pin", "1 2", "1 2", "1 2"),
    ],
)
def test_a_field_is_a_key_and_a_variable(key: str, value: Any, text: str, found: Any) -> None:
    """Nothing else has to be written for it."""
    of_file = read({"main": {"name": "a", key: value}})
    of_variable = read({"main": {"name": "a"}}, **{f"MAIN__{key.upper()}": text})

    assert getattr(of_file.main, key) == getattr(of_variable.main, key) == found


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("name", 7, "found 7; allowed: a string"),
        ("heat", 300, "found 300; allowed: a whole number from 50 to 250"),
        ("heat", "x", 'found "x"; allowed: a whole number from 50 to 250'),
        ("heat", True, "found True; allowed: a whole number from 50 to 250"),
        ("hours", 0.25, "found 0.25; allowed: a number from 0.5 on"),
        ("hours", float("inf"), "found inf; allowed: a finite number"),
        ("fan", 1, "found 1; allowed: true or false"),
        ("mode", "bale", 'found "bale"; allowed: "bake", "grill"; did you mean "bake"?'),
        ("mode", ["bake"], 'found ["bake"]; allowed: "bake", "grill"'),
        ("racks", 3, "found 3; allowed: a list that rises"),
        ("racks", [2, 1], "found [2, 1]; allowed: a list that rises"),
        ("book", " ", 'found " "; allowed: a path'),
        ("pin", "12é", "allowed: a word of visible ASCII characters"),
        ("pin", {"a": "12é"}, "allowed: a word of visible ASCII characters"),
        ("nam", 1, "is not a key here; allowed:"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(key: str, value: Any, told: str) -> None:
    (problem,) = problems({"main": {"name": "a", key: value}})

    assert problem.startswith(f"kitchen.toml: main.{key}: {told}")


def test_all_misfits_are_told_wherever_they_are() -> None:
    """Fields, entries of lists and mappings, unknown keys and missing ones, variables that name nothing."""
    table = {"main": 3, "ovens": [{"heat": 1}, 5], "labels": {"a": 1}, "chairs": 0, "old": "x", "z": 1}

    assert problems(table, MAIM__NAME="a", OVENS__2__FAN="maybe") == [
        'environment: K_MAIM__NAME: found "maim"; allowed: "main", "ovens"; did you mean "main"?',
        "kitchen.toml: main: found 3; allowed: a table [main]",
        "kitchen.toml: ovens[0].name: is missing; allowed: a string",
        "kitchen.toml: ovens[0].heat: found 1; allowed: a whole number from 50 to 250",
        "kitchen.toml: ovens[1]: found 5; allowed: a table",
        "environment: K_OVENS__2__FAN: ovens[2].name: is missing; allowed: a string",
        'environment: K_OVENS__2__FAN: found "maybe"; allowed: true or false',
        "kitchen.toml: labels.a: found 1; allowed: a string",
        "kitchen.toml: chairs: found 0; 'chairs' must be >= 1",
        'kitchen.toml: old: found "x"; allowed: a whole number',
        'kitchen.toml: z: is not a key here; allowed: "main", "ovens", "labels", "chairs", "old"',
    ]


def test_a_variable_changes_one_key_or_the_whole() -> None:
    """And leaves the file's table as it was."""
    table = {"main": {"name": "a", "heat": 60}, "ovens": [{"name": "b"}]}

    found = read(table, MAIN="{name = 'c', fan = true}", MAIN__HEAT="70", OVENS__0__HEAT="80", OVENS__1__NAME="d")

    assert found.main == Oven(name="c", fan=True, heat=70)
    assert found.ovens == (Oven(name="b", heat=80), Oven(name="d"))
    assert table == {"main": {"name": "a", "heat": 60}, "ovens": [{"name": "b"}]}


def test_a_key_may_be_the_files_alone() -> None:
    """For names that others set in the environment."""
    assert read({"old": 1}, OLD="2").old == 1
    assert "K_OLD" not in names(Kitchen, "K_")
    assert {"K_CHAIRS", "K_MAIN", "K_MAIN__HEAT", "K_OVENS"} < set(names(Kitchen, "K_"))


def test_a_rule_holds_without_a_reader_too() -> None:
    with pytest.raises(ValueError, match="heat = 20; allowed: a whole number from 50 to 250"):
        Oven(name="a", heat=20)


def test_a_table_of_a_request_is_read_by_the_same_rules() -> None:
    with pytest.raises(ConfigError, match=r'^the body: heat: found "hot"; allowed: a whole number from 50 to 250$'):
        read_record(Oven, {"name": "a", "heat": "hot"}, "the body")
