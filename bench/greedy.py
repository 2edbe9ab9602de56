"""Our greedy answers against those of Hugging Face transformers, token for token, on the same GGUF file.

Method. transformers reads the file with its weights dequantized to float32, and writes greedy answers to prompts of a few
lengths, cut at random out of texts; rows of one length go together, so nothing is padded. That is made once, with an
interpreter that has torch, transformers, accelerate and gguf, which are no dependencies of ours, and kept. Then the engine
gets all rows at once, as it serves them. A row is equal when all of its tokens are. Where a token differs and its margin there
(top logit minus second) is below 0.001, the row is excused: two correct programs may choose differently. Log-probabilities
are compared up to the first difference.

    python bench/greedy.py --gguf FILE --rows ROWS.json.gz [--quant stored]     (or tests/data/gemma3-270m-greedy.json)
    python bench/greedy.py --gguf FILE --rows ROWS.json.gz --make TEXT [TEXT ...] [--tokens 24]
"""

import argparse
import gzip
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LENGTHS = {8: 48, 24: 48, 48: 48, 120: 40, 600: 16}
"""Rows by the tokens of their prompts; the last are longer than Gemma 3's window."""
AT_ONCE = 48
EXCUSED = 1e-3

Row = dict[str, Any]
"""`prompt` and `tokens`, of these `logprobs` and `margins`."""


def main() -> None:
    """Make the rows, or hold the engine to them."""
    told = _arguments()
    if told.make:
        made: list[Row] = []
        for rows in _answered(told.gguf, told.make, told.tokens, told.threads):
            made += rows
            told.rows.write_bytes(gzip.compress(json.dumps(made, separators=(",", ":")).encode(), mtime=0))
            print(f"{len(made)} of {sum(LENGTHS.values())} rows in {told.rows}", flush=True)
        return
    content = told.rows.read_bytes()
    rows = json.loads(gzip.decompress(content) if told.rows.suffix == ".gz" else content)
    sys.exit(_hold(rows, _ours(told.gguf, told.quant, rows)))


def _hold(rows: Sequence[Row], ours: Sequence[tuple[list[int], list[float]]]) -> int:
    """Prints what was found; 1 where a row differs that is not excused."""
    equal, excused, wrong, largest = 0, 0, 0, 0.0
    margins: list[float] = []
    for number, (row, (tokens, logprobs)) in enumerate(zip(rows, ours, strict=True)):
        parted = next(
            (at for at, pair in enumerate(zip(row["tokens"], tokens, strict=True)) if len(set(pair)) > 1), None
        )
        same = len(tokens) if parted is None else parted
        margins += row["margins"][: same + 1]
        apart = [abs(a - b) for a, b in zip(row["logprobs"][:same], logprobs[:same], strict=True)]
        largest = max([largest, *apart])
        if parted is None:
            equal += 1
            continue
        sure = row["margins"][parted] >= EXCUSED
        wrong, excused = wrong + sure, excused + (not sure)
        print(
            f"row {number}, prompt of {len(row['prompt'])}: token {parted} is {tokens[parted]}, not {row['tokens'][parted]}; "
            f"margin {row['margins'][parted]:.5f}{'' if sure else ', excused'}"
        )
    close = sum(margin < EXCUSED for margin in margins)
    print(f"rows equal {equal} of {len(rows)}, excused {excused}, different {wrong}")
    print(f"margins: least {min(margins):.5f}, below {EXCUSED:g}: {close} of {len(margins)}")
    print(f"largest difference of log-probabilities {largest:.2e}")
    return int(wrong > 0)


def _ours(gguf: Path, quant: str, rows: Sequence[Row]) -> list[tuple[list[int], list[float]]]:
    """What the engine says to all prompts, asked at once: tokens and their log-probabilities."""
    from neuron_jax.workers.frames import EngineSpec, Sampling, Submit
    from neuron_jax.workers.start import start

    engine = start(EngineSpec("bench", str(gguf), quant=quant, max_context=1024), lambda _: None).lead()
    while engine.compiling:
        time.sleep(0.2)
        engine.collect()
    for number, row in enumerate(rows):
        sampling = Sampling(temperature=0.0, logprobs=0)
        engine.submit(Submit(number, row["prompt"], sampling, len(row["tokens"]), ignore_eos=True))
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
    while not engine.idle:
        for output in engine.step():
            if output.error:
                raise SystemExit(output.error)
            found[output.request][0].extend(output.tokens)
            found[output.request][1].extend(output.logprobs or ())
    return found


def _answered(gguf: Path, texts: Sequence[Path], count: int, threads: int) -> Iterator[list[Row]]:
    """Rows by transformers, some at a time."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as missing:
        needed = "torch, transformers, accelerate and gguf"
        raise SystemExit(f"{missing.name} is not installed: this needs {needed}") from missing
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    begin = tokenizer("").input_ids
    ids = [token for path in texts for token in tokenizer(path.read_text()).input_ids[len(begin) :]]
    chosen = random.Random(270)
    for length, number in LENGTHS.items():
        starts = chosen.sample(range(len(ids) - length), number)
        prompts = [[*begin, *ids[at : at + length - len(begin)]] for at in starts]
        for first in range(0, number, AT_ONCE):
            yield _batch(model, prompts[first : first + AT_ONCE], count)


def _batch(model: Any, prompts: Sequence[list[int]], count: int) -> list[Row]:
    """Rows of prompts that are as long as each other."""
    import torch

    rows: list[Row] = [{"prompt": prompt, "tokens": [], "logprobs": [], "margins": []} for prompt in prompts]
    now, cache = torch.tensor(prompts), None
    with torch.inference_mode():
        for _ in range(count):
            said = model(now, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, logits = said.past_key_values, said.logits[:, -1].float()
            (best, second), tokens = logits.topk(2).values.T, logits.argmax(-1)
            chosen = (best - logits.logsumexp(-1)).tolist()
            for row, token, logprob, margin in zip(
                rows, tokens.tolist(), chosen, (best - second).tolist(), strict=True
            ):
                row["tokens"].append(token)
                row["logprobs"].append(round(logprob, 6))
                row["margins"].append(round(margin, 6))
            now = tokens[:, None]
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our greedy answers against transformers', on the same file.")
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="answers by transformers")
    parser.add_argument("--quant", default="stored")
    parser.add_argument(
        "--make", type=Path, nargs="+", metavar="TEXT", help="make the rows, of prompts out of these texts"
    )
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of transformers")
    return parser.parse_args()


if __name__ == "__main__":
    main()
