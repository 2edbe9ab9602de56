"""Two versions of the engine side by side, without HTTP: what a step decides, in alternating rounds on one machine.

Method. Both versions run at once, each in its own process from its own checkout's Python; whoever is not asked waits. A
round asks first one, then the other, with the same prompts of random ids; round 0 warms up and is not counted. Every figure
is the median of rounds, every ratio that of the rounds' own ratios. All programs are compiled before.

    N streams     N prompts of 64 tokens at once, 64 tokens each: tokens per second while all generate, and of all in all
    prompt N      a prompt of N tokens alone: seconds to its first token
    second turn   2,000 tokens, an answer of 32, and 40 more: seconds to the first token of the second turn
    beside 4      a prompt of 2,850 tokens beside four streams: seconds to its first token, its time alone, and the streams'
                  slowest gap over their median gap before

    python bench/steps.py --gguf FILE --before OLD/.venv/bin/python --after NEW/.venv/bin/python [--rounds 3] [--only TEXT]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STREAMS, PROMPTS, LONG = (1, 4, 16), (64, 512, 6000), 2850
CASES = [*(f"{n} streams" for n in STREAMS), *(f"prompt {n}" for n in PROMPTS), "second turn", "beside 4"]


def main() -> None:
    """Start both, ask them in turn, print the table, stop them."""
    told = _arguments()
    if told.child:
        _serve(told.gguf)
        return
    cases = [case for case in CASES if told.only in case]
    sides = [_start(python, told.gguf) for python in (told.before, told.after)]
    seen: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {case: [] for case in cases}
    try:
        for attempt in range(told.rounds + 1):
            for case in cases:
                pair = (_ask(sides[0], case, attempt), _ask(sides[1], case, attempt))
                print(f"{case}, round {attempt}: {pair}", flush=True)
                if attempt:
                    seen[case].append(pair)
    finally:
        for side in sides:
            side.terminate()
    print(f"{'':13}{'':20}{'before':>10}{'after':>10}{'ratio':>8}")
    for case, pairs in seen.items():
        for figure in pairs[0][0] if pairs else ():
            before, after = ([pair[side][figure] for pair in pairs] for side in (0, 1))
            ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
            print(f"{case:13}{figure:20}{statistics.median(before):10.3f}{statistics.median(after):10.3f}{ratio:8.2f}")


def _start(python: str, gguf: Path) -> "subprocess.Popen[str]":
    command = [python, __file__, "--child", "--gguf", str(gguf)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{python} did not start")
    return process


def _ask(side: "subprocess.Popen[str]", case: str, attempt: int) -> dict[str, float]:
    assert side.stdin is not None
    assert side.stdout is not None
    side.stdin.write(json.dumps([case, attempt]) + "\n")
    side.stdin.flush()
    found: dict[str, float] = json.loads(side.stdout.readline() or "{}")
    return found


def _serve(gguf: Path) -> None:
    """One side: answers questions of its standard input, with what both versions have in common."""
    from neuron_jax.benchmark.drive import Drive
    from neuron_jax.workers.frames import EngineSpec
    from neuron_jax.workers.start import start

    started = start(EngineSpec("bench", str(gguf)), lambda _: None)
    engine = started.lead()
    while engine.compiling:
        time.sleep(0.2)
        engine.collect()
    drive = Drive(engine, time.perf_counter, engine.runner.program.model.vocab_size)
    print("ready", flush=True)
    for line in sys.stdin:
        case, attempt = json.loads(line)
        print(json.dumps(_measure(drive, case, attempt)), flush=True)


def _measure(drive: Any, case: str, attempt: int) -> dict[str, float]:
    from neuron_jax.benchmark.cases import Decode, LongPrompt, Prefill
    from neuron_jax.benchmark.figures import decode_figures, long_figures

    if case.endswith("streams"):
        figures = decode_figures([drive.decode(Decode(int(case.split(maxsplit=1)[0]), 64, 64), attempt)])
        return {"decode tok/s": figures.decode, "total tok/s": figures.total, "first token s": figures.first.p50}
    if case.startswith("prompt"):
        return {"first token s": _first(drive.prefill(Prefill(int(case.split()[1])), attempt))}
    if case == "second turn":
        return _second_turn(drive, attempt)
    alone = _first(drive.prefill(Prefill(LONG), attempt))
    figures = long_figures([drive.beside(LongPrompt(4, 64, LONG), attempt)])
    return {
        "first token s": figures.first,
        "alone s": alone,
        "beside / alone": figures.first / alone,
        "gap before ms": 1000 * figures.alone.p50,
        "slowest / before": figures.ratio,
    }


def _first(stream: Any) -> float:
    return float(stream.first - stream.sent)


def _second_turn(drive: Any, attempt: int) -> dict[str, float]:
    from neuron_jax.benchmark.cases import Prefill, prompt

    history = prompt(Prefill(2000), attempt, 7, length=2000, vocab=drive.vocab)
    more = prompt(Prefill(40), attempt, 8, length=40, vocab=drive.vocab)
    waits = [_wait(drive.engine, ids, tokens) for ids, tokens in ((history, 32), (history + more, 1))]
    return {"first turn s": waits[0], "second turn s": waits[1]}


def _wait(engine: Any, ids: list[int], tokens: int) -> float:
    """Seconds to the first token of a request of its own, which is then left to its end."""
    from neuron_jax.workers.frames import Sampling, Submit

    sent, first = time.perf_counter(), 0.0
    engine.submit(Submit(10**9, ids, Sampling(temperature=0.0), tokens, ignore_eos=True))
    while not engine.idle:
        if engine.step() and not first:
            first = time.perf_counter()
    return first - sent


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Two versions of the engine, on the same file.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--before", help="the Python of one checkout")
    parser.add_argument("--after", help="the Python of the other")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
