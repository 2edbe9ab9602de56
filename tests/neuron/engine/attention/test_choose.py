"""The ladder: the first rung that can and that agrees with the reference, and a reason for each that was passed over."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.errors import ModelError
from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine.attention import choose as ladder
from neuron_jax.engine.attention import pallas
from neuron_jax.engine.attention.choose import RUNGS, Rung, choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.paged import PagedAttend
from neuron_jax.engine.attention.ragged import ragged, table
from neuron_jax.engine.attention.reference import attend_blocks
from neuron_jax.engine.attention.trial import Case
from tests.fakes import quick

LAYER = PagedLayer(kv_heads=2, group=3, k_width=16, v_width=16)


@pytest.fixture(autouse=True)
def trials_compile_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial compares is a few per cent or nothing, not bits."""
    monkeypatch.setattr(jax, "jit", quick.jit)


def case(devices: int = 1, kv: str = "float32", dtype: Any = jnp.float32, layer: PagedLayer = LAYER) -> Case:
    return Case(make_mesh(jax.devices("cpu")[:devices]), dtype, KVFormat(kv), 40, 16, (layer,))


def rung(name: str, mix: Any, **changes: Any) -> Rung:
    def make(case: Case) -> Any:
        return partial(PagedAttend, mix, case.kv, case.layers[0], page_size=case.page_size)

    return Rung(name, **{"refuses": ladder._never_refuses, "make": make} | changes)


def with_last(*rungs: Rung) -> tuple[Rung, ...]:
    return (*rungs, RUNGS[-1])


def test_a_cpu_gets_the_reference_where_the_native_kernel_refuses_and_hears_why() -> None:
    """And not of kernels that are for other machines."""
    choice = choose(evolve(case(), page_size=8))

    assert (choice.name, choice.reason) == ("xla", "native: takes pages and heads of multiples of 16")


def raises(*args: Any, **kwargs: Any) -> jax.Array:
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def wrong(*args: Any, **kwargs: Any) -> jax.Array:
    return attend_blocks(*args, **kwargs) * 1.01


def not_a_number(*args: Any, **kwargs: Any) -> jax.Array:
    return attend_blocks(*args, **kwargs) * jnp.nan


@pytest.mark.parametrize(
    ("mix", "reason"),
    [
        (raises, "new: RuntimeError: no kernel image is available for execution on the device"),
        (wrong, "new: differs from the reference by 0.01 of its largest value"),
        (not_a_number, "new: differs from the reference by nan of its largest value"),
    ],
)
def test_a_rung_that_fails_its_trial_is_passed_over(mix: Any, reason: str) -> None:
    choice = choose(case(), with_last(rung("new", mix)))

    assert (choice.name, choice.reason) == ("xla", reason)


def test_a_rung_that_cannot_even_be_imported_is_passed_over() -> None:
    def make(case: Case) -> Any:
        raise ImportError("cannot import name 'triton'")

    choice = choose(case(), with_last(rung("new", None, make=make)))

    assert (choice.name, choice.reason) == ("xla", "new: ImportError: cannot import name 'triton'")


@pytest.mark.parametrize(
    ("kv", "window"),
    [
        ("bfloat16", 100),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("float32", None), ("int8", 100), ("fp8", None))),
    ],
)
def test_our_kernel_passes_its_trial(kv: str, window: int | None) -> None:
    """In Pallas' interpreter, with all that layers differ in."""
    layer = PagedLayer(kv_heads=2, group=3, k_width=80, v_width=48, window=window, soft_cap=20.0, sinks=True)
    interpreted = Rung("pallas", ladder._never_refuses, lambda case: partial(pallas.make, case, interpret=True))

    assert choose(case(kv=kv, layer=layer), with_last(interpreted)).name == "pallas"


def gpu(
    capability: str, *, dtype: Any = jnp.bfloat16, kv: str = "bfloat16", pages: int = 1000, size: int = 128
) -> Case:
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    mesh: Any = SimpleNamespace(devices=np.array([device], object), size=1)
    return Case(mesh, dtype, KVFormat(kv), pages, 16, (PagedLayer(8, 4, size, size),))


@pytest.mark.parametrize(
    ("name", "case", "says"),
    [
        ("pallas", gpu("8.0"), None),
        ("pallas", gpu("7.0"), "compute capability 8.0"),
        ("pallas", gpu("8.6", kv="fp8"), None),
        ("pallas", gpu("9.0", pages=140_000, kv="int8"), "too large for 32-bit offsets"),
        ("pallas", gpu("9.0", pages=140_000), None),
        ("pallas", gpu("9.0", pages=280_000, kv="int8"), None),
    ],
)
def test_what_a_rung_says_of_a_gpu(name: str, case: Case, says: str | None) -> None:
    refusal = next(rung for rung in RUNGS if rung.name == name).refuses(case)

    assert refusal == says if says is None else says in str(refusal)


def test_each_kind_of_layer_gets_its_own_kernel() -> None:
    """A rung that refuses windows leaves those layers to the next, and no others."""
    windowed = evolve(LAYER, window=8)

    def again(*args: Any, **kwargs: Any) -> jax.Array:
        return attend_blocks(*args, **kwargs)

    picky = rung("new", again, refuses=lambda case: "no windows" if case.layers[0].window else None)
    choice = choose(evolve(case(), layers=(windowed, LAYER)), with_last(picky))
    one = jnp.ones(1, jnp.int32)
    rows = ragged(dict.fromkeys((8, None), table(jnp.ones((2, 8), jnp.int32))), one, 0 * one, one, 1)
    made = choice.of_rows(rows)

    assert (choice.name, choice.reason) == ("xla and new", "new: no windows")
    assert [made[layer].mix for layer in (windowed, LAYER)] == [attend_blocks, again]


def test_layers_with_extras_pass_the_trial() -> None:
    """The trial gives a rung sinks and values of another width where the layers have them."""
    layer = evolve(LAYER, soft_cap=2.0, sinks=True, v_width=24, window=100)

    def again(*args: Any, **kwargs: Any) -> jax.Array:
        return attend_blocks(*args, **kwargs)

    def deaf(*args: Any, sinks: Any, **kwargs: Any) -> jax.Array:
        return attend_blocks(*args, sinks=0 * sinks, **kwargs)

    assert choose(case(layer=layer), with_last(rung("new", again))).name == "new"
    assert choose(case(layer=layer), with_last(rung("new", deaf))).name == "xla"


def test_what_is_asked_for_is_neither_refused_nor_tried() -> None:
    layer = evolve(LAYER, soft_cap=2.0)
    no = rung("new", raises, refuses=lambda case: "not this one")
    choice = choose(case(layer=layer), with_last(no), asked="new")

    assert (choice.name, choice.reason) == ("new", "as asked")
    assert choose(case(), asked="xla").name == "xla", "though the native kernel would serve"


@pytest.mark.parametrize(
    ("asked", "kv", "why"),
    [
        ("pallas", "float32", "attention 'pallas': on cpu there is xla"),
        ("native", "int8", "attention 'native': native: computes in float32 over a float32 cache"),
    ],
)
def test_what_is_asked_for_and_is_not_there_is_an_error(asked: str, kv: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        choose(case(kv=kv), asked=asked)
