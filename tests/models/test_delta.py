"""The gated delta rule, Mamba 2 and short convolutions in chunks, against one token after the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.dense.convolution import ConvolutionRule
from models.dense.delta import DeltaRule
from models.dense.mamba import MambaRule, Together
from models.native.ops import Norm
from models.spec import CHUNK

K, G, H, W, N = 2, 3, 6, 5, 4
CHANNELS = 2 * H + G * W


def delta(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """A rule, a state, and what CHUNK tokens bring."""
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    norm = Norm(draw(W), 1e-6)
    rule = DeltaRule(draw(N, K, CHANNELS), -jnp.exp(draw(K, G)), draw(K, G), norm)
    tokens = draw(CHUNK, K, CHANNELS), draw(CHUNK, K, 2, G), draw(CHUNK, K, G, W)
    return rule, (draw(N - 1, K, CHANNELS), draw(K, G, H, W)), tokens


def convolution(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return ConvolutionRule(draw(N, 2, 7), draw(2, 7)), (draw(N - 1, 2, 7),), draw(CHUNK, 2, 3, 7)


def mamba(rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """The same, with three of the laid out groups normed as two: the last two are one."""
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    heads = -jnp.exp(draw(3, G)), draw(3, G), draw(3, G)
    rule = MambaRule(
        draw(N, 3, CHANNELS), draw(3, CHANNELS), heads, Norm(draw(3, G, W), 1e-5), Together(2 * G * W, (0, 1, 1))
    )
    tokens = draw(CHUNK, 3, CHANNELS), draw(CHUNK, 3, G), draw(CHUNK, 3, G, W)
    return rule, (draw(N - 1, 3, CHANNELS), draw(3, G, H, W)), tokens


def repeated(tokens: Any) -> Any:
    """The first token again and again, whose state never fades and is corrected in full: every key is the one before."""
    qkv, gates, z = (jnp.broadcast_to(leaf[:1], leaf.shape) for leaf in tokens)
    return qkv, jnp.full_like(gates, 20.0).at[:, :, 1].set(-40.0), z


@pytest.mark.parametrize("count", [1, 2, 37, CHUNK])
@pytest.mark.parametrize("make", [delta, convolution, mamba])
@pytest.mark.parametrize("again", [False, True], ids=["random", "repeated"])
def test_a_chunk_is_its_tokens_in_turn(make: Any, count: int, *, again: bool) -> None:
    rule, state, tokens = make(np.random.default_rng(count))
    tokens = repeated(tokens) if again and make is delta else tokens
    after, given = rule.chunk(state, tokens, jnp.int32(count))

    for n in range(count):
        state, one = rule.step(state, jax.tree.map(lambda leaf, n=n: leaf[n], tokens))
        np.testing.assert_allclose(given[n], one, rtol=0, atol=2e-4)
    for found, wanted in zip(after, state, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
