"""From a checkpoint and a spec to an engine that serves: plan the memory, compile, load. Knows the order, no sockets.

Compiling and reading weights overlap: the programs are built from shapes alone.
"""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from attrs import evolve, frozen

from models.adapters import Adapters, Pairs, gather
from models.dense.names import has_drafting
from models.native import library
from models.native.scratch import recurrent_bytes, scratch_bytes
from models.registry import build, family_of
from models.sharding import EXPERT, make_mesh, replicated
from models.spec import Drafter, Model, RecurrentLayer
from models.storage import MXFP4, Storage
from neuron_jax.engine import drawing, expert_products, native_sampler, products, recurring, sampler, trials
from neuron_jax.engine.attention import storing
from neuron_jax.engine.attention.choose import Rung, choose
from neuron_jax.engine.attention.kv import KVFormat, choose_kv
from neuron_jax.engine.attention.native import misfit
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import GUESSING_ROWS, Buckets, Menu, StepKey, declare, one_size
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.memory import MIB, MemoryPlan, plan_memory, request_for
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.page_groups import page_groups
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import NAME_BYTES, Naming
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.proof import prove
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from neuron_jax.workers.frames import EngineSpec, Progress

log = logging.getLogger("neuron.engine")

Report = Callable[[Progress], None]

RUNTIME_BYTES = {"cpu": 290 * MIB, "cuda": 1200 * MIB}
"""What a process with JAX in it takes besides arrays and programs: measured resident on a CPU after mixed traffic; on a GPU the
contexts of CUDA, cuBLAS, cuDNN and NCCL."""

