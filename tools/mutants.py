"""Plants small faults in the pure modules, one at a time, and says which of them no test sees. Knows Python, no part of ours.

    python tools/mutants.py                      every fault in every module of SUBJECTS
    python tools/mutants.py --each 12            a dozen of every module, spread evenly over it
    python tools/mutants.py placement/evict      only in modules whose path contains that
    python tools/mutants.py text/stop --tests tests/neuron/text/test_stop.py     shown to these tests alone, which is quicker

A fault is a comparison turned, a constant off by one, an `and` for an `or`: what a slip of the hand looks like. The tests are
collected once and run once, to see which lines each of them comes to. Then, for each fault, a child process is forked, in
which the function has the fault, and runs the tests that come to its line until one fails. A fault in what is done while
a module is imported is planted by running the whole module again in its place, and shown to those of the tests that do
not mind that. Survivors that are no fault, because both versions do the same, stand with their reason in
tools/mutants.toml; any other survivor makes the exit code 1.

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
import resource
import signal
import sys
import tempfile
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
REASONS = ROOT / "tools" / "mutants.toml"
GATEWAY, NEURON = "tests/gateway/", "tests/neuron/"
ENGINE = tuple(
    f"{NEURON}engine/test_{name}.py"
    for name in ("pages", "page_groups", "prefix", "prefix_reuse", "scheduler", "buckets", "pace", "lookup", "guesses")
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
    "cortex_gateway/dialects/responses/": (
        GATEWAY + "dialects/test_responses_request.py",
        GATEWAY + "dialects/test_responses_stream.py",
        GATEWAY + "routes/test_responses_route.py",
        GATEWAY + "routes/test_conversations_route.py",
        "tests/contract/test_responses_transcripts.py",
    ),
    **{f"cortex_gateway/auth/{name}.py": (GATEWAY + "auth",) for name in ("keys", "limits", "policy", "principal")},
    "neuron_jax/text/": (NEURON + "text",),
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
CPU_SECS, WALL_SECS = 20.0, 600.0
"""What a child may compute besides four times what its tests did, and how long it may take on a machine that others use too.
One that needs more hangs: its fault was seen."""
PR_SET_PDEATHSIG = 1
"""Of Linux's prctl(2)."""
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")
"""The parent has imported plugins already, which pytest warns of."""

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
During = Callable[[int], AbstractContextManager[None]]
Changed = list[tuple[CodeType, CodeType]]
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
    """What a run without a fault came to."""

    lines: dict[str, dict[int, set[int]]]  # path -> line -> the numbers of the tests that came to it
    secs: list[float]  # of computing, of each test
    failed: set[int]  # of no use here

    def at(self, path: str, lines: Iterable[int]) -> list[int]:
        """The tests that come to one of these lines, the quickest first."""
        known = self.lines[path]
        return self.quickest(set().union(*(known.get(line, set()) for line in lines)))

    def anywhere(self, path: str) -> list[int]:
        """All tests: those that come to this file first, for the others may still use a record that it declares."""
        near = self.at(path, self.lines[path])
        return [*near, *self.quickest(set(range(len(self.secs))) - set(near))]

    def quickest(self, tests: Iterable[int]) -> list[int]:
        return sorted(set(tests) - self.failed, key=self.secs.__getitem__)

    def limit(self, tests: Iterable[int]) -> float:
        return CPU_SECS + 4 * sum(self.secs[test] for test in tests)


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


def forked(work: Callable[[], Any], cpu_secs: float | None = None) -> Any:
    """What `work` returns in a process of its own; None where that failed, or took too long."""
    with tempfile.NamedTemporaryFile() as answer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX is imported, but no device of it is in use
            child = os.fork()
        if not child:
            _answer(work, answer.name, cpu_secs)
        done = _wait(child, time.monotonic() + WALL_SECS if cpu_secs else math.inf)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started and left behind, too
        if done is None:
            os.waitpid(child, 0)
        return pickle.load(answer) if done == 0 else None


def _answer(work: Callable[[], Any], path: str, cpu_secs: float | None) -> None:
    code = 1
    try:
        os.setsid()
        if sys.platform == "linux":  # whoever ends the parent ends this, too
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if cpu_secs:
            most = math.ceil(time.process_time() + cpu_secs)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
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
        self.items: Sequence[Any] = ()
        self.failed: set[str] = set()
        self.result: Any = None
        self.say = partial(print, file=os.fdopen(os.dup(1), "w"), flush=True)

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            return True
        session.config.pluginmanager.unregister(name="terminalreporter")
        self.items = session.items
        self.result = self._work(self)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def run(self, numbers: Sequence[int], *, to_the_end: bool = False, each: During = nullcontext) -> set[str]:
        """The tests that fail: the first one, or all. `each` is entered with the number of a test around it."""
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            after = None if following is None else self.items[following]
            with each(number):
                self.items[number].config.hook.pytest_runtest_protocol(item=self.items[number], nextitem=after)
            if self.failed and not to_the_end:
                break
        return self.failed

    def trace(self, paths: Iterable[str]) -> Traced:
        """Run all tests, and note which lines of the files each of them comes to."""
        files = {str(ROOT / path): path for path in paths}
        lines: dict[str, dict[int, set[int]]] = {path: {} for path in files.values()}
        secs: list[float] = []

        def enter(frame: FrameType, *_: Any) -> Any:
            return line if frame.f_code.co_filename in files else None

        def line(frame: FrameType, *_: Any) -> Any:
            lines[files[frame.f_code.co_filename]].setdefault(frame.f_lineno, set()).add(len(secs))
            return line

        @contextlib.contextmanager
        def tracing(_: int) -> Iterator[None]:
            began = time.process_time()
            threading.settrace(enter)
            sys.settrace(enter)
            yield
            sys.settrace(None)
            secs.append(time.process_time() - began)

        self.run(range(len(self.items)), to_the_end=True, each=tracing)
        return Traced(lines, secs, {number for number, item in enumerate(self.items) if item.nodeid in self.failed})


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


