"""How fast answers that have a form come, beside free ones: streams of one neuron, measured in turns.

    python bench/structured.py http://127.0.0.1:13131 demo --streams 1 --rounds 14

Prints the tokens a second between the first text and the last of each kind, median and best, and their part of the free ones.
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

TOKENS = 100
FIELDS = {f"field_number_{i}": {"enum": ["low", "medium", "high"]} for i in range(12)}
KINDS: dict[str, dict[str, Any]] = {
    "free": {"ignore_eos": True},
    "one long string": {"guided_json": {"type": "string", "minLength": 2000}},
    "twelve fields": {
        "guided_json": {
            "type": "object",
            "properties": FIELDS,
            "required": list(FIELDS),
            "additionalProperties": False,
        }
    },
}


def stream(client: httpx.Client, model: str, kind: dict[str, Any]) -> tuple[int, float, float]:
    """Tokens, and when the first text and the end came."""
    asked = {
        "model": model,
        "messages": [{"role": "user", "content": "Write a long story about a fox."}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **kind,
    }
    first, tokens = 0.0, 0
    with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {"choices": []}
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
            if not first and any(choice["delta"].get("content") for choice in chunk["choices"]):
                first = time.perf_counter()
    return tokens, first, time.perf_counter()


def rate(client: httpx.Client, model: str, kind: dict[str, Any], streams: int) -> float:
    """Tokens a second of so many streams together."""
    with ThreadPoolExecutor(streams) as pool:
        ended = list(pool.map(lambda _: stream(client, model, kind), range(streams)))
    return sum(tokens for tokens, _, _ in ended) / (max(e for *_, e in ended) - min(first for _, first, _ in ended))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=14)
    told = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in KINDS}
    with httpx.Client(base_url=told.url, timeout=600) as client:
        for _ in range(told.rounds):
            for name, kind in KINDS.items():
                found[name].append(rate(client, told.model, kind, told.streams))
    free = statistics.median(found["free"])
    for name, rates in found.items():
        median = statistics.median(rates)
        print(f"{name:16} median {median:6.1f} tok/s, best {max(rates):6.1f}, {median / free:.2f} of free")


if __name__ == "__main__":
    main()
