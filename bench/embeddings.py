"""Embeddings of 1,000 sentences by a neuron over HTTP, beside transformers in a process of its own; one table.

    python bench/embeddings.py http://127.0.0.1:13131 all-minilm-l6-v2 FOLDER --python PYTHON_WITH_TRANSFORMERS

FOLDER holds the same model as sentence-transformers writes it. The other side does what sentence-transformers' `encode` does:
it sorts by length, in batches of 32, pools and normalizes; it is timed inside its process, without loading. Standard library
only. Rounds are in turns, after one of warming up; what is told is the median.
"""

import argparse
import json
import random
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

WORDS = Path(__file__).parents[1].joinpath("neuron_jax", "quality", "text.txt")
COUNT = 1000

OTHER = r"""
import json, sys, time, torch, transformers
folder, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
texts = json.loads(sys.stdin.readline())
def encode():
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
    found = [None] * len(texts)
    for start in range(0, len(order), 32):
        part = order[start:start + 32]
        batch = tokenizer([texts[at] for at in part], padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].float()
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        for at, row in zip(part, pooled.tolist()):
            found[at] = row
    return found
for line in sys.stdin:
    began = time.perf_counter()
    found = encode()
    print(json.dumps([time.perf_counter() - began, found[0]]), flush=True)
"""


def sentences(count: int = COUNT, seed: int = 1) -> list[str]:
    """Of six to forty words of a real text."""
    words, rng = WORDS.read_text("utf-8").split(), random.Random(seed)
    starts = [(rng.randrange(len(words) - 40), rng.randint(6, 40)) for _ in range(count)]
    return [" ".join(words[start : start + length]) for start, length in starts]


def ours(url: str, model: str, texts: Sequence[str], batch: int) -> tuple[float, list[float], int]:
    """Seconds for all of them, the first vector, and tokens."""
    began, first, tokens = time.perf_counter(), [], 0
    for start in range(0, len(texts), batch):
        body = json.dumps({"model": model, "input": texts[start : start + batch], "encoding_format": "float"}).encode()
        asked = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=600) as answer:
            found = json.load(answer)
        first = first or found["data"][0]["embedding"]
        tokens += found["usage"]["prompt_tokens"]
    return time.perf_counter() - began, first, tokens


def main() -> None:
    """Both in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--python", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    it = parser.parse_args()
    texts = sentences()
    command = [it.python, "-c", OTHER, it.folder, str(it.threads)]
    mine, theirs, tokens, cosine = [], [], 0, 0.0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        print(json.dumps(texts), file=other.stdin, flush=True)
        for _ in range(it.rounds + 1):
            seconds, first, tokens = ours(it.url, it.model, texts, COUNT)
            mine.append(seconds)
            print("go", file=other.stdin, flush=True)
            seconds, beside = json.loads(other.stdout.readline())
            theirs.append(seconds)
            print(f"round: neuron {mine[-1]:.2f} s, transformers {theirs[-1]:.2f} s", flush=True)
            cosine = sum(a * b for a, b in zip(first, beside, strict=True))
        other.stdin.close()
    we, they = statistics.median(mine[1:]), statistics.median(theirs[1:])
    print(f"{len(texts)} sentences, {tokens} tokens; cosine of the first {cosine:.6f}")
    print(f"neuron {we:.2f} s, {len(texts) / we:.0f} a second, {tokens / we:.0f} tokens/s; rounds {mine[1:]}")
    print(f"transformers {they:.2f} s, {len(texts) / they:.0f} a second; rounds {theirs[1:]}")
    print(f"ratio {they / we:.2f}")


if __name__ == "__main__":
    main()
