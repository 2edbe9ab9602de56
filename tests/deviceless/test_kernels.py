"""Our kernels around attention compiled for cards that are not here: they lower, copy nothing, and spill no registers."""

import importlib.util
import os
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from models import convolution_rows, experts_triton, few_rows, recurrent_rows, routing_triton
from models.dense.record import Activation, Experts
from models.matrices import Around, Kind, Matrix
from models.mixtures import ExpertMatrices
from models.native.ops import Norm
from models.native.recurrent import StateRows
from models.sharding import make_mesh
from neuron_jax.deviceless.topology import ENVIRONMENT, devices
from neuron_jax.engine import row_sampler
from neuron_jax.engine.attention.store import store
from neuron_jax.engine.attention.turned import Heads
from neuron_jax.engine.drawing import some_rows
from neuron_jax.hardware.cards import card
from neuron_jax.hardware.discover import has_cuda_plugin

pytestmark = [
    pytest.mark.skipif(not has_cuda_plugin(), reason="JAX's CUDA wheels are not installed"),
    pytest.mark.skipif(
        any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()),
        reason="JAX was not told that there is no device",
    ),
]
CARDS = {"a100-80": "sm_80", "3060": "sm_86", "4090": "sm_89", "h100": "sm_90a", "5090": "sm_120"}
KINDS: list[Kind] = ["float", "table", "int8", "fp8", "int4", "mxfp4"]
Abstract = jax.ShapeDtypeStruct


