"""Which kernel computes products, on devices that are made up: tried, timed against XLA, and done without where it fails."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from attrs import asdict

from models import matrices
from models.matrices import Around, Matrix, Shape
from models.sharding import make_mesh
from neuron_jax.engine import products, trials
from neuron_jax.engine.attention import choose as attentions
from neuron_jax.engine.attention.choose import RUNGS
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import SlotKey, StepKey
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.products import Products, WrongError
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.trials import Trial, Verdict
from tests.fakes.engines import drain, logprobs, submit, tokens
from tests.fakes.plain_pass import full_logits
from tests.fakes.quick import Quick
from tests.fakes.tiny_llama import tiny
from tests.neuron.engine.conftest import PAGE, PAGES, SLOTS, engines_of

few_rows = pytest.importorskip("models.few_rows", reason="this JAX has no Triton", exc_type=ImportError)
store = pytest.importorskip("neuron_jax.engine.attention.store", reason="this JAX has no Triton", exc_type=ImportError)

GPU = SimpleNamespace(platform="gpu", compute_capability="8.6", device_kind="a card")
SHAPE = Shape("int4", 64, 256)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (SimpleNamespace(platform="cpu"), jnp.bfloat16),
        (SimpleNamespace(platform="gpu", compute_capability="7.5"), jnp.bfloat16),
        (GPU, jnp.float32),
    ],
)
def test_xla_computes_everything(device: Any, dtype: Any) -> None:
    """On CPUs, on cards before Ampere, and where numbers are float32."""
    assert products.choose(device, dtype, [SHAPE]) is None


@pytest.mark.parametrize(
    ("seconds", "most", "final"),
    [
        ({1: (1, 2), 16: (2, 2), 64: (3, 4)}, 64, True),
        ({1: (1, 2), 16: (3, 2), 64: (3, 4)}, 1, True),
        ({1: (3, 2), 16: (1, 2), 64: (3, 4)}, 0, True),
        ({1: (1, 2), 16: WrongError("differs"), 64: (3, 4)}, 1, True),
        ({1: RuntimeError("out of shared memory")}, 0, False),
    ],
)
def test_a_kernel_serves_as_many_rows_as_it_is_right_and_no_slower_for(
    seconds: dict[int, Any], most: int, *, final: bool
) -> None:
    def measured(shape: Shape, rows: int) -> tuple[float, float]:
        if isinstance(seconds[rows], Exception):
            raise seconds[rows]
        ours, theirs = seconds[rows]
        return ours, theirs

    found = products.compared(SHAPE, measured)

    assert (found.rows, found.final) == (most, final)


def test_shapes_that_it_was_made_for_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Trial] = []

    def tried(trials: Sequence[Trial], device: Any) -> list[Verdict]:
        asked.extend(trials)
        return [Verdict("differs", rows=16) for _ in trials]

    monkeypatch.setattr(trials, "tried", tried)
    chosen = products.choose(GPU, jnp.bfloat16, [SHAPE, Shape("float", 33, 64)])

    assert chosen is not None
    assert chosen.most == {SHAPE: 16}
    assert [chosen(SHAPE, rows) is not None for rows in (1, 16, 17)] == [True, True, False]
    assert asked == [Trial("products", {"dtype": "bfloat16", "shape": asdict(SHAPE)})]


def test_what_is_not_tried_serves_what_it_was_made_for() -> None:
    chosen = products.choose(GPU, jnp.bfloat16, [SHAPE], tried=False)

    assert isinstance(chosen, Products)
    assert chosen(SHAPE, 64) is not None


@pytest.mark.parametrize("kind", ["fp8", "int4", "mxfp4"])
def test_a_trial_finds_what_is_wrong(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does what XLA does passes, with matrices of every format; one that forgets the norm does not."""
    monkeypatch.setattr(products, "MOST_BYTES", 1)
    monkeypatch.setattr(products, "CALLS", 1)

    def normless(x: jax.Array, matrix: Matrix, around: Around) -> jax.Array:
        return matrices.product(x * 2, matrix, Around())

    shape = Shape(kind, 64, 128)
    ours, theirs = products.measured(matrices.product, jnp.float32, shape, 2)

    assert min(ours, theirs) > 0
    with pytest.raises(WrongError, match="differs by"):
        products.measured(normless, jnp.float32, shape, 2)


def test_a_program_tells_its_matrices_and_computes_them_with_what_was_chosen(runner: Runner) -> None:
    """q, k and v; out; gate and up; down; and the head: of each asked once a layer, and none of two devices or a stack."""
    program, key = runner.program, StepKey(4, 4)
    found, _ = program.matrices(key)
    rows = []

    def note(shape: Shape, count: int) -> None:
        rows.append((shape, count))

    noted = program.__class__(program.model, program.mesh, program.shapes, program.attention, products=note)
    noted.lower(key)

    assert {shape for shape, _ in rows} == found
    assert {count for _, count in rows} == {4}
    assert [shape.gated for shape in found].count(True) == 1
    assert len(found) >= 4


def test_an_engine_with_kernels_around_attention_says_what_a_plain_pass_says() -> None:
    """In Pallas' interpreter: norms and products in one, and what is between the projection and attention in another."""
    model, params = tiny(hidden_size=64, intermediate_size=128, vocab_size=320, num_hidden_layers=1)
    mesh, (layer,) = make_mesh(jax.devices("cpu")[:1]), kinds(model)
    attention = attentions.choose(Case(mesh, jnp.float32, KVFormat("float32"), PAGES, PAGE, (layer,)), RUNGS[-1:])
    asked: set[Shape] = set()

    def choose(shape: Shape, rows: int) -> Any:
        assert few_rows.refuses(shape) is None
        assert rows == SLOTS
        asked.add(shape)
        return partial(few_rows.product, interpret=True)

    kernels = {"products": choose, "storing": {layer: partial(store.store, interpret=True)}}
    program = Program(model, mesh, Shapes(PAGE, (PAGES,), SLOTS, 512), attention, **kernels)
    keys = [StepKey(SLOTS, SLOTS), SlotKey()]
    with closing(Compiler(lambda key: Quick(program.lower(key)), workers=2)) as compiler:
        compiler.start(keys)
        compiler.wait(keys, lambda done, total: None)
        engine = engines_of(Runner(program, compiler, params))(prefix=False)
        asks = {0: [5, 6, 7, 8, 9], 1: [11]}
        for number, words in asks.items():
            engine.submit(submit(number, words, max_tokens=6, logprobs=0))
        answers = drain(engine)

    assert len(asked) == 5
    for number, words in asks.items():
        said = tokens(answers[number])
        rows = full_logits(model, params, words + said)[len(words) - 1 : -1]
        assert said == rows.argmax(-1).tolist()
        wanted = [float(jax.nn.log_softmax(row)[token]) for row, token in zip(rows, said, strict=True)]
        assert [one for one, *_ in logprobs(answers[number])] == pytest.approx(wanted, abs=1e-4)
