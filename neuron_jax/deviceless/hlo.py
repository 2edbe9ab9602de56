"""XLA's optimized programs as text, read into records; knows the grammar of HLO, no device, no model and no JAX.

A module is computations, a computation is instructions in the order in which they run (`is_scheduled=true`). Only what a
report asks for is kept: names, types, operands, called computations, and the few attributes that say how often and what.
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property

from attrs import field, frozen

_ITEM = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z]+[a-z0-9]*)\[([0-9,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][\w\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_PATH = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_INTO = re.compile(r"\{([0-9, ]*)\}: \((\d+), \{[0-9, ]*\}(?:, [\w-]+)?\)")
_ALIAS = re.compile(r"\{[0-9, ]*\}: \((\d+), \{[0-9, ]*\}")


@frozen
class ArrayShape:
    """An array: dtype as HLO spells it, and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Of one element."""
        found = _ITEM.get(self.dtype)
        return found if found is not None else int(re.sub(r"^[a-z]+(\d+).*", r"\1", self.dtype))

    @property
    def nbytes(self) -> int:
        return -(-self.elements * self.bits // 8)


@frozen
class Instruction:
    """One line. `shapes` has one entry but for tuples, `called` are the computations it runs, `trips` how often a loop does
    where that is known while compiling, `path` the name that JAX gave it, `target` a library's or a kernel's call. `into`: of a
    call's results that are written into operands, by their number, the operand's."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    trips: int | None
    path: str
    target: str
    attributes: str
    root: bool
    into: Mapping[int, int] = field(factory=dict)

    @property
    def index(self) -> int:
        """Which part of a tuple a `get-tuple-element` takes."""
        found = re.search(r"\bindex=(\d+)", self.attributes)
        assert found is not None, f"{self.name} takes nothing of a tuple"
        return int(found[1])

    @property
    def nbytes(self) -> int:
        """Of the result."""
        return sum(shape.nbytes for shape in self.shapes)


@frozen
class Computation:
    """Instructions in the order of running."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {one.name: one for one in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(one for one in self.instructions if one.root)

    @cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        """By their number."""
        return {int(one.attributes): one for one in self.instructions if one.opcode == "parameter"}


@frozen
class Module:
    """A program. `aliased` are the numbers of the arguments whose memory a result takes over."""

    entry: Computation
    computations: Mapping[str, Computation] = field(repr=False)
    aliased: frozenset[int]

    def reached(self, start: Computation | None = None) -> Iterator[Computation]:
        """The computations that run by themselves: the entry, bodies and conditions of loops, branches; not what is fused."""
        here = start or self.entry
        yield here
        for one in here.instructions:
            if one.opcode in ("while", "conditional", "call", "async-start"):
                for name in one.called:
                    yield from self.reached(self.computations[name])


def parse(text: str) -> Module:
    """The module of what `Compiled.as_text()` gives."""
    found: dict[str, Computation] = {}
    entry = ""
    name, lines = "", list[Instruction]()
    head, *body = text.splitlines()
    for line in body:
        started = _HEAD.match(line)
        if started:
            name, lines = started[2], []
            entry = name if started[1] else entry
        elif line.startswith("}"):
            found[name] = Computation(name, tuple(lines))
        elif name and (named := _NAMED.match(line)):
            lines.append(_instruction(named, line[named.end() :]))
    return Module(found[entry], found, frozenset(int(number) for number in _ALIAS.findall(head)))


def _instruction(named: "re.Match[str]", rest: str) -> Instruction:
    kind, rest = _cut_type(re.sub(r"/\*.*?\*/", "", rest))
    opcode = _OPCODE.match(rest)
    assert opcode is not None, f"no HLO instruction: {rest[:100]}"
    end = _closing(rest, opcode.end() - 1)
    inner, attributes = rest[opcode.end() : end], rest[end + 1 :]
    trips, path, target = _TRIPS.search(attributes), _PATH.search(attributes), _TARGET.search(attributes)
    branches = [name for group in _BRANCHES.findall(attributes) for name in _OPERAND.findall(group)]
    return Instruction(
        name=named[2],
        opcode=opcode[1],
        shapes=tuple(ArrayShape(dtype, _dims(dims)) for dtype, dims in _SHAPE.findall(re.sub(r"\{[^}]*\}", "", kind))),
        operands=tuple(_OPERAND.findall(inner)),
        called=(*_CALLED.findall(attributes), *branches),
        trips=int(trips[1]) if trips else None,
        path=path[1].replace("\\'", "'") if path else "",
        target=target[1] if target else "",
        attributes=inner if opcode[1] == "parameter" else attributes,
        root=bool(named[1]),
        into=_into(attributes),
    )


def _into(attributes: str) -> dict[int, int]:
    """Of `output_to_operand_aliasing`."""
    _, _, told = attributes.partition("output_to_operand_aliasing=")
    return {int(result or 0): int(operand) for result, operand in _INTO.findall(told)}


def _cut_type(rest: str) -> tuple[str, str]:
    """The type at the beginning, and what follows."""
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    return rest[:end], rest[end:]


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise AssertionError(f"a parenthesis is not closed: {text[:100]}")


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)
