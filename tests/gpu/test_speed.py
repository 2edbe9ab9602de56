"""How much of a GPU an 8B-shaped Llama of random weights uses: decoding against copying, prompts against matmuls.

The figures are printed (`-s`), beside what is hoped for; the test itself asks only that the engine runs and is fast enough
to be running the right kernels. Weights are made on the device, so that nothing is downloaded.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from models.sharding import named_sharding
from models.spec import Model, ParamSpec
from neuron_jax.benchmark.cases import Case, Decode, Prefill
from neuron_jax.benchmark.ceilings import Ceilings, measure
from neuron_jax.benchmark.costs import costs
from neuron_jax.benchmark.drive import Drive
from neuron_jax.benchmark.figures import decode_figures, prefill_rate
from neuron_jax.engine.build import assemble, design
from neuron_jax.workers.frames import EngineSpec, Progress

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
HOPED: dict[Case, float] = {Decode(1, 128, 256): 0.80, Decode(64, 1024, 128): 0.60, Prefill(2048): 0.55}
ROUNDS = 3


@pytest.mark.parametrize(
    ("quant", "kv_dtype"), [("none", "auto"), ("none", "int8"), ("int8", "auto"), ("fp8", "fp8"), ("int4", "int8")]
)
def test_an_8b_llama_uses_the_gpu(gpu: Any, quant: str, kv_dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    ceilings = measure(gpu, jnp.bfloat16)
    spec = EngineSpec(
        "llama-8b-random",
        "",
        platform="cuda",
        quant=quant,
        kv_dtype=kv_dtype,
        max_context=4096,
        max_slots=64,
        chunk_tokens=2048,
    )
    limit = int(gpu.memory_stats()["bytes_limit"] * 0.9)
    found = shares(LLAMA_8B, spec, gpu, limit=limit, ceilings=ceilings, cases=list(HOPED))

    with capsys.disabled():
        print(f"\n{gpu.device_kind}, jax {jax.__version__}: copying {ceilings.copy / 1e9:,.0f} GB/s, ", end="")
        print(f"{ceilings.dtype} matmul {ceilings.matmul / 1e12:,.0f} TFLOP/s; quant {quant}, kv_dtype {kv_dtype}")
        for case, hoped in HOPED.items():
            print(f"{case}: {json.dumps(found[case])}, hoped for share {hoped}")
    # What narrow weights should reach is not known; that of bfloat16 is, and a fourth of it is no misfortune any more.
    least = {case: hoped / 4 if quant == "none" else 0 for case, hoped in HOPED.items()}
    assert all(found[case]["share"] > share for case, share in least.items())


def shares(
    config: Mapping[str, Any], spec: EngineSpec, device: Any, *, limit: int, ceilings: Ceilings, cases: list[Case]
) -> dict[Case, dict[str, float]]:
    """Tokens per second of each case, and the share of the ceiling that this is: copying, or multiplying matrices."""
    made = design(config, spec, limit=limit)
    engine = assemble(made, devices=[device], load=random_weights, report=_silent)
    while len(engine.runner.compiler.ready) < len(made.buckets.keys()):
        time.sleep(0.1)
        engine.collect()
    kv = next(row.bytes for row in made.plan.rows if row.what.startswith("KV"))
    needs = costs(made.model, config, kv // (made.plan.pages * made.shapes.page_size))
    drive = Drive(engine, time.perf_counter, made.model.vocab_size)
    found: dict[Case, dict[str, float]] = {}
    for case in cases:
        match case:
            case Decode(streams, prompt, generate):
                rounds = [drive.decode(case, attempt) for attempt in range(ROUNDS + 1)][1:]
                rate = decode_figures(rounds).decode
                moved = needs.decode_bytes(streams, prompt + generate / 2) * rate / streams
                found[case] = {"tokens_per_second": rate, "share": moved / ceilings.copy}
            case Prefill(prompt):
                rate = prefill_rate([drive.prefill(case, attempt) for attempt in range(ROUNDS + 1)][1:], prompt)
                flops = needs.prefill_flops(prompt) / prompt * rate
                found[case] = {"tokens_per_second": rate, "share": flops / ceilings.matmul}
    engine.runner.compiler.close()
    return found


def random_weights(model: Model, mesh: jax.sharding.Mesh) -> Any:
    """Made on the device, a leaf at a time."""
    return jax.tree.map(
        lambda spec: _random(spec, mesh), model.param_specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec)
    )


def _random(spec: ParamSpec, mesh: jax.sharding.Mesh) -> jax.Array:
    def make() -> jax.Array:
        if len(spec.shape) == 1:
            return jnp.ones(spec.shape, spec.dtype)
        if jnp.issubdtype(spec.dtype, jnp.integer):
            return jax.random.randint(jax.random.key(0), spec.shape, 0, 127, spec.dtype)
        return (jax.random.normal(jax.random.key(0), spec.shape, jnp.float32) * 0.02).astype(spec.dtype)

    made: jax.Array = jax.jit(make, out_shardings=named_sharding(mesh, spec.axes))()
    return made


def _silent(progress: Progress) -> None:
    """Progress that nobody looks at."""
