"""Plants small faults in the pure modules, one at a time, and says which of them no test sees. Knows Python, no part of ours.

    python tools/mutants.py                      every fault in every module of SUBJECTS
    python tools/mutants.py --each 12            a dozen of every module, spread evenly over it
    python tools/mutants.py placement/evict      only in modules whose path contains that
    python tools/mutants.py text/stop --tests tests/neuron/text/test_stop.py     shown to these tests alone, which is quicker

A fault is a comparison turned, a constant off by one, an `and` for an `or`: what a slip of the hand looks like. The tests are
collected once and run once, to see which lines each of them comes to. Then, for each fault, a child process is forked, in
which the function has the fault, and runs the tests that come to its line until one fails. A fault in what is done while
a module is imported is shown to a child that imports everything anew, which takes seconds. Survivors that are no fault,
because both versions do the same, stand with their reason in tools/mutants.toml; any other makes the exit code 1.

No library is used: those that there are change strings and defaults as well, most of which are words to people, and
cannot be told not to.
"""

import argparse
import ast
import contextlib
import copy
import ctypes
import gc
import inspect
import math
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
REASONS = ROOT / "tools" / "mutants.toml"
GATEWAY, NEURON = "tests/gateway/", "tests/neuron/"
ENGINE = tuple(
    f"{NEURON}engine/test_{name}.py"
    for name in (
        *("pages", "page_groups", "prefix", "prefix_reuse", "snapshots", "scheduler", "guessing", "any_traffic"),
        *("buckets", "pace", "lookup", "guesses"),
    )
)
SUBJECTS: dict[str, tuple[str, ...]] = {
    "cortex_gateway/placement/": (GATEWAY + "placement",),
    **{
        f"cortex_gateway/fleet/{name}.py": (GATEWAY + "fleet",)
        for name in (
            "residency",
            "host",
            "waiting",
            "commands",
            "operations",
            "operation",
            "shortage",
            "history",
            "groups",
        )
    },
    "cortex_gateway/dialects/": (GATEWAY + "dialects", "tests/contract/test_gateway_transcripts.py"),
    **{
        f"cortex_gateway/dialects/{name}/": (
            GATEWAY + "dialects",
            *(f"{GATEWAY}routes/test_{one}.py" for one in routes),
        )
        for name, routes in {
            "openai": ("bad_requests", "passing_through"),
            "ollama": ("bad_requests", "ollama_route"),
            "anthropic": ("bad_requests", "messages_route"),
        }.items()
    },
    "cortex_gateway/dialects/responses/": (
        GATEWAY + "dialects/test_responses_request.py",
        GATEWAY + "dialects/test_responses_stream.py",
        GATEWAY + "routes/test_responses_route.py",
        GATEWAY + "routes/test_conversations_route.py",
        "tests/contract/test_responses_transcripts.py",
    ),
    **{f"cortex_gateway/auth/{name}.py": (GATEWAY + "auth",) for name in ("keys", "limits", "policy", "principal")},
    "neuron_jax/text/": (NEURON + "text",),
    "neuron_jax/text/calls/": (NEURON + "text", NEURON + "constraints/test_grammar.py"),
    "neuron_jax/text/bound_calls.py": (NEURON + "text", NEURON + "constraints/test_grammar.py"),
    "neuron_jax/constraints/": (NEURON + "constraints", NEURON + "engine/test_any_traffic.py"),
    **{
        f"neuron_jax/engine/{name}.py": ENGINE
        for name in ("pages", "prefix", "page_groups", "scheduler", "room", "buckets", "pace", "lookup", "guesses")
    },
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
"""A module, or a folder of them, and where its tests are; the longest that a path begins with counts."""
CPU_SECS, WALL_SECS = 5.0, 600.0
"""What a test may compute besides four times what it did, and how long a child may take on a machine that others use too.
One that needs more hangs: its fault was seen."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""
OPTIONS = (
    *("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout", "60"),
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)
"""A test that waits for ever fails after a minute. The parent has imported plugins already, which pytest warns of."""

PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.In, ast.NotIn), (ast.Is, ast.IsNot)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv)),
)
TURNED = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
WHOLE = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, ast.Is, ast.IsNot)
DECLARED = ("init", "repr")
"""Of `field(...)`: what its class may be made with and shows. A fault there is mypy's to see."""
SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
Outcome = Literal["seen", "unseen", "equal"]
During = Callable[[str], AbstractContextManager[None]]
Changed = list[tuple[CodeType, CodeType]]
Work = Callable[..., set[str] | None]
"""Runs some `tests`, `each` in a context, and gives those that failed; None: they could not be run."""
Task = tuple["Mutant", tuple[str, ...]]
"""A fault, and where the tests are that may see it."""


class Mutant(NamedTuple):
    """One fault. `name` says what and where, without a line number, so that it stays the same while the file grows."""

    path: str
    lines: range  # from where its statement begins to where the faulty part ends
    name: str
    place: int  # of `_places`
    change: int  # of `_changes`

    def tree(self) -> ast.Module:
        """The whole file with the fault."""
        tree = ast.parse((ROOT / self.path).read_text())
        _changes(_places(tree)[self.place][0])[self.change]()
        return ast.fix_missing_locations(tree)


class Traced(NamedTuple):
    """What a run of the tests, by their names, came to without a fault."""

    lines: dict[str, dict[int, set[str]]]  # path -> line -> the tests that came to it
    secs: dict[str, float]  # of computing
    failed: set[str]  # of no use here

    def at(self, path: str, lines: Iterable[int]) -> list[str]:
        """The tests that come to one of these lines, the quickest first."""
        known = self.lines[path]
        return self.quickest(set().union(*(known.get(line, set()) for line in lines)))

    def anywhere(self, path: str) -> list[str]:
        """All tests: those that come to this file first, for the others may still use a record that it declares."""
        near = self.at(path, self.lines[path])
        return [*near, *self.quickest(self.secs.keys() - set(near))]

    def quickest(self, tests: Iterable[str]) -> list[str]:
        return sorted(set(tests) - self.failed, key=self.secs.__getitem__)

    @contextlib.contextmanager
    def limit(self, test: str) -> Iterator[None]:
        """End this process where a test computes for much longer than it did."""
        signal.setitimer(signal.ITIMER_PROF, CPU_SECS + 4 * self.secs[test])
        yield
        signal.setitimer(signal.ITIMER_PROF, 0)


class Planted(SourceFileLoader):
    """Finds and loads one module, which has a fault from its import on."""

    def __init__(self, path: str, code: CodeType) -> None:
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(name, str(ROOT / path))
        self._code = code

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == self.name else None

    def get_code(self, _: str) -> CodeType:
        return self._code


def mutants(path: str) -> Iterator[Mutant]:
    """Every fault that can be planted in a file."""
    seen: Counter[str] = Counter()
    for place, (node, owner, first) in enumerate(_places(ast.parse((ROOT / path).read_text()))):
        last = node.test if isinstance(node, ast.If) else node
        lines = range(first, getattr(last, "end_lineno", first) + 1)
        for number in range(len(_changes(node))):
            twin = copy.deepcopy(node)
            _changes(twin)[number]()
            name = f"{path} {owner}: {_short(ast.unparse(node))} -> {_short(ast.unparse(twin))}"
            seen[name] += 1
            yield Mutant(path, lines, name + (f" ({seen[name]})" if seen[name] > 1 else ""), place, number)


def _places(tree: ast.Module) -> list[tuple[ast.AST, str, int]]:
    """The nodes of code that runs, the function or class that they stand in, and the line where their statement begins.

    Annotations and asserts are left out.
    """
    found: list[tuple[ast.AST, str, int]] = []

    def walk(node: ast.AST, owner: str, first: int) -> None:
        if isinstance(node, ast.Assert | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.keyword) and node.arg in DECLARED:
            return
        named = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        owner = f"{owner}.{node.name}".lstrip(".") if named else owner
        first = node.lineno if isinstance(node, ast.stmt) else first
        found.append((node, owner or "module", first))
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child, owner, first)

    walk(tree, "", 0)
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
        case ast.IfExp() | ast.If() if not _is_turned_as_a_whole(node.test):
            return [partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))]
    return []


