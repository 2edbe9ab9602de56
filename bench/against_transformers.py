"""Our server against Hugging Face transformers' `generate` on the same GGUF file and machine, one stream.

Method. transformers reads the file with its weights dequantized to float32 and generates in this process, with as many
threads as there are cores; our server runs beside it and is asked over HTTP. Rounds alternate; round 0 warms up and is not
counted. Both decode greedily; the rate is tokens after the first over the time from the first to the last, for transformers
by the difference of a long and a one-token answer. torch, transformers, accelerate and gguf are no dependencies of ours:
run this with an interpreter that has them.

    python bench/against_transformers.py --gguf FILE --neuron PATH [--tokens 64] [--rounds 3] [--json OUT]
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from sides import ask, neuron, user, words

PROMPT_WORDS = 32


def main() -> None:
    """Load, start, measure, print."""
    told = _arguments()
    theirs = _transformers(told.gguf, told.tokens)
    rates: list[tuple[float, float]] = []
    with neuron(told.neuron, told.gguf) as ours:
        for attempt in range(told.rounds + 1):
            text = words(PROMPT_WORDS, f"transformers {attempt}")
            pair = asyncio.run(ask(ours, [user(text)], told.tokens)).rate, theirs(text)
            print(f"round {attempt}: neuron {pair[0]:.1f}, transformers {pair[1]:.1f} tok/s", flush=True)
            if attempt:
                rates.append(pair)
    figures = {
        "neuron": statistics.median(ours for ours, _ in rates),
        "transformers": statistics.median(theirs for _, theirs in rates),
        "ratio": statistics.median(ours / theirs for ours, theirs in rates),
    }
    print("  ".join(f"{name} {value:.2f}" for name, value in figures.items()) + "  wanted: ratio >= 5")
    if told.json:
        told.json.write_text(json.dumps(figures, indent=2) + "\n")


def _transformers(gguf: Path, tokens: int) -> Callable[[str], float]:
    """Tokens per second that `generate` decodes after a text."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as missing:
        raise SystemExit(
            f"{missing.name} is not installed: this needs torch, transformers, accelerate and gguf"
        ) from missing
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)

    def seconds(ids: "torch.Tensor", count: int) -> float:
        began = time.perf_counter()
        model.generate(ids, min_new_tokens=count, max_new_tokens=count, do_sample=False, pad_token_id=0)
        return time.perf_counter() - began

    def rate(text: str) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            once = seconds(ids, 1)
            return (tokens - 1) / (seconds(ids, tokens) - once)

    return rate


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our server against transformers' generate, on the same file.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--neuron", default="neuron", help="our program")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
