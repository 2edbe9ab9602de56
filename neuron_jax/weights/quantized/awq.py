"""AWQ's tensors: codes packed along the rows, in an order of their own within a word; must not know files.

    qweight int32 [K, N * bits / 32]   qzeros int32 [groups, N * bits / 32]   scales [groups, N]

Its version "gemm", which is what is published. https://github.com/casper-hansen/AutoAWQ, awq/utils/packing_utils.py;
https://arxiv.org/abs/2306.00978.
"""

import numpy as np

from models.config import Keys
from models.storage import Array, Floats
from neuron_jax.weights.quantized.codes import CodeMatrix, Codes, unpack
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

_ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
"""Which row each of a word's codes is of, the lowest bits first."""


def find(settings: Settings, files: Files) -> Found:
    """Every matrix of the checkpoint that is stored so."""
    keys = Keys(settings, "quantization_config")
    key = "bits" if settings.get("bits") is not None else "w_bit"
    bits = settings.get(key, 4)
    if bits not in (4, 8):
        keys.refuse(f"{key} is {bits!r}, must be 4 or 8")
    version = settings.get("version") or settings.get("format") or "gemm"
    if str(version).lower() != "gemm":
        keys.refuse(f"version is {version!r}, must be 'gemm'")
    symmetric = not keys.flag("zero_point", default=True)
    if keys.misfits:
        return Found(misfits=keys.misfits)
    return gather(stems_of(files, ".qweight", WORDS), lambda stem: _join(files, stem, bits, symmetric=symmetric))


def _join(files: Files, stem: str, bits: int, *, symmetric: bool) -> Joined:
    qweight, qzeros, scales = (f"{stem}.{part}" for part in ("qweight", "qzeros", "scales"))
    columns, words, groups = packed_sizes(files, qweight, scales)
    rows = words * 32 // bits
    expect(files, scales, (groups, rows), FLOATS)
    if not symmetric or qzeros in files.tensors:
        expect(files, qzeros, (groups, words), WORDS)

    def zeros() -> Floats:
        if qzeros not in files.tensors:
            return np.full((rows, groups), 1 << bits - 1, np.float32)
        return _rows(files.read(qzeros), bits).T.astype(np.float32)

    return CodeMatrix(
        stem=stem,
        parts=parts_of(files, qweight, qzeros, scales),
        dtype=f"AWQ {bits} bits",
        rows=rows,
        columns=columns,
        bits=bits,
        group=group_size(stem, columns, groups),
        scales=files.tensors[scales].dtype,
        symmetric=symmetric,
        index=None,
        codes=lambda: np.ascontiguousarray(_rows(files.read(qweight), bits).T),
        zeros=zeros,
        scale=lambda: np.ascontiguousarray(files.read(scales).T.astype(np.float32)),
    ).joined()


def _rows(words: Array, bits: int) -> Codes:
    """int32 [any, n] -> [any, n * 32 / bits] in the order of the rows."""
    order = np.argsort(_ORDER[bits])
    codes = unpack(words, bits).reshape(len(words), -1, len(order))
    return codes[..., order].reshape(len(words), -1)
