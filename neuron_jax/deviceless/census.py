"""What a compiled program does when it runs: its kernels in order, what each moves and multiplies, and what is amiss.

Knows optimized HLO (`hlo.py`) and the names of an engine's arguments, `params[...]`, `state.pool[...]`; no JAX, no card.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from attrs import evolve, frozen

from neuron_jax.deviceless.hlo import Computation, Instruction, Module

SILENT = frozenset(
    ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id", "opt-barrier")
)
"""Opcodes that launch nothing."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
VIEWS = frozenset(("bitcast", "reshape", "copy"))
PARTIAL = frozenset(("dynamic-slice", "gather", "slice"))
"""Read what they give, and no more."""

IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Write into their first operand; the number is that of the operand that says what."""

WAITS = ("conditional", "while")
"""What the host must ask the device for: which branch, and whether once more."""

OURS = "__gpu$xla.gpu.triton"
"""What the custom calls of our kernels aim at."""

LARGE = 1 << 20
"""Bytes from which on a copy of an argument is told."""

POOL, WEIGHTS = "state.pool", "params"
PAGES = "state.lines"
"""Where the pages of all slots' texts are: a kernel of ours looks up those that its rows have."""

_LAYER = re.compile(r"\['layers'\]\[(\d+)\]")
_CONTRACTED = re.compile(r'lhs_contracting_(?:dims=\{|dimensions":\[)([^}\]]*)')
_ROWS = re.compile(r"/\w+_rows?/pallas_call")
"""A product: of its operands the first are the rows, and the matrix is the largest."""

_EXPERTS = re.compile(r"/\w+_experts_(\d+)_of_(\d+)_(\d+)/pallas_call")
"""A product with some matrices of a stack: with how many at most, of how many, and with how many rows at once."""

_PACKED = re.compile(r"/(int4|mxfp4)_\w+/pallas_call")
"""A product of ours with two weights in a byte."""

_NARROW = frozenset(("s4", "u4", "s8", "u8", "f8e4m3fn", "f8e5m2", "f4e2m1fn"))


@frozen
class Launch:
    """One launch. `moved`: bytes it reads and writes, but for what attention reads, pages and their numbers, which goes with
    the texts' lengths;
    `weights`: those of them that are the model's; `flops` of products of `dtype`; `exchanged`: bytes sent to other cards. It
    runs `times` in a step. `arguments`: the paths of those that it reads. `wide`: it goes over the vocabulary."""

    name: str
    what: (
        str  # gemm, fusion, sort, copy, a collective's name, what a custom call aims at; or one of WAITS, which is none
    )
    moved: int
    weights: int
    flops: int
    dtype: str
    exchanged: int
    times: int
    arguments: tuple[str, ...]
    wide: bool

    @property
    def pool(self) -> bool:
        return any(path.startswith(POOL) for path in self.arguments)

    @property
    def layers(self) -> frozenset[int]:
        """The numbers of the layers whose parameters it reads."""
        return frozenset(int(found[1]) for path in self.arguments if (found := _LAYER.search(path)))


@frozen
class Census:
    """Of one program. `kernels` as they run, of a choice on the device its shorter branch.

    `conditionals` and `loops`, those whose count only the device knows: the host waits for the device at each. `sorts` of
    the vocabulary. `copies`: arguments that are copied whole; `widened`: narrow weights that are written out wider.
    """

    kernels: tuple[Launch, ...]
    conditionals: int
    loops: int
    sorts: int
    copies: tuple[str, ...]
    widened: tuple[str, ...]

    @property
    def launches(self) -> int:
        return launches(self.kernels)

    @property
    def collectives(self) -> Mapping[str, int]:
        found = [kernel for kernel in self.kernels if kernel.what in COLLECTIVES]
        return {what: sum(one.times for one in found if one.what == what) for what in {one.what for one in found}}

    @property
    def moved(self) -> int:
        """Bytes, without what is read of the pool."""
        return sum(kernel.moved * kernel.times for kernel in self.kernels)

    @property
    def wide(self) -> int:
        """Kernels that go over the vocabulary."""
        return sum(kernel.times for kernel in self.kernels if kernel.wide)

    def parts(self) -> "Parts":
        """The same by layer."""
        return _parts(self.kernels)


def launches(kernels: Sequence[Launch]) -> int:
    """How many kernels run."""
    return sum(kernel.times for kernel in kernels if kernel.what not in WAITS)


@frozen
class Parts:
    """Kernels before the first layer, of each layer, and behind the last."""

    before: tuple[Launch, ...]
    layers: tuple[tuple[Launch, ...], ...]
    behind: tuple[Launch, ...]


