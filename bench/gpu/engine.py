"""A stage: one engine of random weights, made on the device, and every case on it; tells a line as soon as it knows one."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import attrs

from bench.gpu.shapes import SHAPES, Asked
from neuron_jax.benchmark.cases import Case, Decode
from neuron_jax.workers.start import configure, devices, memory_limit

WORKERS = 8
REPLAYS = 20
"""Steps in a row that the host does nothing between."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--ceilings", type=json.loads, required=True)
    parser.add_argument("--cache", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with given.out.open("a", buffering=1) as out:
        measure(
            SHAPES[given.shape],
            given.quant,
            given.ceilings,
            lambda record: print(json.dumps(record), file=out),
            given.cache,
        )


def measure(
    asked: Asked, quant: str, ceilings: Mapping[str, Any], tell: Callable[[dict[str, Any]], None], kept: str
) -> None:
    """`ceilings` are the fields of `benchmark.ceilings.Ceilings`."""
    began = time.monotonic()
    spec = asked.spec(quant, cache=kept)
    configure(spec)
    from neuron_jax.benchmark import worker
    from neuron_jax.benchmark.ceilings import Ceilings
    from neuron_jax.benchmark.costs import costs
    from neuron_jax.engine.build import design, lead, program_for
    from neuron_jax.engine.compiler import Compiler

    here = devices(spec)
    made = design(asked.config, spec, limit=int(0.97 * memory_limit(spec)))
    made = attrs.evolve(made, buckets=attrs.evolve(made.buckets, tokens=asked.tokens))
    program = program_for(made, here)
    tell({"trials_seconds": time.monotonic() - began, **_chosen(program)})
    keys = _keys(made.buckets)
    compiler = Compiler(program.lower, workers=WORKERS)
    compiler.start(keys)
    params = random_weights(made.model, program.mesh)
    compiler.wait(keys, lambda *_: None)
    runner = _noting(program, compiler, params, made.buckets)
    engine = lead(made, runner)
    tell({"programs": len(keys), "ready_seconds": time.monotonic() - began, "dropped": list(map(str, runner.dropped))})
    needs = costs(made.model, asked.config, _token_bytes(made))
    limits = worker.MachineLimits(Ceilings(**ceilings), needs)
    for case in asked.cases:
        seen = worker.run_cases(engine, [case], asked.rounds, lambda _: None)
        tell({"cases": [worker.told(case, seen[case], limits) | _gap(runner, case, seen[case])]})
    compiler.close()


def _keys(buckets: Any) -> list[Any]:
    """The programs that the cases run: of the kind that draws the least, as all of them are greedy."""
    from neuron_jax.engine.buckets import Draws, SlotKey, StepKey

    kind = Draws.PLAIN if buckets.by_draws else Draws.ANY
    once = [StepKey(tokens, min(tokens, buckets.rows), 1, kind) for tokens in buckets.tokens]
    several = [
        StepKey(tokens, tokens, buckets.steps, kind)
        for tokens in buckets.tokens
        if buckets.steps > 1 and tokens <= buckets.slots
    ]
    return [*once, *several, SlotKey()]


def _chosen(program: Any) -> dict[str, Any]:
    """Which kernels the trials left."""
    products = program.products
    return {
        "attention": [program.attention.name, program.attention.reason],
        "products": {} if products is None else {str(shape): most for shape, most in products.most.items()},
        "storing": len(program.storing),
    }


def _token_bytes(made: Any) -> int:
    """Of the keys and values of a token."""
    from models.spec import PagedLayer

    return sum(made.kv.token_bytes(layer) for layer in made.model.layers if isinstance(layer, PagedLayer))


def _noting(*given: Any) -> Any:
    """A runner that can run its last step again. Its class is made late, since JAX is configured first."""
    from neuron_jax.engine.runner import Runner

    class Noting(Runner):
        last: tuple[Any, ...] = ()

        def run(self, *told: Any) -> Any:
            self.last = told
            return super().run(*told)

        def again(self) -> float:
            """Seconds of the step on the device, with nothing between it and the next."""
            import jax

            def all_of_them() -> float:
                began = time.perf_counter()
                results = [Runner.run(self, *self.last) for _ in range(REPLAYS)]
                jax.block_until_ready(results)
                return (time.perf_counter() - began) / REPLAYS

            return statistics.median(all_of_them() for _ in range(4))

    return Noting(*given)


def _gap(runner: Any, case: Case, seen: Any) -> dict[str, float]:
    """Of a step that decodes: its milliseconds, those that the device alone takes, and what is left between two of them."""
    if not isinstance(case, Decode):
        return {}
    from neuron_jax.benchmark.figures import decode_figures

    (key, *_), alone = runner.last, 1e3 * runner.again()
    step = 1e3 * case.streams * key.steps / decode_figures(seen.rounds).decode
    return {"step_ms": step, "device_ms": alone, "gap_ms": max(0.0, step - alone), "step_tokens": key.steps}


def random_weights(model: Any, mesh: Any) -> Any:
    """Made on the device, a leaf at a time."""
    import jax

    from models.spec import ParamSpec

    is_leaf = lambda leaf: isinstance(leaf, ParamSpec)  # noqa: E731
    return jax.tree.map(lambda spec: _maker(spec, mesh)(), model.param_specs, is_leaf=is_leaf)


@cache
def _maker(spec: Any, mesh: Any) -> Any:
    import jax
    import jax.numpy as jnp

    from models.sharding import named_sharding

    def make() -> jax.Array:
        if len(spec.shape) == 1:
            return jnp.ones(spec.shape, spec.dtype)
        if jnp.issubdtype(spec.dtype, jnp.integer):
            return jax.random.randint(jax.random.key(0), spec.shape, 0, 127, spec.dtype)
        return (jax.random.normal(jax.random.key(0), spec.shape, jnp.float32) * 0.02).astype(spec.dtype)

    return jax.jit(make, out_shardings=named_sharding(mesh, spec.axes))


if __name__ == "__main__":
    main()
