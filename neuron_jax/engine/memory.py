"""Where a model's memory goes, decided before any of it is taken. Pure arithmetic in bytes per device; no JAX arrays.

The pool's size is part of every program, so it is decided from an estimate of what a step takes; what the compiler says
of the finished programs is then held against it (`settle`).
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from attrs import evolve, frozen

from models.sharding import shards
from models.spec import Model, PagedLayer, ParamSpec, RecurrentLayer
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.page_groups import page_groups
from neuron_jax.engine.pages import pages_for
from neuron_jax.workers.frames import LEAST_CONTEXT, MemoryRow

MIB = 2**20
STEP, TOTAL, LIMIT = "step peak", "total", "may use"

GRID = 64
"""Pools are rounded down to 1/64 of what fits: their size is part of every compiled program, and a byte of drift in the
free memory at start must not throw the compile cache away."""

TOKENS_PER_SLOT = 512
"""KV tokens reckoned for each of the requests that run at once, where nobody says how large the pool shall be."""


SNAPSHOTS = 2
"""Snapshots of recurrent state for each slot, where the memory is there: what of a conversation is found again is its last
prompt and its last answer."""

LEAST_SNAPSHOTS = 32
"""As many as one long conversation has on its way, and another one, however few the slots."""

SNAPSHOT_SHARE = 8
"""The part of what is left for pages that snapshots may take: without pages nothing is served."""

WINDOWS_KEPT = 2
"""Windows of each slot that there are pages for: the running one, and one of a text that may go on."""


class DoesNotFitError(Exception):
    """The model cannot serve in the memory given. `rows`: where it would go; `suggestion`: the smallest change that helps."""

    def __init__(self, rows: tuple[MemoryRow, ...], suggestion: str) -> None:
        super().__init__(f"the model does not fit: {table(rows)}. {suggestion}")
        self.rows = rows
        self.suggestion = suggestion


@frozen
class PlanRequest:
    """What has to be placed on each device, in bytes, and what was asked for (0 = decide)."""

    limit: int  # what the engine may use of the device
    weights: int
    weights_int8: int  # what they would be with quant=int8; 0 = they are
    step: int  # peak of one step besides weights and pages
    runtime: int  # the JAX runtime: its code, threads and compiled programs
    page: int  # one page, over all layers that see everything
    page_size: int
    max_positions: int
    max_slots: int
    context: int = 0  # tokens of the longest request
    kv_bytes: int = 0  # bytes of the pool
    windows: tuple[tuple[int, int], ...] = ()  # of layers that see so many tokens: one page, over all of these
    step_tokens: int = 0  # of the largest step
    state: int = 0  # recurrent state of one text, over all layers
    prefix_cache: bool = True
    marks: int = 0  # states that steps with guesses keep, so that these can be taken back
    scratch: int = 0  # what native kernels keep to work in


@frozen
class MemoryPlan:
    """Requests of at most `max_context` tokens, and the rows of the table that led there. There are `pages` of KV for layers
    that see everything, of each group of layers (see `groups`) so many, and `snapshots` of recurrent state.
    """

    pages: int
    max_context: int
    rows: tuple[MemoryRow, ...]
    groups: tuple[int, ...] = ()
    snapshots: int = 0


@frozen
class ProgramMemory:
    """What one compiled program takes on each device, as the compiler says. Aliased outputs are donated arguments."""

    argument: int
    output: int
    temp: int
    alias: int
    code: int

    @property
    def step(self) -> int:
        """What a call takes besides its arguments."""
        return max(self.temp + self.output - self.alias, 0)


def plan_memory(request: PlanRequest) -> MemoryPlan:
    """How many pages and how long a context. Raises DoesNotFitError when not even the least, or what was asked, fits."""
    affordable = _affordable(request)
    least = _least_pages(request)
    if least > affordable:
        raise DoesNotFitError(_rows(request, least), _suggestion(request, affordable))
    wanted = max(_wanted_pages(request), least)
    pages = wanted if wanted <= affordable else max(_on_grid(affordable), least)
    context = min(_context(request), pages * request.page_size)
    groups = tuple(count for _, count, _ in _groups(request, pages))
    return MemoryPlan(pages, context, _rows(request, pages), groups, _snapshots(request))


def request_for(
    model: Model,
    *,
    tensor_parallel: int,
    expert_parallel: int = 1,
    limit: int,
    kv: KVFormat,
    runtime: int,
    rows: int,
    chunk: int,
    **asked: Any,
) -> PlanRequest:
    """The plan request of a model whose pages are in `kv`, for steps of `rows` requests or a `chunk` of tokens.

    `asked`: page_size, max_slots, context, kv_bytes, prefix_cache, marks, scratch as in PlanRequest.
    """
    size = asked["page_size"]
    pages = dict.fromkeys(page_groups(model.layers), 0)
    for layer in model.layers:
        if isinstance(layer, PagedLayer):
            pages[layer.window] += kv.token_bytes(layer) * size // tensor_parallel
    recurrent = [leaf for layer in model.layers if isinstance(layer, RecurrentLayer) for leaf in layer.state]
    spread = tensor_parallel, expert_parallel
    specs = list(_leaves(model.param_specs))
    weights = sum(leaf.nbytes // shards(leaf.axes, *spread) for leaf in specs)
    int8 = sum(leaf.nbytes // leaf.dtype.itemsize // shards(leaf.axes, *spread) for leaf in specs)
    return PlanRequest(
        limit=limit,
        weights=weights,
        weights_int8=int8 if int8 < weights // 2 else 0,
        step=_step_peak(model, rows=rows, chunk=chunk),
        runtime=runtime,
        page=pages.pop(None, 0),
        windows=tuple((window, count) for window, count in pages.items() if window is not None),
        step_tokens=chunk,
        state=sum(leaf.nbytes // shards(leaf.axes, *spread) for leaf in recurrent),
        max_positions=model.max_positions,
        **asked,
    )


def analyse(compiled: Any) -> ProgramMemory | None:
    """What a `jax.stages.Compiled` takes; None where the backend does not tell."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return ProgramMemory(
        argument=found.argument_size_in_bytes,
        output=found.output_size_in_bytes,
        temp=found.temp_size_in_bytes,
        alias=found.alias_size_in_bytes,
        code=found.generated_code_size_in_bytes,
    )