def census(module: Module, vocabulary: int) -> Census:
    """Of a step program whose logits are `vocabulary` wide."""
    walk = _Walk(module, vocabulary)
    every = [one for computation in module.reached() for one in computation.instructions]
    return Census(
        kernels=tuple(walk.kernels(_Place(module.entry, {}), 1)),
        conditionals=sum(one.opcode == "conditional" for one in every),
        loops=sum(one.opcode == "while" and one.trips is None for one in every),
        sorts=sum(_sorts(one, vocabulary) for one in walk.all_instructions()),
        copies=tuple(walk.copies()),
        widened=tuple(walk.widened()),
    )


@frozen(eq=False)
class _Place:
    """A computation as it is called: what its parameters are, by their number, in the place that calls it."""

    computation: Computation
    given: Mapping[int, "tuple[_Place, str]"]


@frozen(eq=False)
class _Walk:
    module: Module
    vocabulary: int

    def kernels(self, place: _Place, times: int) -> Iterator[Launch]:
        for one in place.computation.instructions:
            if one.opcode in SILENT or one.opcode.endswith(("-done", "-update")):
                continue
            if one.opcode == "while":
                if one.trips is None:
                    yield _wait(one, times)
                for inner in self._inside(place, one):
                    yield from self.kernels(inner, times * (one.trips or 1))
            elif one.opcode == "conditional":
                yield _wait(one, times)
                branches = [list(self.kernels(inner, times)) for inner in self._inside(place, one)]
                yield from min(branches, key=len)
            elif one.opcode in ("call", "async-start"):
                for inner in self._inside(place, one):
                    yield from self.kernels(inner, times)
            else:
                yield evolve(self._kernel(place, one), times=times)

    def all_instructions(self) -> Iterator[Instruction]:
        """Those within fusions, too."""
        for computation in self.module.computations.values():
            yield from computation.instructions

    def copies(self) -> Iterator[str]:
        """Arguments of the program that an instruction of the entry or of a loop copies whole."""
        for place in self._places(_Place(self.module.entry, {})):
            for one in place.computation.instructions:
                if one.opcode in ("copy", "copy-start", "transpose") and one.nbytes >= LARGE:
                    path = self.origin(place, one.operands[0])
                    if path.startswith((POOL, WEIGHTS)):
                        yield path

    def widened(self) -> Iterator[str]:
        """Weights of at most 8 bits of which a kernel writes as many values, or half of them, in 16 bits or more. Kernels of
        ours write products."""
        for place in self._places(_Place(self.module.entry, {})):
            for one in place.computation.instructions:
                if one.opcode in SILENT or one.target == OURS or (one.called and one.opcode != "fusion"):
                    continue
                for operand in one.operands:
                    source = place.computation.by_name.get(operand)
                    if source is None or len(source.shapes) != 1 or source.shapes[0].dtype not in _NARROW:
                        continue
                    path, size = self.origin(place, operand), source.shapes[0].elements
                    wide = [shape for shape in one.shapes if shape.bits >= 16 and shape.elements >= size >= LARGE]
                    if path.startswith(WEIGHTS) and wide:
                        yield path

    def origin(self, place: _Place, name: str, index: int | None = None) -> str:
        """The path of the program's argument that a value is, or that it was written into; "" for any other value."""
        one = place.computation.by_name[name]
        while one.opcode != "parameter" or int(one.attributes) in place.given:
            before = self._before(place, one, index)
            if before is None:
                return ""
            place, name, index = before
            one = place.computation.by_name[name]
        return one.path

    def _before(self, place: _Place, one: Instruction, index: int | None) -> tuple[_Place, str, int | None] | None:
        """The value whose memory result `index` of an instruction is."""
        match one.opcode:
            case "parameter":
                return *place.given[int(one.attributes)], index
            case "get-tuple-element":
                return place, one.operands[0], one.index
            case "tuple":
                return None if index is None else (place, one.operands[index], None)
            case "custom-call":
                written = one.into.get(index or 0)
                return None if written is None else (place, one.operands[written], None)
            case "fusion":
                into = _written_into(self.module.computations[one.called[0]], index or 0)
                return None if into is None else (place, one.operands[into], None)
            case other:
                same = other == "while" or other in VIEWS or other in IN_PLACE
                return (place, one.operands[0], index) if same else None

    def _places(self, place: _Place) -> Iterator[_Place]:
        yield place
        for one in place.computation.instructions:
            if one.opcode in ("while", "conditional", "call", "async-start"):
                for inner in self._inside(place, one):
                    yield from self._places(inner)

    def _inside(self, place: _Place, one: Instruction) -> Iterator[_Place]:
        """What `one` runs, and with what: each branch has an operand of its own, a loop's parts share one."""
        for number, name in enumerate(one.called):
            computation = self.module.computations[name]
            if one.opcode == "conditional":
                given = {0: (place, one.operands[1 + number])}
            else:
                given = {at: (place, operand) for at, operand in enumerate(one.operands)}
            yield _Place(computation, given)

    def _kernel(self, place: _Place, one: Instruction) -> Launch:
        origins = [self.origin(place, operand) for operand in one.operands]
        reads = [
            0 if _by_length(path, one) else self._read(place.computation, one, number)
            for number, path in enumerate(origins)
        ]
        flops, dtype = self._products(place.computation, one)
        what = _what(one, flops)
        moved = sum(reads) + self._written(one)
        shapes = [*one.shapes, *(shape for name in one.operands for shape in place.computation.by_name[name].shapes)]
        return Launch(
            name=one.name,
            what=what,
            moved=moved,
            weights=sum(size for size, path in zip(reads, origins, strict=True) if path.startswith(WEIGHTS)),
            flops=flops,
            dtype=dtype,
            exchanged=one.nbytes if what in COLLECTIVES else 0,
            times=1,
            arguments=tuple(dict.fromkeys(path for path in origins if path)),
            wide=moved >= self.vocabulary and any(shape.dims[-1:] == (self.vocabulary,) for shape in shapes),
        )

    def _read(self, computation: Computation, one: Instruction, number: int) -> int:
        """Bytes that `one` reads of its operand."""
        whole = computation.by_name[one.operands[number]].nbytes
        if one.opcode == "fusion":
            fused = self.module.computations[one.called[0]]
            return min(whole, _read_within(self.module, fused, fused.parameters[number].name))
        if one.opcode in PARTIAL and number == 0:
            return min(whole, one.nbytes)
        if number in one.into.values() or (one.opcode in IN_PLACE and number == 0):
            return 0
        some = _EXPERTS.search(one.path)
        if some is not None and computation.by_name[one.operands[number]].shapes[0].dims[0] == int(some[2]):
            return whole * min(int(some[1]), int(some[2])) // int(some[2])
        return whole

    def _written(self, one: Instruction) -> int:
        if one.opcode == "fusion":
            return _written_within(self.module.computations[one.called[0]])
        return sum(shape.nbytes for number, shape in enumerate(one.shapes) if number not in one.into)

    def _products(self, computation: Computation, one: Instruction) -> tuple[int, str]:
        """Operations of all dots in a kernel, and the dtype of the last."""
        if one.target == OURS:
            return _ours(one, computation)
        if one.opcode in ("dot", "custom-call"):
            return _dot(one, computation)
        if one.opcode != "fusion":
            return 0, ""
        fused = self.module.computations[one.called[0]]
        found = [self._products(fused, inner) for inner in fused.instructions if inner.opcode in ("dot", "fusion")]
        return sum(flops for flops, _ in found), next((dtype for _, dtype in found if dtype), "")


