"""How much memory the native kernels keep to work in; knows the sizes in `src`, must not know models or requests.

Each kernel keeps the most that it ever needed: what its caller packs once, what each thread expands and sums for itself.
"""

TILE = 32
"""Outputs of a tile, as in src/weights.h."""
MOST_ROWS, TILE_TOKENS, ROUND, KEPT = 12, 16, 64, 1 << 22
"""Rows of a block, tokens of a span, segments of a round, and floats of parts: as in src/matmul.h and src/attention.h."""
LANES = 16
"""Floats of the widest vector."""
FLOAT = 4


def scratch_bytes(
    *, tokens: int, rows: int, columns: int, vocab: int, kv_heads: int, group: int, width: int, threads: int
) -> int:
    """Bytes that are kept after steps of at most `tokens` tokens and `rows` rows.

    `columns`: in-dimensions of the widest matrix; `group` query heads of `width` to each of the `kv_heads`.
    """
    packed = (tokens + MOST_ROWS) * columns
    pair = group * (width + LANES)
    states = rows * kv_heads * pair
    singles = states + min(ROUND * states, max(KEPT, states))
    expanded = 2 * columns * TILE
    spans = TILE_TOKENS * group * (3 * width + 2)
    sampled = 4 * (vocab + LANES)
    each = expanded + spans + 2 * group * width + sampled
    return FLOAT * (packed + singles + (threads + 1) * each)