def measured_step(programs: Iterable[ProgramMemory]) -> int:
    """Bytes of the widest step; all programs' code stays, whichever of them runs."""
    known = list(programs)
    return max((memory.step for memory in known), default=0) + sum(memory.code for memory in known)


def settle(plan: MemoryPlan, programs: Mapping[str, ProgramMemory], state: int) -> MemoryPlan:
    """The plan with what a step takes by the compiler's own word in place of the estimate.

    Asserts that all programs write the `state` bytes of KV pool and other donated arrays in place (openxla/xla#45912).
    """
    for name, memory in programs.items():
        assert memory.alias >= state, (
            f"{name} would copy what it should write in place: of {state:,} bytes of KV pool and state only "
            f"{memory.alias:,} are aliased"
        )
    if not programs:
        return plan
    step = measured_step(programs.values())
    planned = _row(plan, STEP)
    named = f"{STEP} (measured; {planned / MIB:,.0f} MiB were planned)"
    changed = {STEP: MemoryRow(named, step), TOTAL: MemoryRow(TOTAL, _row(plan, TOTAL) - planned + step)}
    return evolve(plan, rows=tuple(changed.get(row.what, row) for row in plan.rows))


def excess(plan: MemoryPlan, step: int) -> str | None:
    """What to warn of where a step takes more than was planned for it; None where it does not."""
    planned, total, limit = (_row(plan, what) for what in (STEP, TOTAL, LIMIT))
    if step < planned + MIB:  # a tiny model's step is all small change
        return None
    words = f"a step takes {step / MIB:,.0f} MiB, {planned / MIB:,.0f} MiB were planned for it"
    over = total - planned + step - limit
    return words + (f": {over / MIB:,.0f} MiB more than the engine may use; lower kv_mb by that" if over > 0 else "")


