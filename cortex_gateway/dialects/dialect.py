"""What a dialect is, as one record: its routes, and how it reads, answers and fails; knows no dialect, no HTTP and no fleet.

To add one: a folder beside this file that makes a `Dialect`, and a line in `table.py`. docs/architecture.md has the steps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from attrs import frozen

from cortex_gateway.dialects.events import Event, Usage
from cortex_gateway.dialects.failure import Failure
from cortex_gateway.dialects.models_list import Entry

EVENT_STREAM = "text/event-stream; charset=utf-8"


@frozen
class Progress:
    """What a request waits for, and how far that is: `total` 0 where nobody knows, or nothing is counted."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""


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

    def keep_alive(self, waits: Progress | None) -> bytes:
        """What a client is sent that has heard nothing for a while; it may be the first thing that he is sent.

        `waits`: for what, where the gateway knows and the neuron does not say.
        """
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

    def keep_alive(self, waits: Progress | None) -> bytes: ...

    def fail(self, failure: Failure) -> bytes: ...


@frozen
class Timing:
    """How long a request has taken so far, in seconds.

    Attributes:
        elapsed: since it came.
        waited: of that, until there was a replica to serve it; all of it where there is none yet.
    """

    elapsed: float = 0.0
    waited: float = 0.0


@frozen
class AnswerId:
    """What tells one answer from all others.

    Attributes:
        request: the request's id, the client's own where it sent one.
        unique: 32 hex digits, for the ids that a dialect makes.
        created: when its request came, in seconds since 1970, for the dialects that tell it.
        timing: how long it has taken by now.
    """

    request: str
    unique: str
    created: int = 0
    timing: Callable[[], Timing] = Timing


@frozen
class NonStreamingAnswer:
    """An answer that is not a stream: the body to send, or why there is none; and its counts where they are known."""

    body: bytes | Failure
    usage: Usage | None = None


class KeptAnswer(Answer, Protocol):
    """One that may be kept: besides a stream it is a body, which at every moment says how far the answer has got."""

    @property
    def ended(self) -> bool:
        """The body will not change any more."""
        ...

    def queued(self) -> bytes:
        """How its stream begins before a model has it. At most once, before anything else."""
        ...

    def working(self) -> bytes:
        """A model has it now: what its stream says of that, where it has begun."""
        ...

    def cancel(self) -> None:
        """It ends because nobody wants it any more."""
        ...

    def whole(self) -> bytes:
        """The body."""
        ...


@frozen
class Kept:
    """An answer from before: `input` is what it answered and `answer` its body, both the dialect's own JSON.

    A conversation is kept as one, too: `input` has its items, and `answer` what is told of itself.
    """

    id: str
    previous: str | None
    input: bytes
    answer: bytes


@frozen
class Joined:
    """The conversation that an answer is added to at its end. `add`: (it, the answer's body) -> the longer one."""

    id: str
    add: Callable[[Kept, bytes], Kept]


@frozen
class Keep:
    """That an answer is to be kept, so that a later request can go on from it.

    Attributes:
        id: what the client calls the answer.
        previous: the id of the answer before it.
        input: what it answers, as the dialect's own JSON.
        answer: the answer itself.
        background: it is made whether or not the client waits, who may ask for it again later.
        by_itself: under its own id; else it is only added to its conversation.
        joined: its conversation, if it belongs to one.
    """

    id: str
    previous: str | None
    input: bytes
    answer: KeptAnswer
    background: bool = False
    by_itself: bool = True
    joined: Joined | None = None


@frozen
class Earlier:
    """The earlier answers that a request continues.

    Attributes:
        chain: the answers before it, the oldest first; None where one of them is not there.
        others: further answers that it names, those that are there.
        conversation: the one that it names, where that is there.
    """

    chain: tuple[Kept, ...] | None = ()
    others: tuple[Kept, ...] = ()
    conversation: Kept | None = None


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
        keep: how the answer is kept; None where it is not.
        neuron_path: the neuron's route; None = as the `Generation` says.
        dropped: what of the request was left out, a sentence for each, for the log.
    """

    model: str
    stream: bool
    body: Callable[[str], bytes]
    answer: Callable[[AnswerId], Answer]
    non_streaming: Callable[[bytes, AnswerId], NonStreamingAnswer]
    affinity: str | None = None
    keep: Callable[[AnswerId], Keep] | None = None
    neuron_path: str | None = None
    dropped: tuple[str, ...] = ()


@frozen
class GoesOn:
    """A request that cannot be read without answers from before. `decode` raises RefusedError.

    Attributes:
        previous: the last of the answers that it goes on from, which name those before them.
        others: further ones of which it names parts.
        decode: those that were found -> the request.
        conversation: the one that it goes on.
    """

    previous: str | None
    others: frozenset[str]
    decode: Callable[[Earlier], Decoded]
    conversation: str | None = None


@frozen
class Ready:
    """A request that only wants its model to be ready: `answer` is the body that is sent once it is."""

    model: str
    answer: Callable[[AnswerId], bytes]


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
    decode: Callable[[bytes], Decoded | GoesOn | Ready]


@frozen
class ToCount:
    """What a client wants to know of a model's tokens: `body` is resolved model id -> the bytes to post."""

    model: str
    body: Callable[[str], bytes]