def _is_turned_as_a_whole(test: ast.expr) -> bool:
    """Whether turning the comparison that a condition consists of negates it already."""
    return isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], WHOLE)


def _short(code: str) -> str:
    line = " ".join(code.split())
    return line if len(line) <= 90 else line[:87] + "..."


def forked(work: Callable[[], Any], wall_secs: float = math.inf) -> Any:
    """What `work` returns in a process of its own; None where that failed, or took longer than `wall_secs`."""
    with tempfile.NamedTemporaryFile() as answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX is imported, but no device of it is in use
            child = os.fork()
        if not child:
            _answer(work, answer.name)
        done = _wait(child, time.monotonic() + wall_secs)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started and left behind, too
        if done is None:
            os.waitpid(child, 0)
        return pickle.load(answer) if done == 0 else None


def _answer(work: Callable[[], Any], path: str) -> None:
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":  # whoever ends the parent ends this, too
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        Path(path).write_bytes(pickle.dumps(work()))
        code = 0
    finally:
        os._exit(code)


def _wait(child: int, until: float) -> int | None:
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return None


class Loop:
    """A plugin that does `work` with the tests, once they are collected, in place of pytest's own loop."""

    def __init__(self, work: Callable[["Loop"], Any]) -> None:
        self._work = work
        self.items: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.result: Any = None
        self.say = partial(print, file=os.fdopen(os.dup(1), "w"), flush=True)

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            return True
        session.config.pluginmanager.unregister(name="terminalreporter")
        self.items = {item.nodeid: item for item in session.items}
        self.result = self._work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def run(self, tests: Sequence[str], each: During, *, to_the_end: bool = False) -> set[str]:
        """The tests that fail: the first one, or all. `each` is entered with the name of a test around it."""
        for name, following in zip(tests, [*tests[1:], None], strict=True):
            item, after = self.items[name], None if following is None else self.items[following]
            with each(name):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed and not to_the_end:
                break
        return self.failed

    def trace(self, paths: Iterable[str]) -> Traced:
        """Run all tests, and note which lines of the files each of them comes to."""
        files = {str(ROOT / path): path for path in paths}
        lines: dict[str, dict[int, set[str]]] = {path: {} for path in files.values()}
        secs: dict[str, float] = {}
        running = ""

        def enter(frame: FrameType, *_: Any) -> Any:
            return line if frame.f_code.co_filename in files else None

        def line(frame: FrameType, *_: Any) -> Any:
            lines[files[frame.f_code.co_filename]].setdefault(frame.f_lineno, set()).add(running)
            return line

        @contextlib.contextmanager
        def tracing(name: str) -> Iterator[None]:
            nonlocal running
            running = name
            began = time.process_time()
            threading.settrace(enter)
            sys.settrace(enter)
            yield
            sys.settrace(None)
            secs[name] = time.process_time() - began

        failed = self.run(list(self.items), tracing, to_the_end=True)
        return Traced(lines, secs, failed)


