"""GPTQ's tensors: codes packed along the columns, groups maybe in another order (act-order); must not know files.

    qweight int32 [K * bits / 32, N]   qzeros int32 [groups, N * bits / 32]   scales [groups, N]   g_idx int32 [K], optional

Version 1 of the format keeps each zero point less one, `checkpoint_format: gptq_v2` as it is.
https://github.com/ModelCloud/GPTQModel, gptqmodel/nn_modules/qlinear; https://arxiv.org/abs/2210.17323.
"""

import numpy as np

from models.config import Keys
from neuron_jax.weights.quantized.codes import CodeMatrix, read_index, read_width, unpack
from neuron_jax.weights.quantized.record import (
    FLOATS,
    WORDS,
    Files,
    Found,
    Joined,
    Settings,
    expect,
    gather,
    group_size,
    packed_sizes,
    parts_of,
    stems_of,
)

_ADDED = {"gptq": 1, "gptq_v2": 0}
"""To each zero point, by the format's version."""


def find(settings: Settings, files: Files) -> Found:
    """Every matrix of the checkpoint that is stored so."""
    keys = Keys(settings, "quantization_config")
    bits = read_width(keys, "bits")
    added = keys.choice("checkpoint_format", _ADDED, "gptq")
    symmetric = keys.flag("sym", default=True)
    if keys.misfits:
        return Found(misfits=keys.misfits)
    stems = stems_of(files, ".qweight", WORDS)
    found = gather(stems, lambda stem: _join(files, stem, bits, added, symmetric=symmetric))
    # Its tools write a bias for every map, and zeros where the model has none.
    biases = [f"{stem}.bias" for stem in stems if f"{stem}.bias" in files.tensors]
    found.spare.update(name for name in biases if not np.any(files.read(name)))
    return found


def _join(files: Files, stem: str, bits: int, added: int, *, symmetric: bool) -> Joined:
    qweight, qzeros, scales, g_idx = (f"{stem}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
    words, rows, groups = packed_sizes(files, qweight, scales)
    columns = words * 32 // bits
    expect(files, scales, (groups, rows), FLOATS)
    expect(files, qzeros, (groups, rows * bits // 32), WORDS)
    group = group_size(stem, columns, groups)
    return CodeMatrix(
        stem=stem,
        parts=parts_of(files, qweight, qzeros, scales, g_idx),
        dtype=f"GPTQ {bits} bits",
        rows=rows,
        columns=columns,
        bits=bits,
        group=group,
        scales=files.tensors[scales].dtype,
        symmetric=symmetric,
        index=read_index(files, g_idx, columns, group),
        codes=lambda: unpack(files.read(qweight).T, bits),
        zeros=lambda: unpack(files.read(qzeros), bits).T.astype(np.float32) + np.float32(added),
        scale=lambda: np.ascontiguousarray(files.read(scales).T.astype(np.float32)),
    ).joined()
