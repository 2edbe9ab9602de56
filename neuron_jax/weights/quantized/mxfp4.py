"""MXFP4: numbers of 4 bits in groups of 32 that share a power of two; must not know files.

    NAME_blocks uint8 [..., N, K / 32, 16], the lower half of a byte first   NAME_scales uint8 [..., N, K / 32]

gpt-oss has its experts so. What transformers calls NAME lies [experts, K, N] there; here it is NAME.weight [experts, N, K],
with the columns last, as groups lie.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, section 5.3.3.
"""

import numpy as np

from models.storage import MXFP4, Array, Blocks
from neuron_jax.weights.quantized.record import Files, Found, Joined, MisfitError, Settings, expect, gather, stems_of

ROWS = 64
"""Taken apart at a time: they stay in a core's cache."""


def find(settings: Settings, files: Files) -> Found:  # noqa: ARG001 - nothing but names says what is stored so
    """Every tensor of the checkpoint that is stored so."""
    return gather(stems_of(files, "_blocks", ("U8",)), lambda stem: _join(files, stem))


def powers(exponents: Array) -> Array:
    """Bytes, exponents of two where 127 is 1 -> float32."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 127).astype(np.float32)


def _join(files: Files, stem: str) -> Joined:
    packed, scales = f"{stem}_blocks", f"{stem}_scales"
    shape = files.tensors[packed].shape
    if len(shape) < 3 or shape[-1] * 2 != MXFP4.group:
        raise MisfitError(f"{packed} is {shape}, must end in groups of {MXFP4.group // 2} bytes")
    expect(files, scales, shape[:-1], ("U8",))
    columns = shape[-2] * MXFP4.group

    def read() -> Blocks:
        pairs = files.read(packed).reshape(-1, columns // 2).astype("<u2")
        for first in range(0, len(pairs), ROWS):
            part = pairs[first : first + ROWS]
            part |= part << 4
            part &= 0x0F0F  # a code in each byte
        return Blocks(pairs.view(np.int8), powers(files.read(scales)).reshape(len(pairs), -1), None, MXFP4)

    return Joined(f"{stem}.weight", (packed, scales), (*shape[:-2], columns), "MXFP4", MXFP4, read)
