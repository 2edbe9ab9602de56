"""Our attention kernel as XLA and ptxas compile it for cards that are not here: registers, shared memory, scratch, calls."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from attrs import frozen

from models.sharding import make_mesh, named_sharding
from models.spec import PagedLayer
from neuron_jax.deviceless.topology import ENVIRONMENT, devices
from neuron_jax.engine.attention import pallas
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.ragged import ragged
from neuron_jax.engine.attention.ragged import table as pages_of
from neuron_jax.engine.attention.trial import Case
from neuron_jax.hardware.cards import Card, card
from neuron_jax.hardware.discover import has_cuda_plugin

pytestmark = [
    pytest.mark.skipif(not has_cuda_plugin(), reason="JAX's CUDA wheels are not installed"),
    pytest.mark.skipif(
        any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()),
        reason="JAX was not told that there is no device",
    ),
]

CARDS = ["a100", "3090", "4090", "h100", "5090"]
"""One of each compute capability."""

PAGES, SLOTS = 4096, 64


@frozen
class Compiled:
    """What became of one call: of each of our kernels in it registers and bytes spilled, and the most shared memory."""

    text: str
    temp: int
    registers: tuple[int, ...]
    spilled: int
    shared: int


def compiled(
    card: Card,
    layer: PagedLayer,
    folder: Path,
    *,
    tokens: int,
    kv: str = "bfloat16",
    page: int = 16,
    context: int = 8192,
) -> Compiled:
    """Attention of a step of so many tokens, in one of 64 slots each."""
    mesh = make_mesh(devices(card, 1))
    rows = min(tokens, SLOTS)
    case = Case(mesh, jnp.bfloat16, KVFormat(kv), PAGES, page, (layer,))

    def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=named_sharding(mesh, (None,) * len(shape)))

    def step(q: Any, cache: Any, table: Any, row: Any, sinks: Any) -> jax.Array:
        slot, start, count = row
        attend = pallas.make(case, ragged({layer.window: pages_of(table)}, slot, start, count, tokens))
        return attend(q, None, None, cache, sinks if layer.sinks else None)[0]

    cache = tuple(abstract(leaf.shape, leaf.dtype) for leaf in case.kv.pool(layer, pages=PAGES, page_size=page))
    given = (
        abstract((tokens, layer.kv_heads, layer.group, layer.k_width), jnp.bfloat16),
        cache,
        abstract((SLOTS + 1, context // page), jnp.int32),
        abstract((3, rows), jnp.int32),
        abstract((layer.kv_heads, layer.group), jnp.float32),
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(step).lower(*given)
    made = lowered.compile({"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True})
    registers, spilled = _ptxas(card, folder)
    thunks = "".join(path.read_text() for path in folder.glob("*thunk_sequence*"))
    shared = max(int(found) for found in re.findall(r"shared_memory: (\d+) bytes", thunks))
    analysis: Any = made.memory_analysis()
    return Compiled(made.as_text() or "", analysis.temp_size_in_bytes, registers, spilled, shared)


def _ptxas(card: Card, folder: Path) -> tuple[tuple[int, ...], int]:
    registers, spilled = [], 0
    ptxas = Path(sysconfig.get_path("purelib"), "nvidia", "cuda_nvcc", "bin", "ptxas")
    for path in folder.glob("*.ptx"):
        target = re.search(r"\.target (\w+)", path.read_text())
        if "paged_attention" not in path.read_text() or target is None:
            continue
        command = [ptxas, "-v", f"--gpu-name={target[1]}", path, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        registers += [int(found) for found in re.findall(r"Used (\d+) registers", said)]
        spilled += sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    return tuple(registers), spilled


LLAMA = PagedLayer(8, 4, 128, 128)
KINDS: dict[str, tuple[PagedLayer, dict[str, Any]]] = {
    "one stream": (LLAMA, {"tokens": 1}),
    "64 streams, pages of 128": (LLAMA, {"tokens": 64, "page": 128}),
    "a prompt over float8": (LLAMA, {"tokens": 1024, "kv": "fp8"}),
    "over int8": (LLAMA, {"tokens": 64, "kv": "int8"}),
    "over float32": (LLAMA, {"tokens": 64, "kv": "float32"}),
    "64, sinks, a window": (PagedLayer(8, 8, 64, 64, 128, None, sinks=True), {"tokens": 256}),
    "80, no group": (PagedLayer(8, 1, 80, 80), {"tokens": 256}),
    "96": (PagedLayer(8, 4, 96, 96), {"tokens": 256, "page": 32}),
    "a group of 16": (PagedLayer(2, 16, 128, 128), {"tokens": 256}),
    "256, a soft cap": (PagedLayer(4, 2, 256, 256, 4096, 50.0), {"tokens": 1024}),
    "256 over int8": (PagedLayer(4, 8, 256, 256), {"tokens": 64, "kv": "int8"}),
    "aligned windows, a group of 5": (PagedLayer(8, 5, 128, 128, 8192, aligned=True), {"tokens": 256}),
    "a latent": (PagedLayer(1, 128, 576, 512), {"tokens": 256}),
    "a latent over float8": (PagedLayer(1, 16, 576, 512), {"tokens": 256, "kv": "fp8"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CARDS)
def test_the_kernel_fits_the_card(name: str, kind: str, tmp_path: Path) -> None:
    """One call; nothing is spilled, and a block's shared memory is within what the card lets it have."""
    layer, how = KINDS[kind]
    found = compiled(card(name), layer, tmp_path, **how)
    print(f"{name}, {kind}: {found.registers} registers, {found.shared} bytes shared, {found.temp} temporary")

    assert len(found.registers) == found.text.count('custom_call_target="__gpu$xla.gpu.triton"') == 1
    assert found.spilled == 0
    assert 0 < found.shared <= card(name).generation.shared_block


@pytest.mark.parametrize("tokens", [1, 64, 1024])
def test_scratch_does_not_go_with_the_context(tokens: int, tmp_path: Path) -> None:
    short, long = (
        compiled(card("h100"), LLAMA, tmp_path / str(context), tokens=tokens, context=context).temp
        for context in (8192, 131072)
    )

    assert short == long < 32 * 2**20
