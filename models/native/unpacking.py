"""Blocks of GGUF into codes and scales, by the kernels' library; knows its C function, must not know files, or import JAX.

Without the library numpy does it (`neuron_jax.weights.gguf_formats`), ten to forty times slower, and with the same bits.
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from models.native.build import DISABLE, BuildError, cache_folder, here

Array = npt.NDArray[Any]
Unpacks = Callable[[int, Array, Array, Array, Array | None], bool]


@cache
def unpacks() -> Unpacks | None:
    """(a format's number in GGUF files, raw uint8, codes int8, scale and offset float32) -> whether codes, scale and offset
    are filled: false where the format is not known there. Each array lies in one piece. None: there is no library.

    Builds it on the first call. Threads may call it side by side; it holds no lock of Python's.
    """
    if os.environ.get(DISABLE) == "0":
        return None
    try:
        function = ctypes.CDLL(str(here(cache_folder()))).cortex_unpack
    except (BuildError, OSError):
        return None
    function.restype = ctypes.c_bool
    function.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 3]

    def unpack(number: int, raw: Array, codes: Array, scale: Array, offset: Array | None) -> bool:
        assert raw.dtype == np.uint8, raw.dtype
        assert codes.dtype == np.int8, codes.dtype
        for array in (raw, codes, scale, offset):
            assert array is None or array.flags.c_contiguous, "in one piece"
        blocks = raw.size // SIZES.get(number, raw.size + 1)
        pointers = (codes.ctypes.data, scale.ctypes.data, None if offset is None else offset.ctypes.data)
        return bool(function(number, raw.ctypes.data, blocks, *pointers))

    return unpack


SIZES = {2: 18, 3: 20, 6: 22, 7: 24, 8: 34, 12: 144, 13: 176, 14: 210}
"""Bytes of a block of the formats that src/unpack.cc knows, by number."""
