"""A neuron's chat stream as that of a dialect which encodes neutral events; knows what metrics count, and no wire format."""

from cortex_gateway.dialects.chat import ChatDecoder
from cortex_gateway.dialects.dialect import Encoder, Progress
from cortex_gateway.dialects.events import Error, Event, Reasoning, Text, ToolArguments, ToolStart, Usage
from cortex_gateway.dialects.failure import Failure


class Translation:
    """A `dialect.Answer` made of an encoder."""

    def __init__(self, encoder: Encoder) -> None:
        self.passed = 0
        self.failure: Failure | None = None
        self._decoder = ChatDecoder()
        self._encoder = encoder

    @property
    def usage(self) -> Usage | None:
        """See `dialect.Answer`."""
        return self._decoder.usage

    def feed(self, chunk: bytes) -> bytes:
        """See `dialect.Answer`."""
        return b"".join(map(self._encode, self._decoder.feed(chunk)))

    def close(self) -> bytes:
        """See `dialect.Answer`."""
        return b"".join(map(self._encode, self._decoder.close()))

    def keep_alive(self, waits: Progress | None) -> bytes:
        """See `dialect.Answer`."""
        return self._encoder.keep_alive(None if self.passed else self._decoder.waits or waits)

    def fail(self, failure: Failure) -> bytes:
        """See `dialect.Answer`."""
        self.failure = failure
        return self._encoder.fail(failure)

    def _encode(self, event: Event) -> bytes:
        match event:
            case Error(failure):
                return self.fail(failure)
            case Text() | Reasoning() | ToolStart() | ToolArguments():
                self.passed += 1
        return self._encoder.feed(event)
