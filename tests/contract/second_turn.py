"""What an agent's second turn costs beside its first, by the engine itself: the recorded sessions, a model of yours.

    python -m tests.contract.second_turn FILE.gguf [--context 8192] [--rounds 3]

Prints the tokens that each turn computes and finds computed, and the seconds to its first token. Where the first does not fit
the context, the agent's long texts are taken shorter.
"""

import argparse
import statistics
import time
from pathlib import Path

from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.prepare import Outside
from neuron_jax.daemon.schema import read_chat
from neuron_jax.engine.engine import Engine
from neuron_jax.workers.frames import EngineSpec, Sampling, Submit
from neuron_jax.workers.start import start
from tests.contract.sessions import Session, sessions
from tests.fakes.rendering import job_of

OUTSIDE = Outside(id="chatcmpl-1", seed=1, created=1, max_context=1_000_000)


def main() -> None:
    """Measure every session in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    told = parser.parse_args()
    text = read_text(told.gguf)
    spec = EngineSpec("sessions", str(told.gguf), max_context=told.context, max_slots=2, kv_mb=600)
    engine = start(spec, lambda _: None).lead()
    while engine.compiling:
        time.sleep(0.2)
        engine.collect()
    for at in range(len(sessions())):
        one, prompts = _fitting(at, text, told.context - 64)
        # Each round begins differently, so that it finds nothing of the last.
        runs = [_turns(engine, prompts, begin=100 + attempt) for attempt in range(told.rounds + 1)][1:]
        (first, hit, second), times = runs[0][0], [seconds for _, seconds in runs]
        before, after = (statistics.median(side) for side in zip(*times, strict=True))
        print(
            f"{one.name}: first turn {first} tokens, {before:.2f} s; second {second} tokens, {hit} found, {second - hit}"
            f" computed ({(second - hit) / first:.3f} of the first), {after:.2f} s ({after / before:.3f})",
            flush=True,
        )


def _fitting(at: int, text: ModelText, most: int) -> tuple[Session, list[list[int]]]:
    """A session, as long as fits, and the prompts of its turns."""
    scale = 1.0
    while True:
        one = sessions(scale)[at]
        bodies = (one.neuron_body(body) for body in (one.first, one.second))
        prompts = [job_of(read_chat(body), text, OUTSIDE).encoded[0].ids for body in bodies]
        if len(prompts[1]) <= most:
            return one, prompts
        scale *= 0.8
        if scale < 0.01:
            raise SystemExit(f"{one.name} does not fit {most} tokens, however short its texts are")


def _turns(engine: Engine, prompts: list[list[int]], begin: int) -> tuple[tuple[int, int, int], tuple[float, ...]]:
    """Tokens of the first turn, those of the second that were found, and all of the second; seconds of both."""
    found, seconds = [0, 0], []
    for at, prompt in enumerate(prompts):
        began = time.perf_counter()
        engine.submit(Submit(begin * 2 + at, [begin, *prompt], Sampling(temperature=0.0), 1, ignore_eos=True))
        while not engine.idle:
            found[at] += sum(output.cached_tokens for output in engine.step())
        seconds.append(time.perf_counter() - began)
    return (len(prompts[0]) + 1, found[1], len(prompts[1]) + 1), tuple(seconds)


if __name__ == "__main__":
    main()
