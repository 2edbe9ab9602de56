"""Plants small faults in the pure modules, one at a time, and says which of them no test sees. Knows Python, no part of ours.

    python tools/mutants.py                      every fault in every module of SUBJECTS
    python tools/mutants.py --sample 100         a random hundred of them, the same for a --seed
    python tools/mutants.py placement/evict      only in modules whose path contains that

A fault is a comparison turned, a constant off by one, an `and` for an `or`: what a slip of the hand looks like. For each, a
child process is forked from one that has imported the libraries already, imports the module with the fault in it, and runs
the tests that are about it until one fails. Survivors that are no fault, because both versions do the same, stand with
their reason in tools/mutants.toml; any other survivor makes the exit code 1.

No library is used: those that there are change strings and defaults as well, most of which are words to people, and
cannot be told not to.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
REASONS = ROOT / "tools" / "mutants.toml"
GATEWAY, NEURON = "tests/gateway/", "tests/neuron/"
SUBJECTS: dict[str, tuple[str, ...]] = {
    "cortex_gateway/placement/": (GATEWAY + "placement", GATEWAY + "fleet"),
    "cortex_gateway/fleet/residency.py": (GATEWAY + "fleet/test_residency.py", GATEWAY + "fleet"),
    "cortex_gateway/fleet/host.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/waiting.py": (GATEWAY + "fleet/test_residency.py", GATEWAY + "fleet"),
    "cortex_gateway/fleet/commands.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/operations.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/operation.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/shortage.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/history.py": (GATEWAY + "fleet",),
    "cortex_gateway/fleet/groups.py": (GATEWAY + "fleet",),
    "cortex_gateway/dialects/": (GATEWAY + "dialects", "tests/contract/test_gateway_transcripts.py"),
    "neuron_jax/text/": (NEURON + "text",),
    "neuron_jax/engine/pages.py": (NEURON + "engine/test_pages.py", NEURON + "engine/test_prefix.py"),
    "neuron_jax/engine/prefix.py": (NEURON + "engine/test_prefix.py", NEURON + "engine/test_scheduler.py"),
    "neuron_jax/engine/scheduler.py": (NEURON + "engine/test_scheduler.py", NEURON + "engine/test_pace.py"),
    "neuron_jax/daemon/admission.py": (
        NEURON + "daemon/test_admission.py",
        NEURON + "daemon/test_admission_machine.py",
    ),
    "neuron_jax/daemon/status.py": (
        NEURON + "daemon/test_status.py",
        NEURON + "daemon/test_resident_machine.py",
    ),
    "neuron_jax/workers/supervisor.py": (NEURON + "workers/test_supervisor.py", NEURON + "daemon/test_crash_loop.py"),
}
"""A module, or a folder of them, and where its tests are, the nearest first."""
LIBRARIES = (
    "pytest",
    "hypothesis",
    "httpx",
    "litestar",
    "msgspec",
    "attrs",
    "uvicorn",
    "tokenizers",
    "jinja2",
    "jax",
    "numpy",
)
SECONDS = 120
"""A child that takes longer hangs: its fault was seen."""

PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv)),
)
TURNED = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
DECLARED = ("init", "repr")
"""Of `field(...)`: what its class may be made with and shows. A fault there is mypy's to see."""
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}


class Mutant(NamedTuple):
    """One fault. `name` says what and where, without a line number, so that it stays the same while the file grows."""

    path: str
    line: int
    name: str
    tree: ast.Module


def mutants(path: str) -> Iterator[Mutant]:
    """Every fault that can be planted in a file."""
    tree = ast.parse((ROOT / path).read_text())
    seen: dict[str, int] = {}
    for place, (node, owner) in enumerate(_places(tree)):
        for number in range(len(_changes(node))):
            planted = copy.deepcopy(tree)
            twin = _places(planted)[place][0]
            before = ast.unparse(twin)
            _changes(twin)[number]()
            name = f"{path} {owner}: {_short(before)} -> {_short(ast.unparse(twin))}"
            seen[name] = seen.get(name, 0) + 1
            again = f" ({seen[name]})" if seen[name] > 1 else ""
            yield Mutant(path, getattr(node, "lineno", 0), name + again, ast.fix_missing_locations(planted))


