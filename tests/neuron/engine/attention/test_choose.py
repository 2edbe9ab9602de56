"""The ladder: the first rung that can and that agrees with the reference, and a reason for each that was passed over."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import evolve

from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine.attention import choose as ladder
from neuron_jax.engine.attention import native
from neuron_jax.engine.attention.choose import RUNGS, Rung, choose
from neuron_jax.engine.attention.flash import attend_decode
from neuron_jax.engine.attention.gathered import attend_gathered
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.ragged import ragged
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
        return ladder._mixed_by(ladder._over_heads(mix, case.mesh), case)

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


def test_decoding_and_prompts_choose_on_their_own() -> None:
    """A kernel that only decodes leaves prompts to the next rung, and each step runs what was chosen for it."""

    def again(*args: Any, **kwargs: Any) -> jax.Array:
        return attend_blocks(*args, **kwargs)

    decodes = rung("new", again, refuses=lambda case, chunked: "decodes only" if chunked else None)
    choice = choose(case(), with_last(decodes))
    one, table = jnp.ones(1, jnp.int32), jnp.ones((2, 8), jnp.int32)
    single, chunk = (ragged({None: table}, one, 0 * one, tokens * one, tokens) for tokens in (1, 4))

    assert choice.name == "new for decoding, xla for prompts"
    assert choice.reason == "new: decodes only"
    mixers = [choice.of_rows(rows)[LAYER] for rows in (single, chunk)]
    assert [mixer.mix for mixer in mixers] == [again, attend_blocks]


@pytest.mark.parametrize(
    ("kv", "window"),
    [
        ("bfloat16", 100),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (("float32", None), ("int8", 100), ("fp8", None))),
    ],
)
def test_our_rungs_pass_their_trial(kv: str, window: int | None) -> None:
    """Where they can run: in Pallas' interpreter, and with JAX's own implementation in cuDNN's place."""
    layer = PagedLayer(kv_heads=2, group=3, k_width=80, v_width=80, window=window)
    pallas = rung("pallas", partial(attend_decode, interpret=True), refuses=RUNGS[0].refuses)
    pallas = Rung("pallas", lambda case, chunked: "decodes only" if chunked else None, pallas.make)
    choice = choose(
        case(kv=kv, layer=layer), (pallas, rung("gathered", partial(attend_gathered, implementation="xla")))
    )

    assert choice.name == "pallas for decoding, gathered for prompts"


def test_each_device_mixes_its_own_heads() -> None:
    """A kernel that XLA cannot split runs under tensor parallelism on the heads of each device alone."""
    seen = []

    def local(q: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        seen.append(q.shape[2])
        return attend_blocks(q, *args, **kwargs)

    choice = choose(case(devices=2), (rung("new", local),))

    assert choice.name == "new"
    assert set(seen) == {1}


def gpu(
    capability: str, *, dtype: Any = jnp.bfloat16, kv: str = "bfloat16", pages: int = 1000, size: int = 128
) -> Case:
    device = SimpleNamespace(platform="gpu", compute_capability=capability)
    mesh: Any = SimpleNamespace(devices=np.array([device], object), size=1)
    return Case(mesh, dtype, KVFormat(kv), pages, 16, (PagedLayer(8, 4, size, size),))


@pytest.mark.parametrize(
    ("name", "case", "says"),
    [
        ("cudnn", gpu("9.0"), None),
        ("cudnn", gpu("9.0", size=256), None),
        ("cudnn", gpu("7.5"), "compute capability 8.0"),
        ("cudnn", gpu("8.6", size=256), "heads of 256; takes multiples of 8 up to 128"),
        ("cudnn", gpu("9.0", size=100), "heads of 100"),
        ("cudnn", gpu("9.0", dtype=jnp.float32), "not in float32"),
        ("pallas", gpu("8.0"), None),
        ("pallas", gpu("7.0"), "compute capability 8.0"),
        ("pallas", gpu("8.6", kv="fp8"), "float8 from compute capability 8.9 on"),
        ("pallas", gpu("8.9", kv="fp8"), None),
        ("pallas", gpu("9.0", pages=140_000, kv="int8"), "too large for 32-bit offsets"),
        ("pallas", gpu("9.0", pages=140_000), None),
        ("pallas", gpu("9.0", pages=280_000, kv="int8"), None),
    ],
)
def test_what_a_rung_says_of_a_gpu(name: str, case: Case, says: str | None) -> None:
    refusal = next(rung for rung in RUNGS if rung.name == name).refuses(case, False)

    assert refusal == says if says is None else says in str(refusal)


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        ({"soft_cap": 30.0}, "soft caps"),
        ({"sinks": True}, "sinks"),
        ({"v_width": 32}, "values of another width than keys"),
    ],
)
def test_what_a_kernel_does_not_know_it_refuses(extra: dict[str, Any], what: str) -> None:
    """On a GPU those of cuDNN and Pallas. The native one knows all of it."""
    layer = evolve(LAYER, **extra)
    gpu = SimpleNamespace(platform="gpu", device_kind="made up", compute_capability="9.0")
    asked = SimpleNamespace(capability=9.0, layers=(layer,), kv=KVFormat("bfloat16"), dtype=jnp.bfloat16, device=gpu)

    assert native.misfit(KVFormat("float32"), jnp.float32, 16, [layer]) is None
    assert [rung.refuses(asked, False) for rung in RUNGS[:2]] == [f"knows no {what}"] * 2


def test_each_kind_of_layer_gets_its_own_kernel() -> None:
    """A rung that refuses windows leaves those layers to the next, and no others."""
    windowed = evolve(LAYER, window=8)

    def again(*args: Any, **kwargs: Any) -> jax.Array:
        return attend_blocks(*args, **kwargs)

    picky = rung("new", again, refuses=lambda case, _: "no windows" if case.layers[0].window else None)
    choice = choose(evolve(case(), layers=(windowed, LAYER)), with_last(picky))
    one = jnp.ones(1, jnp.int32)
    rows = ragged(dict.fromkeys((8, None), jnp.ones((2, 8), jnp.int32)), one, 0 * one, one, 1)
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
