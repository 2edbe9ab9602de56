"""Passes OpenAI bodies through: whole events only, no JSON parsed on the way; reads what metrics need.

What it looks for: tokens that go by, the token counts, and whether the stream ended as it should. The one thing that it
changes is the model's name, where the client has another one for it than the neuron.
"""

import re

import msgspec
from msgspec import Struct

from cortex_gateway.dialects import sse
from cortex_gateway.dialects.chat import CUT_SHORT, ChatUsage
from cortex_gateway.dialects.dialect import NonStreamingAnswer, Progress
from cortex_gateway.dialects.events import Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.openai import errors
from cortex_gateway.dialects.progress import progress_comment

# A token of text, reasoning or a tool call. Inside JSON strings quotes are escaped, so no text can look like this.
_TOKEN = re.compile(rb'"(?:content|reasoning_content|reasoning|text)": ?"(?=[^"])|"tool_calls": ?\[(?=[^\]])')
BEATS = 10
"""Of so many signs of life one is a chunk: some clients only count what they can parse."""
_KEEP = 8192  # the last bytes hold the usage, [DONE] and any error
_HOLD = 256 << 10  # an event larger than this is passed on in pieces
_BLANKS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\][\r\n]*\Z")
_ERROR = re.compile(rb'(?:^|[\r\n])data: ?(\{ ?"error"[^\r\n]*)[\r\n]*\Z')
_COMMENT = re.compile(rb"(?:^|[\r\n]): usage (\{[^\r\n]*\})")
_CHUNK = re.compile(rb'(?:^|[\r\n])data: ?(\{[^\r\n]*"usage": ?\{[^\r\n]*\})')
# No text can look like this either, and no key within an answer's choices has a string under this name.
_MODEL = re.compile(rb'"model": ?"(?:[^"\\]|\\.)*"')


class _NonStreamingBody(Struct):
    usage: ChatUsage | None = None


_USAGE_DECODER = msgspec.json.Decoder(ChatUsage)
_NON_STREAMING_DECODER = msgspec.json.Decoder(_NonStreamingBody)


class StreamRelay:
    """One relayed stream, a `dialect.Answer`. `model`: what the client calls the model; `idle`: a chunk that says nothing."""

    def __init__(self, model: str, idle: bytes = sse.COMMENT) -> None:
        self._idle = idle
        self._beats = 0
        self._ours = _named(model)
        self._theirs: bytes | None = None  # as the neuron names it, once it has
        self.passed = 0  # chunks from the first with a token on, which is one or more tokens each
        self._failed: Failure | None = None  # with what `close` or `fail` ended it
        self._begun: bytes | None = None  # the counts that the neuron told before the first token
        self._tail = b""  # the last bytes that came
        self._held = b""  # an event that has not ended: a client never sees half an event and then an error

    def feed(self, chunk: bytes) -> bytes:
        """The bytes to send now: everything up to the last blank line."""
        self._tail = chunk[-_KEEP:] if len(chunk) >= _KEEP else (self._tail + chunk)[-_KEEP:]
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not chunk.endswith(_BLANKS) and len(chunk) <= _HOLD:
            end = max(chunk.rfind(blank) + len(blank) if blank in chunk else 0 for blank in _BLANKS)
            self._held = chunk[end:]
            chunk = chunk[:end]
        self._count(chunk)
        return self._renamed(chunk)

    def close(self) -> bytes:
        """What `feed` kept back, which is nothing unless the last blank line is missing; of a stream cut short an error."""
        return self._renamed(self._held) if self.done or self.failure else self.fail(CUT_SHORT)

    def keep_alive(self, waits: Progress | None) -> bytes:
        """A comment, which every parser skips, and now and then a chunk."""
        self._beats += 1
        return progress_comment(waits) if self._beats % BEATS else self._idle

    def fail(self, failure: Failure) -> bytes:
        """The error event that ends it in the neuron's place."""
        self._failed = failure
        return errors.event(failure)

    @property
    def done(self) -> bool:
        """The stream said `[DONE]` and nothing after it."""
        return _DONE.search(self._tail) is not None

    @property
    def failure(self) -> Failure | None:
        """What the stream ended with, when that was an error event."""
        return self._failed or self._reported

    @property
    def _reported(self) -> Failure | None:
        """The neuron's own error event."""
        found = _ERROR.search(self._tail)
        return errors.read(500, found[1]) if found else None

    def _renamed(self, ready: bytes) -> bytes:
        """By what the neuron first calls the model all of its names are known."""
        if self._theirs is None:
            found = _MODEL.search(ready)
            if found is None:
                return ready
            self._theirs = found[0]
        return ready if _same(self._theirs, self._ours) else ready.replace(self._theirs, self._ours)

    def _count(self, ready: bytes) -> None:
        """A line end is escaped inside JSON, so it begins a line wherever it is."""
        if self.passed:
            self.passed += ready.count(b"\ndata: {") + ready.startswith(b"data: {")
            return
        if told := _COMMENT.search(ready):
            self._begun = told[1]
        if found := _TOKEN.search(ready):
            self.passed = 1 + ready.count(b"\ndata: {", found.end())

    @property
    def usage(self) -> Usage | None:
        """The counts from the last usage comment (docs/wire.md section 3) or from the last chunk that has them.

        Of a stream that was cut off before: the prompt's as they were told before the first token, and what has passed.
        """
        comments = _COMMENT.findall(self._tail) if self.done else []
        chunks = _CHUNK.findall(self._tail)
        try:
            if comments:
                return _USAGE_DECODER.decode(comments[-1]).neutral()
            if chunks:
                return non_streaming_usage(chunks[-1])
            begun = _USAGE_DECODER.decode(self._begun).neutral() if self._begun else None
        except ValueError:
            return None
        answered = self.passed - (self._reported is not None)
        return begun and Usage(begun.prompt, max(begun.completion, answered), begun.cached)


def relay_non_streaming(raw: bytes, model: str) -> NonStreamingAnswer:
    """A non-streaming answer, as it came but for the name that the client has for the model."""
    ours, found = _named(model), _MODEL.search(raw)
    if found is None or _same(found[0], ours):
        return NonStreamingAnswer(raw, non_streaming_usage(raw))
    renamed = raw[: found.start()] + ours + raw[found.end() :]
    return NonStreamingAnswer(renamed, non_streaming_usage(raw))


def _named(model: str) -> bytes:
    return b'"model":' + msgspec.json.encode(model)


def _same(theirs: bytes, ours: bytes) -> bool:
    """Whether both name the same, with or without a space."""
    return theirs.replace(b'"model": ', b'"model":') == ours


def non_streaming_usage(raw: bytes) -> Usage | None:
    """The counts of a JSON answer, or None."""
    try:
        usage = _NON_STREAMING_DECODER.decode(raw).usage
    except (ValueError, RecursionError):
        return None
    return usage.neutral() if usage else None