def _places(tree: ast.Module) -> list[tuple[ast.AST, str]]:
    """The nodes of code that runs, with the function or class that they stand in. Annotations and asserts are left out."""
    found: list[tuple[ast.AST, str]] = []

    def walk(node: ast.AST, owner: str) -> None:
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.keyword) and node.arg in DECLARED:
            return
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        owner = f"{owner}.{node.name}".lstrip(".") if named else owner
        found.append((node, owner or "module"))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, owner)

    walk(tree, "")
    return found


def _changes(node: ast.AST) -> list[Callable[[], None]]:
    """What can be done to one node, each as a call that does it."""
    match node:
        case ast.Compare(ops=ops):
            return [partial(ops.__setitem__, at, TURNED[type(op)]()) for at, op in enumerate(ops)]
        case ast.BoolOp() | ast.BinOp() | ast.AugAssign() if type(node.op) in TURNED:
            return [partial(setattr, node, "op", TURNED[type(node.op)]())]
        case ast.Constant(value=bool() | int() as value):
            return [partial(setattr, node, "value", not value if isinstance(value, bool) else value + 1)]
        case ast.Name(id=name) if name in SWAPPED:
            return [partial(setattr, node, "id", SWAPPED[name])]
        case ast.IfExp() | ast.If():
            return [partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))]
    return []


def _short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 90 else line[:87] + "..."


class Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, with the fault in it."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name != self._module:
            return None
        where = str(ROOT / self._mutant.path)
        package = [str(Path(where).parent)] if where.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(name, where, loader=self, submodule_search_locations=package)

    def exec_module(self, module: ModuleType) -> None:
        code = compile(self._mutant.tree, str(ROOT / self._mutant.path), "exec")
        exec(code, module.__dict__)


def survives(mutant: Mutant | None, tests: Sequence[str]) -> bool:
    """Whether all tests pass with the fault, in a process of their own."""
    child = os.fork()
    if not child:
        os.setsid()
        _run(mutant, tests)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(mutant: Mutant | None, tests: Sequence[str]) -> None:
    import pytest

    code = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        if mutant is not None:
            sys.meta_path.insert(0, Planted(mutant))
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=no"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # the parent has imported plugins already
        code = pytest.main([*options, *(str(ROOT / test) for test in tests)])
    finally:
        os._exit(int(code))


def subjects(part: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules whose path contains `part`, with their tests."""
    for place, tests in SUBJECTS.items():
        files = sorted((ROOT / place).rglob("*.py")) if place.endswith("/") else [ROOT / place]
        for file in files:
            path = str(file.relative_to(ROOT))
            if part in path:
                yield path, tests


def main() -> int:
    """The exit code: 0 where every survivor has a reason."""
    parser = argparse.ArgumentParser(description="Plant small faults and see whether the tests notice.")
    parser.add_argument("part", nargs="?", default="", help="only modules whose path contains this")
    parser.add_argument("--sample", type=int, help="try so many, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name in LIBRARIES:
        importlib.import_module(name)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    todo = [(mutant, tests) for path, tests in subjects(asked.part) for mutant in mutants(path)]
    if asked.sample and asked.sample < len(todo):
        todo = random.Random(asked.seed).sample(todo, asked.sample)
    for tests in {tests for _, tests in todo}:
        if not survives(None, tests):
            print(f"the tests fail without a fault: {' '.join(tests)}")
            return 2
    return report(todo, tomllib.loads(REASONS.read_text())["equal"])


def report(todo: Sequence[tuple[Mutant, Sequence[str]]], reasons: dict[str, str]) -> int:
    """Try them all, and print each survivor as it is found."""
    unseen = excused = 0
    for mutant, tests in todo:
        if mutant.name in reasons:
            excused += 1
        elif survives(mutant, tests):
            unseen += 1
            print(f"{mutant.path}:{mutant.line}: nobody saw  {mutant.name}", flush=True)
    tried = len(todo) - excused
    seen = 100 * (tried - unseen) / max(1, tried)
    print(f"{tried} faults, {tried - unseen} seen ({seen:.1f} %), {unseen} not; {excused} more are no faults")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