def replaced(loop: Loop, path: str, pairs: Changed, numbers: Sequence[int]) -> set[str]:
    """The first test that fails while functions have the fault; they keep it in this process."""
    for function in _functions(path):
        for before, after in pairs:
            if function.__code__ == before:
                function.__code__ = after
                break
    return loop.run(numbers)


def imported_again(loop: Loop, path: str, code: CodeType, numbers: Sequence[int], *, to_the_end: bool) -> set[str]:
    """Tests that fail once a module has been run again in its place, and others have from it what they had."""
    module = sys.modules[path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")]
    before = {name: one for name, one in vars(module).items() if not name.startswith("__")}
    exec(code, vars(module))
    for name, old in before.items():
        for other in list(sys.modules.values()):
            if getattr(other, "__dict__", {}).get(name) is old:
                vars(other)[name] = vars(module)[name]
    return loop.run(numbers, to_the_end=to_the_end)


class Trials:
    """Tries one fault after the other, with tests that have been collected."""

    def __init__(self, loop: Loop, paths: set[str]) -> None:
        traced = forked(partial(loop.trace, paths))
        assert isinstance(traced, Traced), "a test ends the process"
        self._loop = loop
        self._traced = traced
        self._sharp: list[str] = []  # tests that saw a fault, the last one last
        self._names = {number: item.nodeid for number, item in enumerate(loop.items)}
        self._spoiled = cache(self._spoiled_by_importing)
        gc.unfreeze()  # what tests have frozen is not among the collector's objects
        for path in paths:
            _functions(path)
        gc.freeze()  # a child need not copy what it does not change
        for number in traced.failed:
            loop.say(f"fails without a fault, and is left out: {self._names[number]}")
        loop.say(f"{len(loop.items)} tests, which compute for {sum(traced.secs):.0f} s")

    def unseen(self, mutant: Mutant) -> bool:
        """Whether no test sees it."""
        numbers, pairs = self._traced.at(mutant.path, mutant.lines), changed(mutant)
        if numbers and pairs and self._seen(partial(replaced, self._loop, mutant.path, pairs), numbers):
            return False
        if numbers and pairs:
            return True
        code = compile(mutant.tree(), str(ROOT / mutant.path), "exec")
        numbers = [
            one for one in self._traced.anywhere(mutant.path) if self._names[one] not in self._spoiled(mutant.path)
        ]
        return not self._seen(partial(imported_again, self._loop, mutant.path, code, to_the_end=False), numbers)

    def _seen(self, work: Callable[..., set[str]], numbers: list[int]) -> bool:
        numbers.sort(key=lambda one: -self._sharp.index(self._names[one]) if self._names[one] in self._sharp else 1)
        failed = forked(partial(work, numbers=numbers), self._traced.limit(numbers))
        for name in failed or ():
            self._sharp = [*(one for one in self._sharp if one != name), name]
        return failed is None or bool(failed)

    def _spoiled_by_importing(self, path: str) -> set[str]:
        """The tests that fail because a module is run again, without a fault."""
        numbers = self._traced.anywhere(path)
        work = partial(imported_again, self._loop, path, _compiled(path), numbers, to_the_end=True)
        failed = forked(work, self._traced.limit(numbers))
        return set(self._names.values()) if failed is None else failed


def tried(todo: Sequence[Mutant], loop: Loop) -> list[bool]:
    """Whether each of the faults is seen by no test. Those are told at once."""
    trials = Trials(loop, {mutant.path for mutant in todo})
    unseen = []
    for mutant in todo:
        unseen.append(trials.unseen(mutant))
        if unseen[-1]:
            loop.say(f"{mutant.path}:{mutant.lines[0]}: nobody saw  {mutant.name}")
    return unseen


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
        unseen: list[bool] | None = forked(partial(collected, tests, partial(tried, mine)))
        if unseen is None:
            print(f"the tests cannot be run: {' '.join(tests)}")
            return 2
        outcomes += [(one, "unseen" if survives else "seen") for one, survives in zip(mine, unseen, strict=True)]
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