LAYER_BYTES = {"native": MIB // 2, "cpu": 2 * MIB, "cuda": 0}
"""What one layer takes in one program, measured alike: calls of the native kernels, or what XLA makes of them."""

DEFAULT_SLOTS = {"cpu": 32, "cuda": 128}
DEFAULT_CHUNK = {"cpu": 512, "cuda": 1024}
"""Most tokens of a step. On two cores 512 of a 135M model take half a second, for which new requests wait."""

DEFAULT_GUESSES = 4
"""Tokens guessed ahead by the native kernels: on two cores a stream that copies goes from 244 to 578 tokens a second, two
from 357 to 483, and one that does not is no slower. Without them nothing was measured, and a guess that is computed along
with others may differ in the last bit from the token by itself."""

MOST_DRAFTS = 3
"""Tokens that a model guesses by itself: each is made of the guess before, and they are trained to make one."""

DEFAULT_STEPS = 4
"""Tokens of a stream in one step while nobody waits for a turn: a fourth of the words between device, engine and daemon."""


@frozen
class Design:
    """Everything decided before the first byte of memory is taken."""

    model: Model
    quant: str
    quant_reason: str
    kv: KVFormat
    kv_reason: str
    dtype: Any
    tensor_parallel: int
    expert_parallel: int
    plan: MemoryPlan
    shapes: Shapes
    buckets: Buckets
    prefix_cache: bool
    deterministic: bool
    deterministic_reason: str
    adapters: Adapters | None = None
    attention: str = "auto"

    def of(self, model: Model) -> "Design":
        """The same for a model with fewer layers of the same kinds: pools and steps are as large."""
        assert page_groups(model.layers) == page_groups(self.model.layers), "other kinds of layers"
        return evolve(self, model=model)


def design(config: Any, spec: EngineSpec, *, limit: int, storage: Mapping[str, Storage] | None = None) -> Design:
    """What an engine of `spec` for a checkpoint's `config` will look like, in `limit` bytes on each device.

    `storage` says what the checkpoint's tensors are stored as. Raises models.errors.ModelError for a config that no family
    serves; DoesNotFitError with the memory table.
    """
    return design_of(model_of(config, spec, storage), spec, limit=limit)


def model_of(config: Any, spec: EngineSpec, storage: Mapping[str, Storage] | None = None) -> Model:
    """The model that an engine of `spec` computes with. Raises models.errors.ModelError."""
    coded = MXFP4 in (storage or {}).values()
    return bound(config, spec, choose_quant(spec, refuses_native(spec), coded=coded)[0], storage)


def _dtype(spec: EngineSpec) -> Any:
    """What is computed in."""
    return jnp.float32 if spec.platform == "cpu" else jnp.bfloat16


def design_of(model: Model, spec: EngineSpec, *, limit: int, adapters: Sequence[Pairs] = ()) -> Design:
    """What an engine of `spec` for `model` will look like; `adapters` are those of the spec. Raises as `design` does, and
    ModelError for adapters that do not fit."""
    not_native = refuses_native(spec)
    quant, reason = choose_quant(spec, not_native, coded=bool(model.coded))
    kv, kv_reason = choose_kv(spec.kv_dtype, spec.platform)
    dtype = _dtype(spec)
    gathered = gather(model, adapters, dtype) if adapters else None
    slots = spec.max_slots or DEFAULT_SLOTS[spec.platform]
    exact = _exact(model, kv, dtype, spec, not_native)
    kept, kept_reason = keeps_promise(spec, slots, exact=exact)
    buckets = (
        one_size(slots) if kept and not exact else _sizes(spec, slots, _guesses(spec, model, not_native), exact=exact)
    )
    drafts = min(buckets.guesses, MOST_DRAFTS) if isinstance(model, Drafter) and model.drafts else 0
    # A GPU is there for its engine: without a word on it, the pages get what is left. A CPU's memory is everybody's.
    pool = spec.kv_mb * MIB // spec.tensor_parallel or (limit if spec.platform == "cuda" else 0)
    request = request_for(
        model,
        tensor_parallel=spec.tensor_parallel,
        expert_parallel=spec.expert_parallel,
        limit=limit,
        kv=kv,
        runtime=_runtime(model, spec.platform, buckets),
        rows=buckets.rows,
        chunk=buckets.tokens[-1],
        page_size=spec.page_size,
        max_slots=slots,
        context=spec.max_context,
        kv_bytes=pool,
        prefix_cache=spec.prefix_cache,
        scratch=_scratch(model, buckets) if exact else 0,
        marks=GUESSING_ROWS * buckets.guesses,
    )
    if gathered is not None:
        request = evolve(request, weights=request.weights + gathered.nbytes)
    plan = plan_memory(request)
    shapes = Shapes(spec.page_size, plan.groups, slots, plan.max_context, plan.snapshots, buckets.guesses > 0, drafts)
    return Design(
        model,
        quant,
        reason,
        kv,
        kv_reason,
        dtype,
        spec.tensor_parallel,
        spec.expert_parallel,
        plan,
        shapes,
        buckets,
        spec.prefix_cache,
        kept,
        kept_reason,
        gathered,
        spec.attention,
    )


def bound(config: Any, spec: EngineSpec, quant: str, storage: Mapping[str, Storage] | None) -> Model:
    """The model of a checkpoint's `config` on what `spec` says, its weights kept as `quant`. Raises ModelError."""
    return build(
        config,
        tensor_parallel=spec.tensor_parallel,
        expert_parallel=spec.expert_parallel,
        quant=quant,
        dtype=_dtype(spec),
        native=refuses_native(spec) is None,
        storage=storage,
        draft=drafts(config, spec, storage),
    )


def drafts(config: Any, spec: EngineSpec, storage: Mapping[str, Storage] | None) -> bool:
    """Whether the model is to guess by a layer of its own for that: only where guesses are asked for outright. What it gains
    depends on the text, and was not measured on released weights."""
    guesses = spec.speculate > 0 and not (spec.deterministic and refuses_native(spec) is not None)
    return guesses and family_of(config).drafts and has_drafting(storage or ())


def refuses_native(spec: EngineSpec) -> str | None:
    """Why the native kernels do not serve this; None when they do."""
    if spec.platform != "cpu":
        return "they are for CPUs"
    if spec.tensor_parallel > 1:
        return "they serve one device"
    return library.unavailable()


def _sizes(spec: EngineSpec, slots: int, guesses: int, *, exact: bool) -> Buckets:
    return declare(
        max_slots=slots,
        chunk_tokens=spec.chunk_tokens or DEFAULT_CHUNK[spec.platform],
        decode_steps=spec.decode_steps or DEFAULT_STEPS,
        guesses=guesses,
        exact=exact,
        by_draws=spec.platform == "cuda",
    )


def _runtime(model: Model, platform: Literal["cpu", "cuda"], buckets: Buckets) -> int:
    """Bytes of the process itself and of its programs."""
    layer = LAYER_BYTES["native" if buckets.exact else platform]
    return RUNTIME_BYTES[platform] + len(buckets.keys()) * len(model.layers) * layer


def _scratch(model: Model, buckets: Buckets) -> int:
    """Bytes that the native kernels will keep."""
    step, threads = (buckets.tokens[-1], buckets.rows), library.threads()
    around = {"experts": model.experts}
    paged = (scratch_bytes(layer, step, model.widest, model.vocab_size, threads, **around) for layer in kinds(model))
    recurrent = (layer for layer in model.layers if isinstance(layer, RecurrentLayer))
    return max(paged, default=0) + max((recurrent_bytes(layer, step[0], threads) for layer in recurrent), default=0)


def _guesses(spec: EngineSpec, model: Model, not_native: str | None) -> int:
    if spec.speculate >= 0:
        return spec.speculate
    # Whether copies of a recurrent state pay was not measured.
    return DEFAULT_GUESSES if not_native is None and not _recurs(model) else 0


def _exact(model: Model, kv: KVFormat, dtype: Any, spec: EngineSpec, not_native: str | None) -> bool:
    """Whether programs skip what is padding: where nothing but the native kernels computes tokens."""
    alike = all(layer.native for layer in model.layers if isinstance(layer, RecurrentLayer))
    ours = spec.attention in {"auto", "native"}
    return not_native is None and ours and alike and misfit(kv, dtype, spec.page_size, kinds(model)) is None


def _recurs(model: Model) -> bool:
    """Whether a text has a state that only goes forward."""
    return any(isinstance(layer, RecurrentLayer) for layer in model.layers)


def keeps_promise(spec: EngineSpec, slots: int, *, exact: bool) -> tuple[bool, str]:
    """Whether a request gets the same bits however it is served, and why (docs/engine.md)."""
    if exact:
        return True, "the native kernels do so in any case"
    if not spec.deterministic:
        return False, "not asked for: XLA's sums depend on the size of a step"
    return True, f"as asked: every token in a step of {slots} rows, checked at the start"


def choose_quant(spec: EngineSpec, not_native: str | None, *, coded: bool) -> tuple[str, str]:
    """The weights' format, and why. `auto` is what measured fastest without changing the text (docs/benchmarks.md). `coded`:
    the checkpoint has matrices whose codes a GPU may keep."""
    if spec.quant != "auto":
        return spec.quant, "as asked"
    if not_native is None:
        return "stored", "auto: as the checkpoint stores them"
    if spec.platform == "cpu":
        return "none", f"auto: float32, without the native kernels: {not_native}"
    if coded:
        return "stored", "auto: bfloat16, and MXFP4 where the checkpoint has it"
    return "none", "auto: bfloat16, the GPU's own format"


def program_for(made: Design, devices: list[Any], rungs: Sequence[Rung] | None = None) -> Program:
    """The programs of a design on these devices; attention is tried on them where there is a choice, or is one of `rungs`.

    Raises models.errors.ModelError where the attention that was asked for by name does not serve them.
    """
    mesh = make_mesh(devices, made.expert_parallel)
    case = Case(mesh, made.dtype, made.kv, made.plan.pages, made.shapes.page_size, kinds(made.model))
    alike = made.deterministic and not made.buckets.exact
    sample = (
        native_sampler.sample if not native_sampler.refuses(mesh) else sampler.sample_alike if alike else sampler.sample
    )

    def chosen() -> Program:
        attention = choose(case, rungs, asked=made.attention)
        program = Program(made.model, mesh, made.shapes, attention, sample, adapters=made.adapters)
        return with_kernels(program, made, case, tried=rungs is None)

    return trials.together(chosen, case.device) if rungs is None else chosen()


def with_kernels(program: Program, made: Design, case: Case, *, tried: bool) -> Program:
    """With the kernels that this device is better off with. XLA computes it all where whole experts lie on parts of the
    devices, and over several processes: each would time for itself, and all must run the same programs.
    """
    device, mesh = case.device, program.mesh
    several = len({one.process_index for one in mesh.devices.flat}) > 1
    if device.platform != "gpu" or several or mesh.shape[EXPERT] > 1:
        return program
    programs = made.buckets.keys()
    smallest = min(key for key in programs if isinstance(key, StepKey))
    spread = mesh if mesh.size > 1 else None
    rules = program.rules(smallest) if _recurs(made.model) else {}
    program = evolve(
        program,
        storing=storing.choose(case, tried=tried),
        recurring=recurring.choose(device, rules, tried=tried, mesh=spread),
        drawing=drawing.choose(device, made.model.vocab_size, tried=tried, mesh=spread),
    )
    shapes, mixed = program.matrices(smallest)
    found = products.choose(device, made.dtype, shapes, tried=tried)
    experts = expert_products.choose(device, made.dtype, mixed, tried=tried)
    return evolve(program, products=found and found.on(mesh), experts=experts and experts.on(mesh))


def load_runner(
    made: Design,
    program: Program,
    *,
    load: Callable[[Model, jax.sharding.Mesh], Any],
    report: Report,
    compile_workers: int = 2,
) -> Runner:
    """Compile what is essential while `load` reads the parameters; the other programs follow behind the first requests."""
    compiler = Compiler(program.lower, workers=compile_workers)
    try:
        compiler.start(made.buckets.essential())
        params = load(made.model, program.mesh)
        compiler.wait(
            made.buckets.essential(),
            lambda done, total: report(Progress("compile", done, total, "programs")),
        )
        adapters = jax.device_put(made.adapters.arrays, replicated(program.mesh)) if made.adapters else {}
        runner = Runner(program, compiler, params, made.buckets, adapters)
        if made.deterministic and not made.buckets.exact:
            prove(runner, made.buckets.rows)
    except BaseException:
        compiler.close()
        raise
    compiler.start_behind(made.buckets.keys())
    compiler.watch()
    return runner


def lead(made: Design, runner: Runner) -> Engine:
    """The engine over a runner whose essential programs are usable."""
    menu = Menu()
    menu.add(runner.sizes(runner.usable))
    snapshots = made.shapes.snapshots
    found_again = made.prefix_cache and (snapshots > 0 or not _recurs(made.model))
    naming = Naming(made.shapes.page_size, secrets.token_bytes(NAME_BYTES)) if found_again else None
    cache = Cache(
        [Pages(count) for count in made.plan.groups],
        page_size=made.shapes.page_size,
        naming=naming,
        windows=page_groups(made.model.layers),
        step_tokens=made.buckets.tokens[-1],
        snapshots=Pages(snapshots) if snapshots else None,
    )
    scheduler = Scheduler(
        cache,
        max_slots=made.shapes.max_slots,
        menu=menu,
        pace=Pace(padded=not made.buckets.exact),
        guesses=made.buckets.guesses if snapshots or not _recurs(made.model) else 0,
        drafts=made.shapes.drafts,
        forward_only=_recurs(made.model),
    )
    return Engine(scheduler, runner, made.plan.max_context, time.perf_counter)


def assemble(
    made: Design, *, devices: list[Any], load: Callable[[Model, jax.sharding.Mesh], Any], report: Report
) -> Engine:
    """An engine that this process serves by itself."""
    return lead(made, load_runner(made, program_for(made, devices), load=load, report=report))


def digest(made: Design, program: Program, tensors: Mapping[str, Any]) -> str:
    """What an engine would serve and how, in a few characters: ranks whose digests differ must not serve together.

    `tensors` are the checkpoint's, by name; their values are not read.
    """
    shown = [
        jax.__version__,
        made.quant,
        made.expert_parallel,
        made.kv.name,
        made.plan.pages,
        made.plan.max_context,
        made.shapes,
        program.attention.name,
        list(map(str, made.buckets.keys())),
        sorted((name, str(info)) for name, info in tensors.items()),
        None if made.adapters is None else made.adapters.digest,
    ]
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]
