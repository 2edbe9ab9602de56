"""Our server against llama.cpp's on the same GGUF file and machine, in alternating rounds.

Method. Both servers run at once; whoever is not asked sleeps. A round asks first one, then the other, with the same
requests, so that a drift of the machine hits both alike; round 0 warms up and is not counted. Every ratio is the median of
the rounds' own ratios. Requests stream, greedy, with `ignore_eos`; tokens are those of the usage chunk. Each prompt begins
with words of its own, so that no prefix cache helps, but for the second turn, which is about that.

    N streams     N chats of 32 words at once, 64 tokens each: decode = one stream after its first token, total = all tokens
                  over the wall time. llama-server is started with -np N and as many threads as there are cores.
    N words       a chat of so many words: seconds to its first token.
    second turn   a chat of about 2,000 tokens, its answer, and another question: seconds to the first token of the second
                  turn over those of the first, of each server by itself.

    python bench/against_llama_cpp.py --gguf FILE --llama-server PATH [--neuron neuron] [--rounds 3] [--json OUT]
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sides import Side, ask, llama_server, neuron, user, words

STREAM_WORDS, STREAM_TOKENS, STREAM_CONTEXT = 32, 64, 1024
PROMPTS = (512, 5000)  # words
HISTORY_WORDS, CONTEXT = 1350, 8192

Figures = dict[str, float]
Case = Callable[[Side, str], Coroutine[Any, Any, Figures]]


@dataclass(frozen=True)
class Row:
    """One figure of both sides: medians over rounds, and what the goal asks of it."""

    case: str
    figure: str
    neuron: float
    llama_cpp: float
    ratio: float
    wanted: str


WANTED = {
    ("1 stream", "decode tok/s"): "ratio >= 1.0",
    ("4 streams", "total tok/s"): "ratio >= 1.5",
    ("16 streams", "total tok/s"): "ratio >= 2.0",
    ("512 words", "first token s"): "ratio <= 0.5",
    ("second turn", "second / first"): "neuron <= 0.15",
}


def main() -> None:
    """Start both, measure, print, stop them."""
    told = _arguments()
    rows: list[Row] = []
    with neuron(told.neuron, told.gguf) as ours:
        for count in told.streams:
            with llama_server(told.llama_server, told.gguf, streams=count, context=STREAM_CONTEXT) as theirs:
                name = f"{count} stream{'s' * (count > 1)}"
                rows += _compare(name, _streams(count), (ours, theirs), told.rounds)
        with llama_server(told.llama_server, told.gguf, streams=1, context=CONTEXT) as theirs:
            for count in PROMPTS:
                rows += _compare(f"{count} words", _prompt(count), (ours, theirs), told.rounds)
            rows += _compare("second turn", _second_turn, (ours, theirs), told.rounds)
    print(_table(rows))
    if told.json:
        told.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _compare(name: str, case: Case, sides: Sequence[Side], rounds: int) -> list[Row]:
    """The rows of one case; progress on the way, because it takes minutes."""
    seen: list[list[Figures]] = []
    for attempt in range(rounds + 1):
        pair = [asyncio.run(case(side, f"{name} {attempt}")) for side in sides]
        print(f"{name}, round {attempt}: {pair}", flush=True)
        if attempt:
            seen.append(pair)
    return [_row(name, figure, seen) for figure in seen[0][0]]


def _row(name: str, figure: str, seen: Sequence[Sequence[Figures]]) -> Row:
    ours, theirs = ([pair[side][figure] for pair in seen] for side in (0, 1))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return Row(name, figure, statistics.median(ours), statistics.median(theirs), ratio, WANTED.get((name, figure), ""))


def _streams(count: int) -> Case:
    async def case(side: Side, seed: str) -> Figures:
        texts = [words(STREAM_WORDS, f"{seed} {stream}") for stream in range(count)]
        began = time.perf_counter()
        answers = await asyncio.gather(*(ask(side, [user(text)], STREAM_TOKENS) for text in texts))
        wall = max(answer.last for answer in answers) - began
        return {
            "first token s": statistics.median(answer.wait for answer in answers),
            "decode tok/s": statistics.median(answer.rate for answer in answers),
            "total tok/s": sum(answer.tokens for answer in answers) / wall,
        }

    return case


def _prompt(count: int) -> Case:
    async def case(side: Side, seed: str) -> Figures:
        answer = await ask(side, [user(words(count, seed))], 4)
        return {"first token s": answer.wait}

    return case


async def _second_turn(side: Side, seed: str) -> Figures:
    first = user(words(HISTORY_WORDS, seed) + ". Which of these words is the longest?")
    answer = await ask(side, [first], 32)
    history = [first, {"role": "assistant", "content": answer.text}]
    again = await ask(side, [*history, user("And which is the shortest?")], 2)
    return {"first turn s": answer.wait, "second turn s": again.wait, "second / first": again.wait / answer.wait}


def _table(rows: Sequence[Row]) -> str:
    lines = [f"{'':13}{'':16}{'neuron':>10}{'llama.cpp':>11}{'ratio':>8}  wanted"]
    lines += [
        f"{row.case:13}{row.figure:16}{row.neuron:10.3f}{row.llama_cpp:11.3f}{row.ratio:8.2f}  {row.wanted}"
        for row in rows
    ]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our server against llama.cpp's, on the same file.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama-server", default="llama-server", help="llama.cpp's program")
    parser.add_argument("--neuron", default="neuron", help="our program")
    parser.add_argument("--streams", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
