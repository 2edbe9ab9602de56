"""The kernels of experts against numpy, and their promise: a token's bits do not depend on the tokens beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dense.record import Experts
from models.native import experts as kernels
from models.native import library, ops
from models.native.tiles import Tiles
from models.routing import route
from models.storage import FLOAT32, Blocks, Storage
from tests.models.native.test_ops import floats, matrix, packed, rounded

pytestmark = pytest.mark.skipif(library.unavailable() is not None, reason=f"no kernels: {library.unavailable()}")

EXPERTS = Experts(count=7, active=3, width=45)
Q4_K, Q8_0 = Storage(4, 32, offset=True), Storage(8, 32, half=True)
D = 64


class Mixture:
    """Weights of seven experts from 64 to 45 and back, in a storage."""

    def __init__(self, storage: Storage) -> None:
        rng = np.random.default_rng(0)
        e, f = EXPERTS.count, EXPERTS.width
        gate_up = matrix(rng, e * 2 * f, D, storage)
        down_storage = storage if not storage.coded else FLOAT32  # 45 columns do not divide into groups
        down = matrix(rng, e * D, f, down_storage)
        self.gate_up = floats(gate_up).reshape(e, 2, f, D)
        self.down = floats(down).reshape(e, D, f)
        self.tiles = Tiles.plan(2 * f, D, storage, gated=True, stack=e), Tiles.plan(D, f, down_storage, stack=e)
        self.packed = packed(self.tiles[0], gate_up), packed(self.tiles[1], down)
        self.biases = rng.standard_normal((e, 2, f)).astype(np.float32), rng.standard_normal((e, D)).astype(np.float32)
        self.storage = storage
        self.norm = rng.standard_normal(D).astype(np.float32) / 50

    def by_kernels(self, x: Any, logits: Any, residual: Any, live: Any = None) -> jax.Array:
        routed = kernels.route(logits, EXPERTS, None, live)
        gate, norm = ops.Gate("silu"), ops.Norm(jnp.asarray(self.norm), 1e-5)
        bias, down_bias = (jnp.asarray(bias) for bias in self.biases)
        gated = kernels.gathered(x, self.tiles[0], self.packed[0], routed, gate=gate, norm=norm, bias=bias)
        around = {"residual": residual, "bias": down_bias, "live": live}
        return kernels.summed(gated, self.tiles[1], self.packed[1], routed, x.shape[0], **around)

    def by_numpy(self, x: np.ndarray, logits: np.ndarray, residual: np.ndarray) -> np.ndarray:
        normed = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * self.norm
        normed, y = rounded(normed, self.storage), residual.copy()
        for token, row in enumerate(normed):
            best = np.argsort(-logits[token], kind="stable")[: EXPERTS.active]
            shares = np.exp(logits[token, best] - logits[token].max())
            for expert, share in zip(best, shares / shares.sum(), strict=True):
                gate, up = self.gate_up[expert] @ row + self.biases[0][expert]
                y[token] += share * (
                    self.down[expert] @ (gate / (1 + np.exp(-np.clip(gate, -80, None))) * up) + self.biases[1][expert]
                )
        return y


def inputs(tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = ((tokens, D), (tokens, EXPERTS.count), (tokens, D))
    x, logits, residual = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    logits[:, 5] -= 9  # an expert that hardly anybody goes through
    return x, logits, residual


@pytest.mark.parametrize("storage", [FLOAT32, Q4_K, Q8_0], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 40, 150])
def test_each_token_goes_through_its_experts(storage: Storage, tokens: int) -> None:
    mixture, given = Mixture(storage), inputs(tokens)
    found = mixture.by_kernels(*map(jnp.asarray, given))
    wanted = mixture.by_numpy(*given)

    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("storage", [FLOAT32, Q4_K], ids=str)
def test_a_tokens_bits_do_not_depend_on_its_neighbours(storage: Storage) -> None:
    """However many go through the same experts, and whatever stands behind the live ones."""
    mixture = Mixture(storage)
    x, logits, residual = map(jnp.asarray, inputs(150))
    whole = np.asarray(mixture.by_kernels(x, logits, residual))
    for first, last in ((0, 1), (3, 4), (7, 40), (100, 150)):
        part = slice(first, last)
        assert np.array_equal(mixture.by_kernels(x[part], logits[part], residual[part]), whole[part]), part
    live = jnp.asarray([30], jnp.int32)
    dirty = (part.at[30:].set(jnp.nan) for part in (x, logits, residual))
    assert np.array_equal(mixture.by_kernels(*dirty, live)[:30], whole[:30])


@pytest.mark.parametrize(
    ("experts", "corrected"),
    [
        (Experts(count=128, active=8, width=1, scale=2.5), False),
        (Experts(count=20, active=4, width=1, renormalised=False), False),
        (Experts(count=1, active=1, width=1, scoring="sigmoid", renormalised=False), False),
        (Experts(count=24, active=5, width=1, scoring="sigmoid", groups=4, kept_groups=2, scale=0.5), True),
        (Experts(count=24, active=5, width=1, groups=6, kept_groups=3, group_best=1, renormalised=False), False),
    ],
    ids=str,
)
def test_the_kernel_routes_as_xla_does(experts: Experts, corrected: bool) -> None:
    """The same experts by the same shares, for each token in the order of its experts."""
    rng = np.random.default_rng(2)
    logits = rng.standard_normal((50, experts.count)).astype(np.float32) * 3
    correction = jnp.asarray(rng.standard_normal(experts.count).astype(np.float32)) if corrected else None
    chosen, shares = map(np.asarray, route(experts, jnp.asarray(logits), correction))
    found = kernels.route(jnp.asarray(logits), experts, correction, None)
    begin, token, share = np.asarray(found.begin), np.asarray(found.token), np.asarray(found.share)

    assert begin[-1] == chosen.size
    for expert in range(experts.count):
        rows = slice(begin[expert], begin[expert + 1])
        of, rank = np.nonzero(chosen == expert)
        assert token[rows].tolist() == of.tolist()
        np.testing.assert_allclose(share[rows], shares[of, rank], rtol=1e-5)


def test_rows_of_no_expert_are_an_error_and_not_a_crash() -> None:
    mixture = Mixture(FLOAT32)
    x, logits, _ = map(jnp.asarray, inputs(3))
    routed = kernels.route(logits, EXPERTS, None, None)
    wrong = kernels.Routed(routed.token + 3, routed.share, routed.begin)
    with pytest.raises(Exception, match="rows of no expert"):
        jax.block_until_ready(kernels.gathered(x, mixture.tiles[0], mixture.packed[0], wrong, gate=ops.Gate()))


def test_a_stack_is_matrices_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    blocks = matrix(rng, 3 * 40, 64, Q4_K)
    assert isinstance(blocks, Blocks)
    whole = Tiles.plan(40, 64, Q4_K, stack=3).pack(blocks)
    codes = [
        Tiles.plan(40, 64, Q4_K).pack(blocks.by_rows(lambda rows, n=n: rows[40 * n : 40 * n + 40])) for n in range(3)
    ]
    each = 2 * 64 * 16  # bytes of the codes of two tiles

    assert whole[: 3 * each].tolist() == np.concatenate([one[:each] for one in codes]).tolist()