@frozen
class Count:
    """A route that tells how many tokens a prompt has and generates none. `decode` raises RefusedError."""

    path: str
    decode: Callable[[bytes], ToCount]
    encode: Callable[[int], bytes]


@frozen
class Tokenizing:
    """A route that a node answers which has the model's tokenizer; its answer is passed on. `decode` raises RefusedError.

    Attributes:
        path: the client's route and the neuron's, a POST.
        decode: the body -> what the node is asked.
    """

    path: str
    decode: Callable[[bytes], ToCount]


@frozen
class KeptAnswers:
    """Routes for answers that were kept: GET and DELETE `path`/ID, GET `path`/ID/input_items, POST `path`/ID/cancel.

    Attributes:
        prefix: how the ids of answers begin.
        items: (the answer and those before it, the oldest first; the query) -> a page of what it answers. Raises RefusedError.
        deleted: id -> the body that says that it is gone.
        missing: id -> what is told where there is none.
        running: body -> whether it may still be cancelled. Raises RefusedError where it never could.
    """

    path: str
    prefix: str
    items: Callable[[Sequence[Kept], Mapping[str, str]], bytes]
    deleted: Callable[[str], bytes]
    missing: Callable[[str], Failure]
    running: Callable[[bytes], bool]


@frozen
class Change:
    """How a conversation is changed, and what is told of it then. `make` raises RefusedError."""

    make: Callable[[Kept], Kept]
    told: Callable[[Kept], bytes]


@frozen
class Conversations:
    """Routes for conversations: POST `path`; GET, POST and DELETE `path`/ID; GET and POST `path`/ID/items; GET and DELETE
    `path`/ID/items/ITEM. What reads a body or a query raises RefusedError.

    Attributes:
        prefix: how their ids begin.
        begin: (body, what makes it unique) -> a new one.
        describe: body -> the change of what is told of it.
        add: (body, what makes its items unique) -> the change by more items.
        remove: an item's id -> the change that takes it away.
        items: (the conversation, the query) -> a page of its items.
        item: (the conversation, an item's id) -> that one.
        deleted: id -> the body that says that it is gone.
        missing: id -> what is told where there is none.
    """

    path: str
    prefix: str
    begin: Callable[[bytes, AnswerId], Kept]
    describe: Callable[[bytes], Change]
    add: Callable[[bytes, AnswerId], Change]
    remove: Callable[[str], Change]
    items: Callable[[Kept, Mapping[str, str]], bytes]
    item: Callable[[Kept, str], bytes]
    deleted: Callable[[str], bytes]
    missing: Callable[[str], Failure]


@frozen
class Models:
    """A route that tells what models there are, of those that its sender may use.

    Attributes:
        encode: the entries of `models_list` -> the body.
        wanted: a request's body -> the name of the one that it asks about, whose entry alone is encoded; None: all are.
            Raises RefusedError.
    """

    method: Literal["GET", "POST"]
    path: str
    encode: Callable[[Sequence[Entry]], bytes]
    wanted: Callable[[bytes], str] | None = None


@frozen
class Fixed:
    """A route that has one answer for whatever is asked: a body, or why there is none."""

    method: Literal["GET", "POST"]
    path: str
    answer: bytes | Failure


Row = Generation | Count | Tokenizing | KeptAnswers | Conversations | Models | Fixed


@frozen
class Dialect:
    """One way to talk to the gateway.

    Attributes:
        prefixes: errors of a path that is one of these or lies below one are told in this dialect, whether or not there is
            such a path. A dialect with none tells those of all other paths.
        error: (failure, request id) -> the body of an answer that is an error.
        routes: all its routes that depend on it.
        stream_type: the content type of a stream.
        json_only: a body must call itself JSON. Where it need not, what keeps strangers' pages out is their Origin alone,
            which every browser sends with a POST.
    """

    prefixes: tuple[str, ...]
    error: Callable[[Failure, str], bytes]
    routes: tuple[Row, ...]
    stream_type: str = EVENT_STREAM
    json_only: bool = True

    def covers(self, path: str) -> bool:
        """Whether errors on `path` are this dialect's to tell."""
        return any(path == prefix or path.startswith(prefix + "/") for prefix in self.prefixes)
