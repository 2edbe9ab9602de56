"""How much memory the native kernels keep to work in; knows the sizes in `src` and a layer's, must not know requests.

Each kernel keeps the most that it ever needed: what its caller packs once, what each thread expands and sums for itself.
"""

from math import ceil, prod

from models.spec import PagedLayer, RecurrentLayer

TILE = 32
"""Outputs of a tile, as in src/weights.h."""
MOST_ROWS, TILE_TOKENS, TILE_QUERIES, ROUND, KEPT = 16, 64, 256, 64, 1 << 22
"""Rows of a block, tokens and queries of a tile, segments of a round, floats of parts: see src/matmul.h, src/attention.h."""
PACKED = 5 / 4
"""Floats that a value of x takes at most where it is packed: 18 for a block of 16 or 32 integers, and what fills lines up."""
MOST_QUERIES, GROUP = 12, 16
"""Queries of a block, tokens whose keys are stored together: see src/attention.h."""
LANES = 16
"""Floats of the widest vector."""
FLOAT = 4
STATE_COLUMNS, STATE_TOKENS = 32, 64
"""Columns of a state and tokens that a thread has at hand: see src/recurrent.h."""


def scratch_bytes(
    layer: PagedLayer,
    step: tuple[int, int],
    columns: int,
    vocab: int,
    threads: int,
    *,
    experts: tuple[int, int] = (1, 1),
) -> int:
    """Bytes that are kept after steps of at most so many tokens and rows, of a model whose layers mix as `layer` does.

    `columns`: in-dimensions of the widest matrix. `experts`: how many a layer has, and how many a token goes through.
    """
    (tokens, rows), group = step, layer.group
    record = layer.v_width + 2 * LANES
    count, active = experts
    padded = tokens * active + min(count, tokens * active) * MOST_ROWS
    packed = ceil(PACKED * padded * columns) + tokens * active + 2 * count
    states = rows * layer.kv_heads * group * record
    singles = states + min(ROUND * states, max(KEPT, states))
    expanded = 2 * columns * TILE
    queries = min(TILE_TOKENS * group, max(TILE_QUERIES, group))
    spans = queries * record + (queries + MOST_QUERIES) * layer.k_width
    sampled = 4 * (vocab + LANES)
    singly = (group + MOST_QUERIES + GROUP) * layer.k_width
    each = expanded + spans + singly + sampled
    return FLOAT * (packed + singles + (threads + 1) * each)


def recurrent_bytes(layer: RecurrentLayer, tokens: int, threads: int) -> int:
    """What the kernel of a recurrent layer keeps beside it: nothing for a convolution alone."""
    if len(layer.state) == 1:
        return 0
    inputs, (slots, group, keys, values) = (leaf.shape for leaf in layer.state)
    mixed = tokens * (prod(inputs[1:]) + 2 * slots * group)
    return FLOAT * (mixed + (threads + 1) * (keys * STATE_COLUMNS + STATE_TOKENS * values))