def matrix(kind: Kind, outputs: int, inputs: int) -> tuple[Abstract, ...]:
    """Its leaves."""
    match kind:
        case "float":
            return (Abstract((inputs, outputs), jnp.bfloat16),)
        case "table":
            return (Abstract((outputs, inputs), jnp.bfloat16),)
        case "int4":
            groups = Abstract((outputs, inputs // 32), jnp.float16)
            return Abstract((outputs, inputs // 2), jnp.uint8), groups, groups
        case "mxfp4":
            return Abstract((outputs, inputs // 2), jnp.uint8), Abstract((outputs, inputs // 32), jnp.uint8)
    scale = Abstract((outputs,), jnp.float32)
    return Abstract((outputs, inputs), jnp.int8 if kind == "int8" else jnp.float8_e4m3fn), scale


def layer(kind: Kind, x: Any, wide: Any, norm: Any, *maps: Any) -> tuple[jax.Array, ...]:
    """The three forms in which a layer of Llama 8B uses a product."""
    qkv, gate_up, down = (Matrix(kind, leaves) for leaves in maps)
    normed = Norm(norm, 1e-5)
    return (
        few_rows.product(x, qkv, Around(normed)),
        few_rows.product(x, gate_up, Around(normed, activation=Activation("silu"))),
        few_rows.product(wide, down, Around(residual=x)),
    )


def compiled(key: str, folder: Path, function: Any, *given: Any, donated: tuple[int, ...] = ()) -> Any:
    """`function` for a card, its PTX in `folder`."""
    mesh = make_mesh(devices(card(key), 1))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(lambda leaf: Abstract(leaf.shape, leaf.dtype, sharding=sharding), given)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        lowered = jax.jit(function, donate_argnums=donated).lower(*abstract)
    return lowered.compile({"xla_dump_to": str(folder)})


def spilled(folder: Path, sm: str) -> list[str]:
    """What ptxas says of the kernels whose registers do not suffice; asserts that there are kernels."""
    found = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert found is not None
    assert found.submodule_search_locations
    ptxas = Path(next(iter(found.submodule_search_locations))) / "bin" / "ptxas"
    said = ""
    for file in folder.glob("*.ptx"):
        if ".entry" not in file.read_text():
            continue
        command = [str(ptxas), "-v", f"-arch={sm}", str(file), "-o", os.devnull]
        said += subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.findall(r"Compiling entry function '(\w+)' for .*?(\d+) bytes spill stores", said, re.DOTALL)
    assert spills, said[:500]
    return [f"{name}: {count} bytes" for name, count in spills if count != "0"]


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("key", CARDS)
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_few_rows(kind: Kind, key: str, rows: int, tmp_path: Path) -> None:
    """No weight is written out, in whatever format; and no kernel keeps in memory what it has in registers."""
    x, wide = (Abstract((rows, width), jnp.bfloat16) for width in (4096, 14336))
    norm = Abstract((4096,), jnp.float32)
    maps = (matrix(kind, 6144, 4096), matrix(kind, 28672, 4096), matrix(kind, 4096, 14336))
    made = compiled(key, tmp_path, partial(layer, kind), x, wide, norm, *maps)

    assert made.memory_analysis().temp_size_in_bytes < 2**20
    assert spilled(tmp_path, CARDS[key]) == []


@pytest.mark.parametrize("key", CARDS)
@pytest.mark.parametrize("heads", [(8, 4, 64), (8, 1, 80), (2, 16, 96), (8, 4, 128), (4, 8, 256)])
def test_turning_and_storing(heads: tuple[int, int, int], key: str, tmp_path: Path) -> None:
    """In place."""
    kv_heads, group, width = heads

    def turn(qkv: Any, turns: Any, pool: Any, places: Any, weight: Any) -> Any:
        return store(qkv, turns, pool, Heads(0.1, (Norm(weight, 1e-5), Norm(weight, 1e-5))), **places)

    pool = (Abstract((1025, 16, kv_heads, width), jnp.bfloat16),) * 2
    turns, place = (Abstract((8, width // 2), jnp.float32),) * 2, Abstract((8,), jnp.int32)
    places = {"page": place, "offset": place, "real": Abstract((8,), jnp.bool_)}
    qkv, weight = Abstract((8, kv_heads, group + 2, width), jnp.bfloat16), Abstract((width,), jnp.float32)
    made = compiled(key, tmp_path, turn, qkv, turns, pool, places, weight, donated=(2,))
    memory = made.memory_analysis()

    assert memory.alias_size_in_bytes >= 2 * 1025 * 16 * kv_heads * width * 2
    assert memory.temp_size_in_bytes < 2**16
    assert spilled(tmp_path, CARDS[key]) == []


RECURRENT = {
    "Qwen 3.5": ("delta", (16, 2, 128, 128)),
    "wide states": ("delta", (2, 3, 256, 256)),
    "Granite 4": ("mamba", (1, 48, 128, 64)),
    "Nemotron-H": ("mamba", (8, 8, 256, 80)),
}


@pytest.mark.parametrize("key", CARDS)
@pytest.mark.parametrize("name", RECURRENT)
def test_states_of_rows(name: str, key: str, tmp_path: Path) -> None:
    """In place, from registers."""
    kind, heads = RECURRENT[name]
    key_heads, group, keys, width = heads
    channels, rows, tokens = 2 * keys + group * width, 4, 64
    delta = kind == "delta"

    def go(cache: Any, inputs: Any, parameters: Any, told: Any) -> Any:
        taps, bias, each = parameters
        rule = recurrent_rows.Rule("delta" if delta else "mamba", taps, None if delta else bias, each)
        return recurrent_rows.recur(rule, *inputs, cache, StateRows(*told, 16, guesses=True))

    floats = partial(Abstract, dtype=jnp.float32)
    cache = tuple(
        floats((count, *shape)) for count in (65, 33) for shape in ((3, key_heads, channels), (key_heads, *heads[1:]))
    )
    gates = floats((tokens, key_heads, *([2] if delta else []), group))
    inputs = (Abstract((tokens, key_heads, channels), jnp.bfloat16), gates)
    each = (floats((key_heads, group)),) * (2 if delta else 3)
    parameters = (floats((4, key_heads, channels)), floats((key_heads, channels)), each)
    told = (Abstract((rows,), jnp.int32),) * 5
    made = compiled(key, tmp_path, go, cache, inputs, parameters, told, donated=(0,))
    memory = made.memory_analysis()

    assert memory.alias_size_in_bytes >= sum(leaf.size * 4 for leaf in cache)
    assert memory.temp_size_in_bytes < 2**20
    assert spilled(tmp_path, CARDS[key]) == []


@pytest.mark.parametrize("key", CARDS)
def test_short_convolutions_of_rows(key: str, tmp_path: Path) -> None:
    """LFM2's, in place."""
    floats = partial(Abstract, dtype=jnp.float32)
    cache, taps = tuple(floats((count, 2, 1, 2048)) for count in (65, 33)), floats((3, 1, 2048))

    def go(cache: Any, bcx: Any, taps: Any, told: Any) -> Any:
        return convolution_rows.convolve(bcx, cache, StateRows(*told, 16, guesses=True), taps, None)

    told = (Abstract((4,), jnp.int32),) * 5
    made = compiled(key, tmp_path, go, cache, Abstract((64, 1, 3, 2048), jnp.bfloat16), taps, told, donated=(0,))

    assert made.memory_analysis().alias_size_in_bytes >= sum(leaf.size * 4 for leaf in cache)
    assert spilled(tmp_path, CARDS[key]) == []


@pytest.mark.parametrize("key", CARDS)
@pytest.mark.parametrize("vocab", [49152, 262144])
def test_drawing(vocab: int, key: str, tmp_path: Path) -> None:
    """One kernel each, and the copies of what is close to the likeliest tokens."""
    row = jax.tree.map(lambda leaf: Abstract(leaf.shape, leaf.dtype), some_rows(8, seed=0)[1])
    (rows,) = row.top_k.shape
    logits = Abstract((rows, vocab), jnp.float32)

    def both(logits: Any, row: Any) -> Any:
        return row_sampler.with_logprobs(logits, row_sampler.draw(logits, row))

    made = compiled(key, tmp_path, both, logits, row)

    assert made.memory_analysis().temp_size_in_bytes < 8 * rows * (row_sampler.MOST + row_sampler.TILE) + 2**20
    assert str(made.as_text()).count("__gpu$xla.gpu.triton") == 2
    assert spilled(tmp_path, CARDS[key]) == []


def stack(kind: Kind, count: int, outputs: int, inputs: int) -> Matrix:
    """Abstract ones."""
    return Matrix(kind, tuple(Abstract((count, *leaf.shape), leaf.dtype) for leaf in matrix(kind, outputs, inputs)))


@pytest.mark.parametrize("rows", [1, 16, 64, 1024])
@pytest.mark.parametrize("key", CARDS)
@pytest.mark.parametrize("kind", ["float", "int8", "fp8", "int4", "mxfp4"])
def test_experts(kind: Kind, key: str, rows: int, tmp_path: Path) -> None:
    """Of 128, eight a token, as Qwen3 30B-A3B has them, or of 32, four a token, as gpt-oss 20B has them: as of products."""
    oss = kind == "mxfp4"
    count, active, inner, width = (32, 4, 2880, 2880) if oss else (128, 8, 768, 2048)
    activation = Activation("swiglu_oai", 7.0) if oss else Activation()
    gate_up, down = stack(kind, count, 2 * inner, width), stack(kind, count, width, inner)
    x, logits = Abstract((rows, width), jnp.bfloat16), Abstract((rows, count), jnp.float32)
    norm = Abstract((width,), jnp.float32)
    biases = Abstract((count, 2 * inner), jnp.bfloat16), Abstract((count, width), jnp.bfloat16)

    def layer(x: Any, logits: Any, norm: Any, biases: Any, *leaves: Any) -> jax.Array:
        chosen, shares = routing_triton.route(Experts(count=count, active=active, width=inner), logits)
        maps = (Matrix(kind, one) for one in leaves)
        return experts_triton.through(
            x, chosen, shares, ExpertMatrices(*maps, activation, Norm(norm, 1e-5), *biases), x
        )

    made = compiled(key, tmp_path, layer, x, logits, norm, biases, gate_up.leaves, down.leaves)

    assert made.memory_analysis().temp_size_in_bytes < 2**21 + rows * active * (inner * 2 + width * 4) * 2
    assert spilled(tmp_path, CARDS[key]) == []
