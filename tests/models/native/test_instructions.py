"""Products with codes have the same bits by whatever instructions they are computed, matrix units among them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from models.native import prebuilt
from models.native.build import FLAGS

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or ""
FEATURES = set(prebuilt.processor().partition(":")[2].split())
LEVELS = [level for level, needs in prebuilt.LEVELS.get("x86_64", ()) if needs <= FEATURES]
PROGRAM = r"""
#include <cstdio>
#include "matmul.h"
using namespace cortex;

static uint32_t state = 1;
static uint32_t draw() { return (state = state * 1664525u + 1013904223u) >> 8; }

template <class C, class S, bool OFFSET>
void products(int64_t group, Gate gate) {
  const int64_t columns = 192, outputs = 70, tiles = 3 * (gate == UNGATED ? 1 : 2);
  const int64_t codes = tiles * columns * C::BYTES, scales = tiles * (columns / group) * TILE;
  alignas(64) static uint8_t data[1 << 16];
  for (int64_t i = 0; i < codes; ++i) data[i] = static_cast<uint8_t>(draw());
  float* scale = reinterpret_cast<float*>(data + codes);
  for (int64_t i = 0; i < 2 * scales; ++i) scale[i] = (static_cast<float>(draw() % 4096) - 2048) / 65536;
  const Coded<C, S, OFFSET> w{data, data + codes, OFFSET ? data + codes + 4 * scales : nullptr, columns, group};
  for (const int64_t rows : {1, 2, 3, 4, 7, 12, 16, 21, 50}) {
    static float x[50 * 192], y[50 * 70];
    state = 7;
    for (int64_t i = 0; i < rows * columns; ++i) x[i] = (static_cast<float>(draw() % 65536) - 32768) / (draw() % 50 + 1);
    Product p{};
    p.x = x, p.y = y, p.rows = rows, p.columns = columns, p.outputs = outputs, p.gate = gate, p.limit = 1e30f;
    multiply(p, w);
    std::fwrite(y, sizeof(float), static_cast<size_t>(rows * outputs), stdout);
  }
}

int main() {
  for (const Gate gate : {UNGATED, SILU}) {
    products<Int4, Float32, true>(32, gate);
    products<Int8, Float32, false>(32, gate);
    products<Int8, Float32, true>(16, gate);
    products<Int4, Float32, false>(64, gate);
  }
}
"""


def printed(folder: Path, name: str, *flags: str) -> bytes:
    """What the program says, compiled with these in place of -march=native."""
    source, program = folder / "products.cc", folder / name
    source.write_text(PROGRAM)
    common = [flag for flag in FLAGS if not flag.startswith("-march")]
    subprocess.run([COMPILER, *common, *flags, f"-I{prebuilt.SOURCES}", str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=True, capture_output=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or len(LEVELS) < 1, reason="no compiler, or no processor of x86-64-v3")
def test_bits_do_not_depend_on_the_instructions(tmp_path: Path) -> None:
    found = {level: printed(tmp_path, level, *prebuilt.flags(level)) for level in LEVELS}
    own = printed(tmp_path, "native", "-march=native")

    assert len(own) == 4 * 2 * 4 * 116 * 70
    assert [level for level in LEVELS if found[level] != own] == []
