"""The turns of a long conversation with a hybrid model: how long the next one waits where the prefix cache has its beginning.

Method. A Qwen3.5 of random weights, 8 layers of which two attend, on this machine's CPU by the native kernels; all programs
compiled before. Prompts are random ids, so nothing is found but what was computed. The first turn is a prompt of `--tokens`,
alone and cold. Each other row begins where the first turn, with its answer of 64 tokens, has left the engine:

    second turn     the first prompt, its answer, and 150 tokens more
    answer left     the same without the answer's tokens, as a template does that leaves out thinking
    last edited     the last 200 tokens of the first prompt are others
    branch          the first prompt up to its middle, and 150 others

Figures are seconds to the first token, the share of the first turn's, and how many tokens were found.

    python bench/hybrid_turns.py [--tokens 8000] [--rounds 3]
"""

import argparse
import random
import statistics
import time
from typing import Any

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "vocab_size": 16384,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
MIB = 2**20


def main() -> None:
    """Build the engine, take the turns, print the table."""
    parser = argparse.ArgumentParser(description="The turns of a long conversation with a hybrid model.")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    engine, rows = _engine(told.tokens + 1024)
    print("\n".join(f"{row.what}: {row.bytes / MIB:,.0f} MiB" for row in rows))
    seen: dict[str, list[tuple[float, float, int]]] = {}
    for attempt in range(told.rounds + 1):
        for number, case in enumerate(("second turn", "answer left", "last edited", "branch")):
            rng = random.Random(1000 * attempt + number)
            first = _ids(rng, told.tokens)
            cold, _, answer = _ask(engine, first, 64)
            warm, found, _ = _ask(engine, _next(case, first, answer, rng), 1)
            if attempt:  # round 0 warms up
                seen.setdefault(case, []).append((cold, warm, found))
    print(f"{'':14}{'first turn s':>14}{'next s':>10}{'share':>8}{'found':>8}")
    for case, rounds in seen.items():
        cold, warm, found = (statistics.median(column) for column in zip(*rounds, strict=True))
        share = statistics.median(after / before for before, after, _ in rounds)
        print(f"{case:14}{cold:14.2f}{warm:10.3f}{share:8.3f}{found:8.0f}")


def _ids(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(CONFIG["vocab_size"]) for _ in range(count)]


def _next(case: str, first: list[int], answer: list[int], rng: random.Random) -> list[int]:
    if case == "second turn":
        return first + answer + _ids(rng, 150)
    if case == "answer left":
        return first + _ids(rng, 150)
    if case == "last edited":
        return first[:-200] + _ids(rng, 200)
    return first[: len(first) // 2] + _ids(rng, 150)


def _engine(context: int) -> Any:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from models.spec import ParamSpec
    from neuron_jax.engine.build import assemble, design
    from neuron_jax.workers.frames import EngineSpec

    spec = EngineSpec("bench", "random", quant="none", max_context=context, max_slots=4)
    made = design(CONFIG, spec, limit=4 * 2**30)
    rng = np.random.default_rng(0)

    def random_params(model: Any, _: Any) -> Any:
        def one(path: Any, leaf: ParamSpec) -> Any:
            if leaf.dtype == np.uint8:  # tiles of float32
                return jnp.asarray((rng.standard_normal(leaf.nbytes // 4) * 0.04).astype(np.float32).view(np.uint8))
            values = rng.standard_normal(leaf.shape) * 0.5
            return jnp.asarray(-np.abs(values) if path[-1].key == "rate" else values, leaf.dtype)

        return jax.tree.map_with_path(one, model.param_specs, is_leaf=lambda leaf: isinstance(leaf, ParamSpec))

    engine = assemble(made, devices=jax.devices("cpu")[:1], load=random_params, report=lambda _: None)
    while engine.compiling:
        time.sleep(0.2)
        engine.collect()
    return engine, made.plan.rows


def _ask(engine: Any, ids: list[int], tokens: int) -> tuple[float, int, list[int]]:
    """Seconds to the first token, how many of the prompt were found, and the answer."""
    from neuron_jax.workers.frames import Sampling, Submit

    sent, first, found, answer = time.perf_counter(), 0.0, 0, []
    engine.submit(Submit(1, ids, Sampling(temperature=0.0), tokens, ignore_eos=True))
    while not engine.idle:
        for output in engine.step():
            first = first or time.perf_counter() - sent
            found, answer = max(found, output.cached_tokens), answer + output.tokens
    return first, found, answer


if __name__ == "__main__":
    main()
