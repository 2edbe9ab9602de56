"""Asks an installed gateway: both dialects, then one answer during which the gateway is told to end. `ask.py PID`."""

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

URL = "http://127.0.0.1:31313/v1"
MODEL = "smollm2-135m-instruct"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def main() -> int:
    openai = json.load(post("chat/completions", messages=QUESTION, temperature=0, max_tokens=16))
    said(openai["choices"][0]["message"]["content"], "OpenAI")
    anthropic = json.load(post("messages", messages=QUESTION, temperature=0, max_tokens=16))
    said(anthropic["content"][0]["text"], "Anthropic")
    if len(sys.argv) > 1:
        drained(int(sys.argv[1]))
    return 0


def drained(pid: int) -> None:
    """The answer that was under way at SIGTERM is whole."""
    story = [{"role": "user", "content": "Tell me a long story about a lighthouse."}]
    lines = data(
        post("chat/completions", messages=story, stream=True, max_tokens=200, stream_options={"include_usage": True})
    )
    next(lines)
    os.kill(pid, signal.SIGTERM)
    *_, usage, last = lines
    assert last == "[DONE]", last
    sys.stdout.write(
        f"SIGTERM: the answer went on to its end, {json.loads(usage)['usage']['completion_tokens']} tokens\n"
    )


def said(text: str, dialect: str) -> None:
    sys.stdout.write(f"{dialect}: {text}\n")
    assert "Paris" in text, text


def data(answer: Any) -> Iterator[str]:
    for line in answer:
        if line.startswith(b"data: "):
            yield line[6:].decode().strip()


def post(path: str, **body: Any) -> Any:
    content = json.dumps({"model": MODEL, **body}).encode()
    request = urllib.request.Request(f"{URL}/{path}", content, {"Content-Type": "application/json"})
    return urllib.request.urlopen(request, timeout=900)


if __name__ == "__main__":
    sys.exit(main())
