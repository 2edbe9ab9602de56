"""docs/models.md says what the registry has."""

from pathlib import Path

from models.registry import FAMILIES
from tools.models_table import page


def test_the_table_of_models_is_that_of_the_registry() -> None:
    """Made anew by: python tools/models_table.py > docs/models.md"""
    assert (Path(__file__).parent.parent / "docs" / "models.md").read_text() == page()


def test_every_family_is_told_with_what_it_is_held_to() -> None:
    """A row for each in both tables, and none without a configuration."""
    rows = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]
    tried = {row[0].strip("| `").removesuffix(".py"): row[1] for row in rows if row[0].endswith(".py`")}

    assert len(tried) == len(FAMILIES)
    assert all(tried.values()), [name for name, cases in tried.items() if not cases]


def test_addresses_leave_nothing_behind() -> None:
    assert "()" not in page()