def held(tree: Any) -> int:
    """Bytes on each device of a tree of abstract arrays with shardings."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape)
        for leaf in jax.tree.leaves(tree)
    )


def table(rows: tuple[MemoryRow, ...]) -> str:
    """The plan in one line: `weights 513 MiB, KV pages 720 MiB, ...`."""
    return ", ".join(f"{row.what} {row.bytes / MIB:,.0f} MiB" for row in rows)


def _row(plan: MemoryPlan, what: str) -> int:
    return next(row.bytes for row in plan.rows if row.what == what)


def _context(request: PlanRequest) -> int:
    return min(request.context or request.max_positions, request.max_positions)


def _groups(request: PlanRequest, pages: int) -> list[tuple[int | None, int, int]]:
    """Window, pages and bytes of each group of layers, where those that see everything have `pages`."""
    groups: list[tuple[int | None, int, int]] = [(None, pages, pages * request.page)] if request.page else []
    size = request.page_size
    for window, page in request.windows:
        running = WINDOWS_KEPT * request.max_slots * (pages_for(window, size) + 1)
        count = min(pages, running + pages_for(request.step_tokens, size) + 1)
        groups.append((window, count, count * page))
    return groups


def _fitting(request: PlanRequest, available: int) -> int:
    """The most pages, in terms of layers that see everything, for which so many bytes are enough."""
    most = pages_for(request.max_positions, request.page_size) * request.max_slots
    sizes = range(1, most + 1)
    return bisect_right(sizes, available, key=lambda pages: sum(taken for _, _, taken in _groups(request, pages)))


def _left(request: PlanRequest) -> int:
    """Bytes for pages and snapshots."""
    taken = request.weights + request.step + request.runtime + request.scratch + (request.max_slots + 1) * request.state
    return max(request.limit - taken, 0)


def _snapshots(request: PlanRequest) -> int:
    if not request.state:
        return 0
    found = max(SNAPSHOTS * request.max_slots, LEAST_SNAPSHOTS) if request.prefix_cache else 0
    return min(found + request.marks, _left(request) // SNAPSHOT_SHARE // request.state)


def _least_pages(request: PlanRequest) -> int:
    tokens = _context(request) if request.context else min(_context(request), LEAST_CONTEXT)
    return pages_for(tokens, request.page_size)


def _wanted_pages(request: PlanRequest) -> int:
    one = pages_for(_context(request), request.page_size)
    if request.kv_bytes:
        return min(_fitting(request, request.kv_bytes), one * request.max_slots)
    return max(one, pages_for(TOKENS_PER_SLOT * request.max_slots, request.page_size))


def _affordable(request: PlanRequest) -> int:
    return _fitting(request, _left(request) - _snapshots(request) * request.state)


def _on_grid(pages: int) -> int:
    return pages // GRID * GRID if pages >= GRID else pages


def _rows(request: PlanRequest, pages: int) -> tuple[MemoryRow, ...]:
    size, snapshots = request.page_size, _snapshots(request)
    rows = [
        MemoryRow("weights", request.weights),
        MemoryRow(STEP, request.step),
        MemoryRow("runtime", request.runtime),
        *([MemoryRow("kernels' scratch", request.scratch)] if request.scratch else []),
    ]
    for window, count, taken in _groups(request, pages):
        seen = "" if window is None else f" of layers that see {window} tokens"
        rows.append(MemoryRow(f"KV pages{seen} ({count} of {size} tokens)", taken))
    if request.state:
        states = request.max_slots + 1 + snapshots
        rows.append(MemoryRow(f"recurrent state ({snapshots} of {states} are snapshots)", states * request.state))
    total = sum(row.bytes for row in rows)
    return (*rows, MemoryRow(TOTAL, total), MemoryRow(LIMIT, request.limit))


def _suggestion(request: PlanRequest, affordable: int) -> str:
    """The smallest change with which the plan holds: a shorter context, then int8 weights, then more memory."""
    tokens = affordable * request.page_size
    if request.context and tokens >= LEAST_CONTEXT:
        return f"max_context = {tokens} fits"
    smaller = evolve(request, weights=request.weights_int8 or request.weights)
    if request.weights_int8 and _least_pages(smaller) <= _affordable(smaller):
        return "quant = int8 fits"
    missing = _rows(request, _least_pages(request))[-2].bytes - request.limit
    return f"{-(-missing // MIB)} MiB more on each device would do, or more devices (tensor_parallel)"


def _step_peak(model: Model, *, rows: int, chunk: int) -> int:
    """Bytes of temporaries in the widest step: a chunk's activations, or all rows' logits and what sampling makes of them.

    Counted generously from shapes: float32, four live copies of the widest activation, six of the logits.
    """
    _, active = model.experts
    return 4 * (4 * chunk * active * model.widest + 6 * rows * model.vocab_size)


def _leaves(tree: Any) -> Iterator[ParamSpec]:
    if isinstance(tree, ParamSpec):
        yield tree
        return
    children = tree.values() if isinstance(tree, Mapping) else tree
    for child in children:
        yield from _leaves(child)
