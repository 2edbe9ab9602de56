"""What a dialect is, as one record: its routes, and how it reads, answers and fails; knows no dialect, no HTTP and no fleet.

To add one: a folder beside this file that makes a `Dialect`, and a line in `table.py`. docs/architecture.md has the steps.
"""

from collections.abc import Callable
from typing import Protocol

from attrs import frozen

from cortex_gateway.dialects.events import Event, Usage
from cortex_gateway.dialects.failure import Failure

EVENT_STREAM = "text/event-stream; charset=utf-8"


class Answer(Protocol):
    """One stream on its way to a client: a neuron's bytes go in, the client's come out. Each request has its own.

    Attributes:
        passed: pieces of text, reasoning or tool calls that have gone by; each is one token or more.
        failure: the error that the client was sent as the answer's end.
    """

    @property
    def passed(self) -> int: ...

    @property
    def failure(self) -> Failure | None: ...

    @property
    def usage(self) -> Usage | None:
        """The counts as far as they were told, also of an answer that was cut off."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """What to send now of what came: whole events, perhaps none."""
        ...

    def close(self) -> bytes:
        """The last bytes, when the neuron's have ended: those of an error where they ended too early."""
        ...

    def keep_alive(self) -> bytes:
        """What a client is sent that has heard nothing for a while; it may be the first thing that he is sent."""
        ...

    def fail(self, failure: Failure) -> bytes:
        """The last bytes of an answer that something else has ended: the neuron's silence, the gateway's own end."""
        ...


class Encoder(Protocol):
    """Neutral events as the stream of one dialect. It may count and remember: each stream has its own.

    `translation.Translation` makes an Answer of it.
    """

    def feed(self, event: Event) -> bytes:
        """The bytes of any event but an Error, in the order that `grammar` allows."""
        ...

    def keep_alive(self) -> bytes: ...

    def fail(self, failure: Failure) -> bytes: ...


@frozen
class AnswerId:
    """What tells one answer from all others.

    Attributes:
        request: the request's id, the client's own where it sent one.
        unique: 32 hex digits, for the ids that a dialect makes.
    """

    request: str
    unique: str


@frozen
class NonStreamingAnswer:
    """An answer that is not a stream: the body to send, or why there is none; and its counts where they are known."""

    body: bytes | Failure
    usage: Usage | None = None


@frozen
class Decoded:
    """A client's request in terms of a neuron.

    Attributes:
        model: what the client called it.
        stream: whether the answer is a stream.
        body: resolved model id -> the bytes to post.
        answer: makes the answer of a stream.
        non_streaming: the neuron's body, which has any form -> the client's.
        affinity: the conversation that the body names, if it does.
    """

    model: str
    stream: bool
    body: Callable[[str], bytes]
    answer: Callable[[AnswerId], Answer]
    non_streaming: Callable[[bytes, AnswerId], NonStreamingAnswer]
    affinity: str | None = None


@frozen
class Generation:
    """A route on which a model answers. `decode` raises RefusedError.

    Attributes:
        path: the client's route, a POST.
        neuron_path: the neuron's.
        label: what metrics call requests on it.
    """

    path: str
    neuron_path: str
    label: str
    decode: Callable[[bytes], Decoded]


@frozen
class ToCount:
    """A prompt whose tokens a client wants to know: `body` is resolved model id -> the bytes to post to /tokenize."""

    model: str
    body: Callable[[str], bytes]


@frozen
class Count:
    """A route that tells how many tokens a prompt has and generates none. `decode` raises RefusedError."""

    path: str
    decode: Callable[[bytes], ToCount]
    encode: Callable[[int], bytes]


@frozen
class Dialect:
    """One way to talk to the gateway.

    Attributes:
        prefixes: errors of a path that is one of these or lies below one are told in this dialect, whether or not there is
            such a path. A dialect with none tells those of all other paths.
        error: (failure, request id) -> the body of an answer that is an error.
        routes: all its routes that depend on it.
        stream_type: the content type of a stream.
    """

    prefixes: tuple[str, ...]
    error: Callable[[Failure, str], bytes]
    routes: tuple[Generation | Count, ...]
    stream_type: str = EVENT_STREAM

    def covers(self, path: str) -> bool:
        """Whether errors on `path` are this dialect's to tell."""
        return any(path == prefix or path.startswith(prefix + "/") for prefix in self.prefixes)
