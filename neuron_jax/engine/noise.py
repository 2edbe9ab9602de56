"""Counter-based noise: a value is a pure function of (seed, position, token id). Knows nothing of batches.

Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). Written out here
rather than taken from `jax.random`, whose keys cannot be given per element and whose layout may change between versions:
a seed must give the same text for as long as this file stands.
"""

import jax
import jax.numpy as jnp

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry2x32(key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Two uint32 words of noise for every element; keys and counters are uint32 and broadcast against each other."""
    k0, k1 = key
    keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(_PARITY))
    x0, x1 = counter[0] + k0, counter[1] + k1
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x0 = x0 + x1
            x1 = ((x1 << jnp.uint32(rotation)) | (x1 >> jnp.uint32(32 - rotation))) ^ x0
        x0 = x0 + keys[(block + 1) % 3]
        x1 = x1 + keys[(block + 2) % 3] + jnp.uint32(block + 1)
    return x0, x1


def gumbel(seed: tuple[jax.Array, jax.Array], position: jax.Array, token: jax.Array) -> jax.Array:
    """Standard Gumbel noise, float32. `seed` low and high words [R], `position` [R] uint32, `token` [R, N] uint32 -> [R, N].

    arg max of (logit + noise) draws from softmax(logits) (Gumbel 1954), whatever subset of tokens the noise is asked for.
    """
    key = (seed[0][:, None], seed[1][:, None])
    bits, _ = threefry2x32(key, (jnp.broadcast_to(position[:, None], token.shape), token))
    # 24 bits, centred in their cells and kept below 1, to which the last of them is rounded: both logarithms are finite.
    # By way of int32: without AVX-512 a CPU has no instruction that makes floats of unsigned integers.
    whole = (bits >> jnp.uint32(8)).astype(jnp.int32).astype(jnp.float32)
    uniform = (whole + jnp.float32(0.5)) * jnp.float32(2.0**-24)
    return -jnp.log(-jnp.log(jnp.minimum(uniform, jnp.float32(1 - 2.0**-24))))