def collected(tests: Iterable[str], work: Callable[[Loop], Any]) -> Any:
    """What `work` makes of the tests in these files and folders; None where they cannot be collected."""
    import pytest

    loop = Loop(work)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        pytest.main([*OPTIONS, "--basetemp", f"{scratch}/tests", *(str(ROOT / test) for test in tests)], [loop])
    return loop.result


@cache
def _compiled(path: str) -> CodeType:
    return compile((ROOT / path).read_text(), str(ROOT / path), "exec")


def changed(mutant: Mutant) -> Changed:
    """The functions that have the fault in them: their code without it and with it."""
    after = compile(mutant.tree(), str(ROOT / mutant.path), "exec")
    pairs = zip(_codes(_compiled(mutant.path)), _codes(after), strict=True)
    return [(one, other) for one, other in pairs if one != other and one.co_flags & inspect.CO_OPTIMIZED]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@cache
def _functions(path: str) -> list[FunctionType]:
    """Those of a module that has been imported, wherever they are."""
    every = (one for one in gc.get_objects() if isinstance(one, FunctionType))
    found = [one for one in every if one.__code__.co_filename == str(ROOT / path)]
    assert found or not any(code.co_flags & inspect.CO_OPTIMIZED for code in _codes(_compiled(path))), (
        f"not found: {path}"
    )
    return found


