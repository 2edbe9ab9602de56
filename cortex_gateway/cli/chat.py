"""A conversation in the terminal over /v1/chat/completions. Knows the dialect's stream, no fleet."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from attrs import define, field, frozen
from rich.console import Console
from rich.status import Status

from cortex_gateway.cli.api import Api
from cortex_gateway.cli.progress import in_words
from cortex_gateway.placement.snapshot import LoadStatus
from cortex_gateway.speed import tokens_per_second

HELP = "Type a message. /clear forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer."


@frozen(kw_only=True)
class ChatReply:
    """What came back. `tokens_per_second` counts from the first token to the last; None where both came at once."""

    text: str
    tokens: int = 0
    tokens_per_second: float | None = None
    stopped: bool = False


@define(kw_only=True)
class Talk:
    """One conversation; `history` is what is sent."""

    api: Api
    model: str
    out: Console
    options: dict[str, Any] = field(factory=dict)  # temperature, max_tokens …, sent as they are
    history: list[dict[str, str]] = field(factory=list)

    def ask(self, prompt: str) -> ChatReply:
        """Stream the answer to the terminal and remember both sides. Ctrl-C ends it early. Raises CommandError."""
        self.history.append({"role": "user", "content": prompt})
        try:
            answer = self._stream()
        except BaseException:
            self.history.pop()  # an unanswered question would be asked again with the next one
            raise
        self.history.append({"role": "assistant", "content": answer.text})
        return answer

    def non_streaming(self, prompt: str) -> dict[str, Any]:
        """The answer in one piece, for scripts; nothing is printed. `seconds` is the whole time, a cold load included.

        Raises CommandError.
        """
        began = time.perf_counter()
        messages = [*self.history, {"role": "user", "content": prompt}]
        answer = self.api.post("/v1/chat/completions", {"model": self.model, "messages": messages, **self.options})
        choice = answer["choices"][0]
        reasoning = choice["message"].get("reasoning_content")
        return {
            "text": choice["message"].get("content") or "",
            **({"reasoning": reasoning} if reasoning else {}),
            "finish_reason": choice["finish_reason"],
            "model": answer["model"],
            "usage": answer["usage"],
            "seconds": round(time.perf_counter() - began, 3),
        }

    def talk(self, read: Callable[[str], str]) -> None:
        """Ask and answer until /quit or the end of the input; `read` shows a prompt and gives a line."""
        self.out.print(HELP, style="dim")
        while (line := _line(read)) is not None:
            if line == "/clear":
                self.history = [turn for turn in self.history if turn["role"] == "system"]
            elif line:
                answer = self.ask(line)
                self.out.print(summary(answer), style="dim")

    def _stream(self) -> ChatReply:
        body = {
            "model": self.model,
            "messages": self.history,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.options,
        }
        pieces: list[str] = []
        times: list[float] = []
        tokens, stopped = 0, False
        try:
            with self._waiting() as sign, self.api.events("/v1/chat/completions", body, sign.waits) as events:
                for event in events:
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                    if _says(event):
                        sign.ended()
                        self._show(event, pieces)
                        times.append(time.perf_counter())
        except KeyboardInterrupt:
            stopped = True
        self.out.print()
        speed = tokens_per_second(tokens, times[-1] - times[0]) if times else None
        return ChatReply(text="".join(pieces), tokens=tokens, tokens_per_second=speed, stopped=stopped)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator["_Sign"]:
        """A sign of life on a terminal until the answer begins: the model may have to be loaded first."""
        words = f"waiting for {self.model}"
        with contextlib.ExitStack() as shown:
            status = shown.enter_context(self.out.status(f"[dim]{words}[/]")) if self.out.is_terminal else None
            yield _Sign(words, status, shown.close)

    def _show(self, event: dict[str, Any], pieces: list[str]) -> None:
        """Print what a chunk adds."""
        for choice in event["choices"]:
            delta = choice.get("delta", {})
            if reasoning := delta.get("reasoning_content"):
                self._write(reasoning, style="dim")
            if content := delta.get("content"):
                self._write(content)
                pieces.append(content)

    def _write(self, text: str, style: str | None = None) -> None:
        self.out.print(text, end="", style=style, markup=False, highlight=False, soft_wrap=True)
        self.out.file.flush()


@frozen
class _Sign:
    """What a terminal shows meanwhile, if there is one; `ended` takes it away."""

    words: str
    status: Status | None
    ended: Callable[[], None]

    def waits(self, told: dict[str, Any]) -> None:
        """Show what is waited for, and how far that is."""
        if self.status:
            self.status.update(f"[dim]{self.words}: {in_words(LoadStatus(**told))}[/]")


def _says(event: dict[str, Any]) -> bool:
    """Whether a chunk adds anything that is shown."""
    deltas = [choice.get("delta", {}) for choice in event.get("choices", [])]
    return any(delta.get("reasoning_content") or delta.get("content") for delta in deltas)


def summary(answer: ChatReply) -> str:
    """`8 tokens, 42.1 tokens/s`."""
    parts = [f"{answer.tokens} {'token' if answer.tokens == 1 else 'tokens'}"] if answer.tokens else []
    if answer.tokens_per_second:
        parts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    return ", ".join([*parts, "stopped"] if answer.stopped else parts)


def _line(read: Callable[[str], str]) -> str | None:
    try:
        line = read("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line in ("/quit", "/exit", "/bye") else line
