"""How keys and values are stored: sizes, rounding, where they go, and that a token's rounding is its own business."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.spec import PagedLayer, ParamSpec
from neuron_jax.engine.attention.kv import KV_DTYPES, KVFormat, Tokens, choose_kv
from tests.fakes.paged_case import store

FORMATS = [name for name in KV_DTYPES if name != "auto"]
PAGES, PAGE, K, H, T = 3, 4, 2, 16, 6
PAGE_OF, OFFSET = jnp.array([1, 1, 2, 3, 0, 0]), jnp.array([2, 3, 0, 1, 0, 1])
REAL = jnp.array([True, True, True, True, False, False])
RNG = np.random.default_rng(8)
NEW = RNG.standard_normal((2, T, K, H)).astype(np.float32) * np.geomspace(1e-3, 1e3, T)[:, None, None].astype(
    np.float32
)


def zeros(specs: tuple[ParamSpec, ...]) -> tuple[jax.Array, ...]:
    return tuple(jnp.zeros(spec.shape, spec.dtype) for spec in specs)


def write(kv: KVFormat, values: np.ndarray) -> tuple[jax.Array, ...]:
    cache = zeros(kv.pool(PagedLayer(K, 1, H, H), pages=PAGES, page_size=PAGE))
    k, v = jnp.asarray(values)
    return jax.jit(lambda: kv.write(cache, k, v, page=PAGE_OF, offset=OFFSET, real=REAL))()


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_takes_the_bytes_that_its_tokens_do(name: str) -> None:
    kv = KVFormat(name)
    layer = kv.pool(PagedLayer(K, 1, H, H), pages=PAGES, page_size=PAGE)

    assert sum(leaf.nbytes for leaf in layer) == (PAGES + 1) * PAGE * kv.token_bytes(PagedLayer(K, 1, H, H))
    assert all(leaf.axes[2] == "kv_heads" for leaf in layer), "sharded as the heads are"


def test_8_bits_take_a_quarter_of_float32_and_the_scales() -> None:
    assert [KVFormat(name).token_bytes(PagedLayer(8, 1, 128, 128)) for name in FORMATS] == [8192, 4096, 2112, 2112]


def widened(tokens: Tokens) -> tuple[np.ndarray, ...]:
    """Keys and values as numbers."""
    scales = [np.float32(1) if scale is None else scale[..., None] for scale in (tokens.k_scale, tokens.v_scale)]
    return tuple(np.asarray(part, np.float32) * scale for part, scale in zip((tokens.k, tokens.v), scales, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_tokens_are_found_where_they_were_written(name: str) -> None:
    """As numpy would have rounded them; a value of 1,000 beside one of 0.001 in the same step costs neither anything."""
    kv = KVFormat(name)
    cache = write(kv, NEW)
    tokens = kv.read(cache, jnp.array([[1, 2, 3]]))
    k, v = widened(tokens)

    for found, given in ((k, NEW[0]), (v, NEW[1])):
        codes, scales = store(given, name)
        wanted = codes.astype(np.float32) if scales is None else codes.astype(np.float32) * scales[..., None]
        at = np.array([2, 3, 4, 9])  # of the 12 places on pages 1, 2, 3
        np.testing.assert_allclose(np.asarray(found)[0, at], wanted[:4], rtol=1e-6)
        assert not np.delete(np.asarray(found)[0], at, axis=0).any()


@pytest.mark.parametrize("name", FORMATS)
def test_the_trash_page_stays_zero(name: str) -> None:
    bad = NEW.copy()
    bad[:, 4:] = np.nan

    assert not any(np.asarray(leaf[0].astype(jnp.float32)).any() for leaf in write(KVFormat(name), bad))


@pytest.mark.parametrize(("name", "step"), [("int8", 1 / 254), ("fp8", 1 / 28)])
def test_rounding_is_within_half_a_step_of_the_tokens_largest_value(name: str, step: float) -> None:
    tokens = KVFormat(name).read(write(KVFormat(name), NEW), jnp.array([[1]]))
    k, _ = widened(tokens)
    wanted = NEW[0, :2]

    assert (np.abs(np.asarray(k)[0, 2:] - wanted) <= np.abs(wanted).max(-1, keepdims=True) * step * 1.001).all()


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_a_head_of_zeros_is_stored_as_zeros(name: str) -> None:
    kv = KVFormat(name)
    k, v = widened(kv.read(write(kv, np.zeros_like(NEW)), jnp.array([[1, 2, 3]])))

    assert not np.asarray(k).any()
    assert not np.asarray(v).any()


def test_auto_is_what_the_platform_computes_in() -> None:
    assert choose_kv("auto", "cpu")[0] == KVFormat("float32")
    assert choose_kv("auto", "cuda")[0] == KVFormat("bfloat16")
    assert choose_kv("int8", "cpu") == (KVFormat("int8"), "as asked")