def _by_length(path: str, one: Instruction) -> bool:
    """Whether an instruction reads so much of the argument at `path` as its rows' texts are long."""
    return path.startswith(POOL) or (path == PAGES and one.target == OURS)


def _wait(one: Instruction, times: int) -> Launch:
    return Launch(one.name, one.opcode, 0, 0, 0, "", 0, times, (), wide=False)


def _what(one: Instruction, flops: int) -> str:
    plain = one.opcode.removesuffix("-start")
    if one.opcode == "custom-call":
        return "gemm" if flops and one.target != OURS else one.target
    return "gemm" if flops else plain


def _sorts(one: Instruction, vocabulary: int) -> bool:
    sorting = one.opcode == "sort" or (
        one.opcode == "custom-call" and re.search(r"sort|radix", one.target, re.IGNORECASE)
    )
    return bool(sorting) and any(vocabulary in shape.dims for shape in one.shapes)


def _dot(one: Instruction, computation: Computation) -> tuple[int, str]:
    """2 operations for each multiply-add; 0 for what is no product."""
    contracted = _CONTRACTED.search(one.attributes)
    if contracted is None:
        return 0, ""
    left = computation.by_name[one.operands[0]].shapes[0]
    depth = 1
    for number in re.findall(r"\d+", contracted[1]):
        depth *= left.dims[int(number)]
    return 2 * one.shapes[0].elements * depth, left.dtype


