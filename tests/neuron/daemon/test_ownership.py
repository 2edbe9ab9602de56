"""Each mutable state of the daemon has one owner: nobody else writes a field of it."""

import ast
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[3] / "neuron_jax"
FILES = [*sorted((FOLDER / "daemon").glob("*.py")), FOLDER / "workers" / "supervisor.py"]
LIBRARIES = {
    "app.py": {"app.state.neuron", "settings.ssl"},  # Litestar's and uvicorn's own way
    "peers.py": {"rank._task"},  # in a class method of the same class
}


def foreign_writes(source: str) -> set[str]:
    """Every field that is assigned outside of `self` and of what `self` is made of."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Assign(targets=targets):
                pass
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
                targets = [target]
            case _:
                continue
        parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
        found |= {ast.unparse(part) for part in parts if isinstance(part, ast.Attribute)}
    return {name for name in found if not name.startswith("self.")}


def test_what_is_looked_for_is_found() -> None:
    """In every way in which a field can be written."""
    source = "self.a = one.b = 1\none.c, self.d = 1, 2\none.e += 1\none.f.g: int = 1\nself.h.i = 1\n"

    assert foreign_writes(source) == {"one.b", "one.c", "one.e", "one.f.g"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nobody_writes_a_field_of_somebody_else(path: pathlib.Path) -> None:
    """Who wants another's state changed tells its owner."""
    assert foreign_writes(path.read_text()) == LIBRARIES.get(path.name, set())