def replaced(loop: Loop, path: str, pairs: Changed, tests: Sequence[str], each: During) -> set[str]:
    """The first test that fails while functions have the fault; they keep it in this process."""
    for function in _functions(path):
        for before, after in pairs:
            if function.__code__ == before:
                function.__code__ = after
                break
    return loop.run(tests, each)


def imported(mutant: Mutant, where: Iterable[str], tests: Sequence[str], each: During) -> set[str] | None:
    """The first of the `tests` that fails where the module has the fault when it is imported; None where what is in the files
    and folders `where` cannot even be collected."""
    sys.meta_path.insert(0, Planted(mutant.path, compile(mutant.tree(), str(ROOT / mutant.path), "exec")))

    def run(loop: Loop) -> set[str]:
        return loop.run([one for one in tests if one in loop.items], each)

    failed: set[str] | None = collected(where, run)
    return failed


class Trials:
    """Tries one fault after the other, and says at once which ones no test sees."""

    def __init__(self, where: tuple[str, ...], traced: Traced) -> None:
        self._where = where
        self._traced = traced
        self._sharp: list[str] = []  # tests that saw a fault, the last one last

    def in_functions(self, todo: Sequence[Mutant], loop: Loop) -> set[Mutant]:
        """Those of the faults that nobody sees; the tests of `loop` have been collected."""
        gc.unfreeze()  # what tests have frozen is not among the collector's objects
        for path in {mutant.path for mutant in todo}:
            _functions(path)
        gc.freeze()  # a child need not copy what it does not change
        return self._unseen(todo, lambda one: partial(replaced, loop, one.path, changed(one)), loop.say)

    def at_import(self, todo: Sequence[Mutant]) -> set[Mutant]:
        """As `in_functions`; each is shown to tests that import everything anew."""
        return self._unseen(todo, lambda one: partial(imported, one, self._where), partial(print, flush=True))

    def _unseen(
        self, todo: Sequence[Mutant], plant: Callable[[Mutant], Work], say: Callable[[str], None]
    ) -> set[Mutant]:
        unseen = set()
        for mutant in todo:
            if not self._seen(plant(mutant), self._shown(mutant)):
                unseen.add(mutant)
                say(f"{mutant.path}:{mutant.lines[0]}: nobody saw  {mutant.name}")
        return unseen

    def _shown(self, mutant: Mutant) -> list[str]:
        """The tests that may see it: who saw one before first."""
        tests = self._traced.at(mutant.path, mutant.lines) or self._traced.anywhere(mutant.path)
        return sorted(tests, key=lambda one: -self._sharp.index(one) if one in self._sharp else 1)

    def _seen(self, work: Work, tests: list[str]) -> bool:
        failed = forked(partial(work, tests=tests, each=self._traced.limit), WALL_SECS)
        for name in failed or ():
            self._sharp = [*(one for one in self._sharp if one != name), name]
        return failed is None or bool(failed)