def _ours(one: Instruction, computation: Computation) -> tuple[int, str]:
    """Operations of a kernel of ours that multiplies rows with a matrix, and what it multiplies in; 0 of any other.

    What is only there to fill tensor cores is not counted. Of experts there is a row of results for each row of a product, but
    where they are summed up at once.
    """
    some = _EXPERTS.search(one.path)
    if some is None and not _ROWS.search(one.path):
        return 0, ""
    given = [computation.by_name[name].shapes[0] for name in one.operands]
    matrix = max(given, key=lambda shape: shape.nbytes)
    weights = matrix.elements * (2 if _PACKED.search(one.path) else 1)
    rows = given[0].dims[0]
    if some is not None:
        rows, weights = int(some[1]) if some[3] == "1" else one.shapes[0].dims[0], weights // int(some[2])
    return 2 * weights * rows, "f32" if matrix.dtype == "f32" else "bf16"


def _users(computation: Computation, name: str) -> Iterator[tuple[Instruction, int]]:
    for one in computation.instructions:
        for number, operand in enumerate(one.operands):
            if operand == name:
                yield one, number


def _read_within(module: Module, fused: Computation, name: str) -> int:
    """Bytes that a fused computation reads of one of its values: of a table that is looked up in, the rows."""
    total = 0
    whole = fused.by_name[name].nbytes
    for user, number in _users(fused, name):
        if user.opcode in VIEWS:
            total += _read_within(module, fused, user.name)
        elif user.opcode in PARTIAL and number == 0:
            total += user.nbytes
        elif user.opcode in IN_PLACE and number == 0:
            continue
        elif user.opcode == "fusion":
            inner = module.computations[user.called[0]]
            total += _read_within(module, inner, inner.parameters[number].name)
        else:
            return whole
    return min(total, whole)


def _results(fused: Computation) -> Sequence[Instruction]:
    """What a fused computation gives, one for each of its shapes."""
    root = fused.root
    return [fused.by_name[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _written_within(fused: Computation) -> int:
    return sum(_written_of(fused, one) for one in _results(fused))


def _written_of(fused: Computation, one: Instruction) -> int:
    while one.opcode in ("bitcast", "reshape"):
        one = fused.by_name[one.operands[0]]
    if one.opcode in IN_PLACE:
        return fused.by_name[one.operands[IN_PLACE[one.opcode]]].nbytes
    return one.nbytes


def _written_into(fused: Computation, index: int) -> int | None:
    """The number of the parameter whose memory result `index` goes into; None for memory of its own."""
    results = _results(fused)
    if index >= len(results):  # of an instruction that has several results itself
        return None
    one = results[index]
    while one.opcode in VIEWS or one.opcode in IN_PLACE:
        one = fused.by_name[one.operands[0]]
    return int(one.attributes) if one.opcode == "parameter" else None


def _parts(kernels: Sequence[Launch]) -> Parts:
    """A layer begins with the first kernel that reads something of it, and ends where the next begins; the last ends with
    the first that reads a weight of no layer. XLA puts some among them that belong to none, where a sum is under way."""
    begins = [at for at, kernel in enumerate(kernels) if kernel.layers]
    if not begins:
        return Parts(tuple(kernels), (), ())
    count = 1 + max(number for kernel in kernels for number in kernel.layers)
    first = [next(at for at in begins if number in kernels[at].layers) for number in range(count)]
    last = next((at for at in range(begins[-1] + 1, len(kernels)) if kernels[at].weights), begins[-1] + 1)
    spans = [kernels[a:b] for a, b in zip(first, [*first[1:], last], strict=True)]
    layers = tuple(tuple(one for one in span if not _beside(one)) for span in spans)
    beside = [one for span in spans for one in span if _beside(one)]
    return Parts((*kernels[: first[0]], *beside), layers, tuple(kernels[last:]))


def _beside(one: Launch) -> bool:
    """Whether a kernel that runs among those of a layer is none of its own: it reads what the step was told, and no more."""
    return bool(one.arguments) and not one.layers and not one.pool and not one.weights


Level = Literal["bfloat16", "int8", "fp8", "float32"]
_LEVELS: Mapping[str, Level] = {"bf16": "bfloat16", "f16": "bfloat16", "s8": "int8", "u8": "int8", "f8e4m3fn": "fp8"}


def level(dtype: str) -> Level:
    """Which of a card's rates products of an HLO dtype go at."""
    return _LEVELS.get(dtype, "float32")
