"""MXFP4: numbers of 4 bits in groups of 32 that share a power of two; must not know files.

    NAME_blocks uint8 [..., N, K / 32, 16], the lower half of a byte first   NAME_scales uint8 [..., N, K / 32]

gpt-oss has its experts so. What transformers calls NAME lies [experts, K, N] there; here it is NAME.weight [experts, N, K],
with the columns last, as groups lie. Twice a number is an integer, so that it is an int8 code with half the scale.
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf, section 5.3.3.
"""

import numpy as np

from models.storage import Array, Blocks, Storage
from neuron_jax.weights.quantized.record import Files, Found, Joined, MisfitError, Settings, expect, gather, stems_of

GROUP = 32
STORAGE = Storage(8, GROUP)
DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""By code; minus zero is zero."""


def find(settings: Settings, files: Files) -> Found:  # noqa: ARG001 - nothing but names says what is stored so
    """Every tensor of the checkpoint that is stored so."""
    return gather(stems_of(files, "_blocks", ("U8",)), lambda stem: _join(files, stem))


def half_scale(exponents: Array) -> Array:
    """Bytes, exponents of two where 127 is 1 -> half of that, float32: exact down to the least of them."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128).astype(np.float32)


def _join(files: Files, stem: str) -> Joined:
    packed, scales = f"{stem}_blocks", f"{stem}_scales"
    shape = files.tensors[packed].shape
    if len(shape) < 3 or shape[-1] * 2 != GROUP:
        raise MisfitError(f"{packed} is {shape}, must end in groups of {GROUP // 2} bytes")
    expect(files, scales, shape[:-1], ("U8",))
    columns = shape[-2] * GROUP

    def read() -> Blocks:
        raw = files.read(packed).reshape(-1, columns // 2)
        codes = np.empty((len(raw), columns), np.int8)
        codes[:, 0::2], codes[:, 1::2] = DOUBLED[raw & 15], DOUBLED[raw >> 4]
        return Blocks(codes, half_scale(files.read(scales)).reshape(len(raw), -1), None, STORAGE)

    return Joined(f"{stem}.weight", (packed, scales), (*shape[:-2], columns), "MXFP4", STORAGE, read)
