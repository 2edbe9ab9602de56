"""docs/configuration.md names every setting of both programs, with its default."""

import pathlib
import re
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from cortex_gateway.config import CortexToml, ModelsToml
from neuron_jax.common.kinds import bare, entry_of
from neuron_jax.config import ModelSpec, NeuronToml

ROOT = pathlib.Path(__file__).parents[1]
ROW = re.compile(r"^\| ((?:`[\w.]+`(?:, )?)+) \|(.*?)\|", re.MULTILINE)
PREDECESSORS = {"port", "harnesses.name"}
"""Told of where the keys are that came after them."""


def settings(cls: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that may be written, by its path, with its default."""
    for item in attrs.fields(cls):
        record = bare(item.type) if attrs.has(bare(item.type)) else entry_of(item.type)
        if record is ModelSpec:  # its fields have a table of their own, for both lists
            yield f"{path}{item.name}", None
        elif record:
            yield from settings(record, f"{path}{item.name}.")
        else:
            yield f"{path}{item.name}", item.default


def documented(section: str) -> dict[str, str]:
    """The defaults as the tables of a section say them, by key."""
    text = (ROOT / "docs/configuration.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return {key: default.strip() for keys, default in ROW.findall(text) for key in re.findall(r"[\w.]+", keys)}


def told(default: object) -> str | None:
    """As the tables write it; None where words say what happens."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, int | float):
        return str(int(default)) if default == int(default) else str(default)
    return default if isinstance(default, str) and default else None


@pytest.mark.parametrize(
    ("section", "cls"),
    [("cortex.toml", CortexToml), ("models.toml", ModelsToml), ("neuron.toml", NeuronToml), ("neuron.toml", ModelSpec)],
)
def test_every_setting_is_documented_with_its_default(section: str, cls: type) -> None:
    """And no key that is none: the table of a model's fields is part of the neuron's."""
    known = dict(settings(cls))
    found = documented(section)

    assert not known.keys() - found.keys() - PREDECESSORS
    assert {key: found[key] for key in known if key in found and told(known[key])} == {
        key: told(default) for key, default in known.items() if key in found and told(default)
    }


def test_nothing_is_documented_that_is_no_setting() -> None:
    neuron = {**dict(settings(NeuronToml)), **dict(settings(ModelSpec))}

    assert not documented("cortex.toml").keys() - dict(settings(CortexToml)).keys()
    assert not documented("models.toml").keys() - dict(settings(ModelsToml)).keys()
    assert not documented("neuron.toml").keys() - neuron.keys()
