"""The process behind `neuron plan --device`: an engine's programs compiled for a card that is not here, and what they would do.

Started by `neuron_jax.workers.child` with the settings of `deviceless.topology`. Its options are a card's name, the model's
config, the names of its tensors in MXFP4, and whether to compile `all`. It tells {"phase", "done", "total", "unit"} as it
goes, {"program": ...} for each program, {"plan": rows} with what a step takes by the compiler's word, and last
{"predicted": ...}.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from neuron_jax.workers.child import Record, Tell, child_main
from neuron_jax.workers.frames import EngineSpec

STREAMS = (1, 8, 64)
CONTEXT = 1024
"""Tokens of each text that rates are told for."""


def work(spec: EngineSpec, options: Mapping[str, Any], tell: Tell) -> None:
    """Compile the programs of a model's first layers, or all programs of the whole model, and reckon with their kernels."""
    from models.storage import MXFP4
    from neuron_jax.deviceless.programs import Depth, abroad, compile_key, shallow
    from neuron_jax.engine.build import design
    from neuron_jax.engine.memory import held, settle
    from neuron_jax.hardware.cards import card

    config, one = options["config"], card(options["card"])
    stored, limit = dict.fromkeys(options["coded"], MXFP4), spec.memory_mb * 2**20
    whole = design(config, spec, limit=limit, storage=stored)
    every = range(len(whole.model.layers))
    depth = Depth(config, every) if options["all"] else shallow(config)
    few = len(depth.like) != depth.layers
    made = design(depth.config, spec, limit=limit, storage=stored) if few else whole
    program = abroad(whole.of(made.model), one)
    keys = whole.buckets.keys() if options["all"] else _telling(whole.buckets.rows, whole.buckets.keys())
    compiled = []
    for done, key in enumerate(keys):
        tell({"phase": "compile", "done": done, "total": len(keys), "unit": "programs"})
        compiled.append(compile_key(program, key))
        tell({"program": _told(compiled[-1], depth.layers)})
    tell({"phase": "compile", "done": len(keys), "total": len(keys), "unit": "programs"})
    taken = {str(each.key): each.memory for each in compiled}
    tell({"plan": msgspec.to_builtins(settle(whole.plan, taken, held(program.abstract_state())).rows)})
    tell({"attention": program.attention.name, "layers": depth.layers})
    tell({"predicted": _predicted(whole, compiled, depth.like, one)})


def _telling(rows: int, keys: Sequence[Any]) -> list[Any]:
    """The programs that rates are told by: steps of so many streams, and the largest step, which reads prompts."""
    from neuron_jax.engine.buckets import StepKey

    steps = [key for key in keys if isinstance(key, StepKey) and key.steps == 1]
    wanted = {
        min((key for key in steps if key.tokens >= min(count, rows)), key=lambda key: key.tokens) for count in STREAMS
    }
    return [*sorted(wanted), max(steps, key=lambda key: key.tokens)]


def _predicted(made: Any, compiled: Sequence[Any], like: Sequence[int], card: Any) -> Record:
    from neuron_jax.deviceless import predict
    from neuron_jax.deviceless.reads import reads

    of_texts = reads(made)
    decoding, reading = [], []
    for each in compiled:
        key = each.key
        if getattr(key, "steps", 0) != 1:
            continue
        kernels = predict.whole(each.census(made.model.vocab_size), like)
        if key.tokens == made.buckets.tokens[-1] > made.buckets.rows:
            found = predict.prefill(kernels, card, of_texts, key.tokens)
            reading.append(_rate(found, key.tokens) | {"tokens": key.tokens})
        elif key.tokens == key.rows:
            found = predict.decode(kernels, card, of_texts, key.rows, CONTEXT)
            decoding.append(_rate(found, key.rows) | {"streams": key.rows, "context": CONTEXT})
    return {"decode": decoding, "prefill": reading, "assumed": predict.ASSUMED}


def _rate(found: Any, tokens: int) -> Record:
    parts = {name: getattr(found, name) * 1e3 for name in ("work", "launching", "waiting", "exchanging")}
    return {"tokens_per_second": tokens / found.seconds, "milliseconds": found.seconds * 1e3, "of_which": parts}


def _told(each: Any, layers: int) -> Record:
    parts = ("argument", "output", "temp", "alias", "code")
    return {
        "name": str(each.key),
        "layers": layers,
        "lower_seconds": each.lower_seconds,
        "compile_seconds": each.compile_seconds,
        "from_cache": False,
        "memory": {part: getattr(each.memory, part) for part in parts},
    }


if __name__ == "__main__":
    child_main(work)