def tried(todo: Sequence[Mutant], where: tuple[str, ...]) -> set[Mutant] | None:
    """Those of the faults that no test sees; None where the tests cannot be run."""
    paths = {mutant.path for mutant in todo}
    traced: Traced | None = forked(partial(collected, where, partial(Loop.trace, paths=paths)))
    if traced is None:
        return None
    for name in traced.failed:
        print(f"fails without a fault, and is left out: {name}")
    print(f"{len(traced.secs)} tests, which compute for {sum(traced.secs.values()):.0f} s", flush=True)
    inside = [one for one in todo if changed(one) and traced.at(one.path, one.lines)]
    trials = Trials(where, traced)
    unseen: set[Mutant] | None = forked(partial(collected, where, partial(trials.in_functions, inside)))
    if unseen is None:
        return None
    return unseen | trials.at_import([one for one in todo if one not in set(inside)])


def subjects(part: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Modules whose path contains `part`, with their tests."""
    for place, tests in SUBJECTS.items():
        files = sorted((ROOT / place).rglob("*.py")) if place.endswith("/") else [ROOT / place]
        for file in files:
            path = str(file.relative_to(ROOT))
            nearest = max((other for other in SUBJECTS if path.startswith(other)), key=len)
            if part in path and place == nearest:
                yield path, tests


def main() -> int:
    """The exit code: 0 where every survivor has a reason."""
    parser = argparse.ArgumentParser(description="Plant small faults and see whether the tests notice.")
    parser.add_argument("part", nargs="?", default="", help="only modules whose path contains this")
    parser.add_argument("--each", type=int, help="try so many of each module, spread evenly over it")
    parser.add_argument("--tests", nargs="+", help="show them to these tests alone, not to all that SUBJECTS names")
    asked = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    narrowed = tuple(asked.tests) if asked.tests else None
    every = [(mutant, narrowed or tests) for path, tests in subjects(asked.part) for mutant in mutants(path)]
    reasons: dict[str, str] = tomllib.loads(REASONS.read_text())["equal"]
    for name in reasons.keys() - {mutant.name for mutant, _ in every}:
        if any(name.startswith(f"{mutant.path} ") for mutant, _ in every):
            print(f"there is no such fault any more: {name}")
    todo = spread(every, asked.each) if asked.each else every
    outcomes: list[tuple[Mutant, Outcome]] = [(one, "equal") for one, _ in todo if one.name in reasons]
    for tests in dict.fromkeys(tests for _, tests in todo):
        mine = [one for one, theirs in todo if theirs == tests and one.name not in reasons]
        unseen = tried(mine, tests)
        if unseen is None:
            print(f"the tests cannot be run: {' '.join(tests)}")
            return 2
        outcomes += [(one, "unseen" if one in unseen else "seen") for one in mine]
    return report([mutant for mutant, _ in every], outcomes)


def spread(every: Sequence[Task], each: int) -> list[Task]:
    """`each` of every module, at equal distances."""
    by_path: dict[str, list[Task]] = {}
    for task in every:
        by_path.setdefault(task[0].path, []).append(task)
    return [one for tasks in by_path.values() for one in tasks[:: -(-len(tasks) // each)]]


def report(every: Sequence[Mutant], outcomes: Sequence[tuple[Mutant, Outcome]]) -> int:
    """Print what became of them, a line for each module and one for all."""
    planted = Counter(mutant.path for mutant in every)
    by_path = {path: Counter(outcome for mutant, outcome in outcomes if mutant.path == path) for path in planted}
    print("| module | planted | tried | seen | no faults | not seen |\n|---|---|---|---|---|---|")
    for path, counts in [*by_path.items(), ("all", sum(by_path.values(), Counter()))]:
        total = planted[path] if path in planted else len(every)
        print(f"| `{path}` | {total} | {counts.total()} | {counts['seen']} | {counts['equal']} | {counts['unseen']} |")
    unseen = sum(outcome == "unseen" for _, outcome in outcomes)
    faults = sum(outcome != "equal" for _, outcome in outcomes)
    print(f"{faults} faults, {100 * (faults - unseen) / max(1, faults):.1f} % seen")
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
