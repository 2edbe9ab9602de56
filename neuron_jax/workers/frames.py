"""The wire between the daemon and an engine process: length-prefixed msgpack; knows no asyncio, no JAX, no HTTP.

    frame := uint32 little-endian length, then msgpack of one tagged record below
    daemon -> engine   LoadEngine (first, once), Vocabulary (once, where it is needed), Submit, Cancel, Shutdown
    engine -> daemon   Progress*, then Ready or EngineFailed; after Ready: StepOutputs, one a step, and LoadReport when idle

Other weights of the same model are put in place while it serves:

    daemon -> engine   ReadWeights, then SwapWeights or DropWeights
    engine -> daemon   WeightsRead, WeightsSwapped

A model that reads whole texts is sent Embed in place of Submit, and answers with Vectors.

A model may be served by several processes, its ranks (`GroupMember`). Rank 0, the leader, speaks all of the above; the others

    daemon -> rank     LoadEngine (first, once), Shutdown
    rank -> daemon     Joined, Sane, then Ready or EngineFailed

which the leader says as well, before all of these `Listening`. Every rank says `Pulse` all the time.

Ids, ints, floats and strings cross, and finished vectors as bytes; no other array does. When either side closes the socket
the engine process ends.
"""

import struct
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

MAX_FRAME = 64 * 1024 * 1024
"""Bytes. A 1M-token prompt is 5 MB; anything larger than this is a broken peer, not a request."""

LEAST_CONTEXT = 256
"""Tokens. A model that cannot hold this much of one conversation is refused rather than loaded."""


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How one request draws its tokens. Ranges are checked by the daemon; the defaults change nothing."""

    temperature: float = 1.0  # 0 = greedy
    top_k: int = 0  # 0 = all
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from every token generated before
    frequency_penalty: float = 0.0  # subtracted once per time generated
    repetition_penalty: float = 1.0  # HF rule, over prompt and output
    seed: int = 0  # uint64; the daemon draws one where the client gave none
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  # None = not wanted; 0..20 = the chosen token's plus that many alternatives


class GroupMember(Struct, frozen=True, omit_defaults=True):
    """One rank's place among the `world` processes that serve a model together.

    Rank 0 leads: the others come to it at `coordinator`, HOST:PORT, and are handed the steps there (`workers.rendezvous`).
    Where its port is 0 it chooses one, and tells in `Listening` what the others are started with.
    """

    rank: int
    world: int
    host: str = "127.0.0.1"  # this rank's host, as the other ranks reach it
    coordinator: str = "127.0.0.1:0"
    secret: str = ""  # who does not know it is handed no steps
    deadline: float = 60.0  # seconds for all ranks to meet


class EngineSpec(Struct, frozen=True, omit_defaults=True):
    """Everything an engine process needs to serve one model. Zero means "decide from the memory plan"."""

    model_id: str
    path: str  # local folder (config.json + safetensors) or .gguf file
    platform: Literal["cpu", "cuda"] = "cpu"
    devices: tuple[int, ...] = (0,)  # of this process; with a group the first rank's come first in the mesh
    tensor_parallel: int = 1  # devices of all processes
    expert_parallel: int = (
        1  # parts that the experts are split into, each whole on tensor_parallel / expert_parallel of these
    )
    group: GroupMember | None = None  # None: one process serves the model
    quant: str = "auto"  # auto | none | stored | int8 | int4 | fp8
    kv_dtype: str = "auto"  # auto | float32 | bfloat16 | int8 | fp8
    attention: str = "auto"  # auto | native | pallas | xla
    memory_mb: int = 0  # what the engine may use on each device; 0 = what is free
    kv_mb: int = 0  # KV pool over all devices
    max_context: int = 0  # tokens of one request, prompt and output
    max_slots: int = 0  # requests running at once
    page_size: int = 16
    chunk_tokens: int = 0  # most tokens in one step, or one for each slot and guess
    decode_steps: int = 0  # most tokens of a request in one decode step
    speculate: int = -1  # tokens guessed ahead in a text that repeats itself; 0 = none, -1 = where it helps
    deterministic: bool = False  # the same bits however a request is served, at a cost where XLA computes
    threads: int = 0  # that compute on a CPU; 0 = as many as are worth it
    prefix_cache: bool = True  # off: how soon an answer begins tells nobody what others have asked
    adapters: tuple[str, ...] = ()  # folders of adapters, as PEFT saves them
    transform: str = ""  # file with a function of that name, see `models.spec.Transform`
    compile_cache: str = ""  # folder of JAX's persistent cache; "" = off
    step_seconds: float = 30.0  # a step that takes longer, and many times as long as usual, hangs
    first_seconds: float = 300.0  # the same for a program's first run, which nothing is known of
    silent_seconds: float = 10.0  # a process that says nothing for so long does not run any more


class LoadEngine(Struct, tag="load", frozen=True):
    spec: EngineSpec


class Constraint(Struct, frozen=True, omit_defaults=True):
    """What a text must look like. `source` is a JSON schema, a regular expression or a grammar, for `choice` a JSON list of
    strings, for `calls` what `text.bound_calls` writes; `json_object` needs none. With `after` it holds behind the first of
    that token, which ends the thinking; with `opens` only where the text begins with that one, which begins the thinking,
    and else from the beginning.
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "lark", "gbnf", "calls"]
    source: str = ""
    after: int | None = None
    opens: int | None = None


class Thoughts(Struct, frozen=True, omit_defaults=True):
    """How long a text may think: after `most` tokens of thoughts `closing` is written in its place. Thoughts end with the
    token `closes`, which is one of `closing`. They begin where the text does, with `opens` only where it begins with those.
    """

    most: int
    closes: int
    closing: tuple[int, ...]
    opens: tuple[int, ...] = ()


class Vocabulary(Struct, tag="vocabulary", frozen=True):
    """What each token's bytes are; sent once, before the first request with a constraint. Tokens without bytes, and the
    `special` ones, stand for no text; those of `ends` end one.
    """

    tokens: list[bytes]
    special: tuple[int, ...]
    ends: tuple[int, ...]


class Submit(Struct, tag="submit", frozen=True, omit_defaults=True):
    """Generate after `prompt` (ids, at least one). Answered by outputs with this `request` until one has a `finish`.

    `request` is unique in an engine; `EngineClient` gives the number that is sent. `begins`: tokens that the text begins
    with, whatever would be drawn. They are told like any others, so it is by them that log-probabilities of a prompt are.
    """

    request: int
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    stop_ids: tuple[int, ...] = ()  # end-of-sequence ids included
    ignore_eos: bool = False  # then `stop_ids` do not end the request
    constraint: Constraint | None = None
    thoughts: Thoughts | None = None
    begins: tuple[int, ...] = ()  # without a constraint, thoughts or min_tokens
    adapter: int = 0  # a number of `EngineSpec.adapters`, from 1; 0 = none


class Embed(Struct, tag="embed", frozen=True, omit_defaults=True):
    """Make a vector of each of `texts` (ids, at least one each), or a score. Answered by `Vectors` until none is left.

    `seconds`: of each text the place where its second part begins, where a model tells two parts apart; 0 = there is none.
    """

    request: int
    texts: list[list[int]]
    seconds: list[int] = []


class Cancel(Struct, tag="cancel", frozen=True):
    """Forget the request within one step. Unknown or finished requests are ignored; no output follows."""

    request: int


class ReadWeights(Struct, tag="read_weights", frozen=True):
    """Read the weights at `path` beside those that serve, and hold them ready. Answered by WeightsRead; requests run on.

    `in_place`: there is no room for both. Then it is only seen whether they fit, and SwapWeights reads them.
    """

    path: str
    in_place: bool = False


class SwapWeights(Struct, tag="swap_weights", frozen=True):
    """Serve with what was read from the next step on. Answered by WeightsSwapped. `in_place` it takes as long as reading does,
    and the process ends if they cannot be read after all, for the old ones are gone by then."""


class DropWeights(Struct, tag="drop_weights", frozen=True):
    """Forget what was read, if anything was."""


class Shutdown(Struct, tag="shutdown", frozen=True):
    """End the process now. The daemon drains first, by waiting for its own requests."""


class Progress(Struct, tag="progress", frozen=True):
    """`phase` is one of weights, compile, cache; `done` of `total` in `unit` (bytes or programs)."""

    phase: str
    done: int
    total: int
    unit: str


class Listening(Struct, tag="listening", frozen=True):
    """Rank 0 awaits the others here."""

    coordinator: str


class Joined(Struct, tag="joined", frozen=True):
    """All ranks have met: init_ok. `devices` are this rank's, as JAX names them."""

    rank: int
    devices: tuple[str, ...]


class Sane(Struct, tag="sane", frozen=True):
    """What the rank observed in the sanity all-reduce, to which each rank contributes 1. It must be the world's size."""

    rank: int
    value: int


class Pulse(Struct, tag="pulse", frozen=True):
    """The process lives. `busy`: seconds that `what` has taken by now, 0 when idle; it may take `allowed`, 0 = for ever."""

    busy: float = 0.0
    allowed: float = 0.0
    what: str = ""


class MemoryRow(Struct, frozen=True):
    """One line of the memory plan: what takes how many bytes on each device."""

    what: str
    bytes: int


class Ready(Struct, tag="ready", frozen=True):
    """The engine serves. `max_context` bounds prompt + output of one request; `plan` is the printed memory plan."""

    max_context: int
    max_slots: int
    page_size: int
    pages: int
    quant: str
    quant_reason: str
    kv_dtype: str
    kv_reason: str
    attention: str
    attention_reason: str
    compute_dtype: str
    devices: tuple[str, ...]
    plan: tuple[MemoryRow, ...]
    load_seconds: float
    width: int = 0  # values of what is made of a text; 0: it generates
    deterministic: bool = False
    deterministic_reason: str = ""
    threads: int = 0


class EngineFailed(Struct, tag="failed", frozen=True):
    """The engine gives up and exits; `kind` is one of `workers.faults`. After Ready it says of what a step died."""

    kind: str
    message: str
    plan: tuple[MemoryRow, ...] = ()


class Alternative(Struct, frozen=True, array_like=True):
    token: int
    logprob: float


class Output(Struct, frozen=True, omit_defaults=True):
    """New tokens of one request. `finish`: stop (an id of stop_ids, which is the last token) | length | error."""

    request: int
    tokens: list[int]
    logprobs: list[float] | None = None
    alternatives: list[list[Alternative]] | None = None
    finish: Literal["stop", "complete", "length", "error"] | None = None
    error: str | None = None
    cached_tokens: int = 0  # prompt tokens that came from the prefix cache; on a request's first output


class EngineLoad(Struct, frozen=True):
    """How busy the engine is; rates are exponential averages in tokens per second, 0 before the first."""

    running: int = 0
    waiting: int = 0
    free_pages: int = 0
    pages: int = 0
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    preemptions: int = 0
    steps: int = 0
    compiles: int = 0  # programs built after Ready
    programs: int = 0  # those that are ready, of
    programs_planned: int = 0
    kept_pages: int = 0  # free ones that the prefix cache can still find
    prefix_lookup_tokens: int = 0  # prompt tokens that the prefix cache was asked for
    prefix_hit_tokens: int = 0  # those that it had
    guessed_tokens: int = 0  # tokens that were guessed ahead, and computed
    right_guesses: int = 0  # those that were right
    drafted_tokens: int = 0  # of the guessed ones, those that the model guessed by a layer for that
    right_drafts: int = 0
    steady_compiles: int = 0  # programs built after Ready that the plan did not know: a step waited for each of them
    host_ms: float = 0.0  # of a step, averaged: from one result to asking for the next; the device works meanwhile
    wait_ms: float = 0.0  # of a step, averaged: from asking for a result to having it
    dropped: tuple[str, ...] = ()  # programs that could not be compiled, and that the engine does without


class StepOutputs(Struct, tag="step", frozen=True):
    """Everything one engine step produced, for all its requests."""

    outputs: list[Output]
    load: EngineLoad


class PromptsRead(Struct, tag="prompts", frozen=True):
    """How far prompts are: of each request (its number, tokens that are computed or about to be, those of them that the
    prefix cache had)."""

    prompts: list[tuple[int, int, int]]


class LoadReport(Struct, tag="report", frozen=True):
    """The load after something that gave no tokens (a cancel, going idle)."""

    load: EngineLoad


class Vectors(Struct, tag="vectors", frozen=True):
    """What was made of some texts of a request, those at `places`: `values` are as many lines of little-endian float32."""

    request: int
    places: list[int]
    values: bytes
    load: EngineLoad


class WeightsRead(Struct, tag="weights_read", frozen=True, omit_defaults=True):
    """Other weights are ready to be swapped in; with a `kind`, one of `workers.faults`, they are not, and nothing is held."""

    kind: str = ""
    message: str = ""


class WeightsSwapped(Struct, tag="weights_swapped", frozen=True):
    """All later outputs are what the new weights say."""


Command = LoadEngine | Vocabulary | Submit | Embed | Cancel | ReadWeights | SwapWeights | DropWeights | Shutdown
Event = (
    Progress
    | Listening
    | Joined
    | Sane
    | Pulse
    | Ready
    | EngineFailed
    | StepOutputs
    | PromptsRead
    | Vectors
    | LoadReport
    | WeightsRead
    | WeightsSwapped
)

_HEADER = struct.Struct("<I")
_encoder = msgspec.msgpack.Encoder()
T = TypeVar("T")


class FrameError(ValueError):
    """The peer sent bytes that are not a frame of this protocol."""


def encode(message: Struct) -> bytes:
    """One frame, header included."""
    body = _encoder.encode(message)
    assert len(body) <= MAX_FRAME, f"frame of {len(body)} bytes"
    return _HEADER.pack(len(body)) + body


class FrameReader(Generic[T]):
    """Cuts a byte stream into frames of one kind of record; any chunking gives the same frames."""

    def __init__(self, kind: Any) -> None:
        self._buffer = bytearray()
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)

    def feed(self, chunk: bytes) -> list[T]:
        """The records completed by `chunk`. Raises FrameError on anything that is none."""
        self._buffer += chunk
        try:
            return [self._decoder.decode(body) for body in self._bodies()]
        except msgspec.MsgspecError as error:
            raise FrameError(str(error)) from error

    def _bodies(self) -> Iterator[bytes]:
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length > MAX_FRAME:
                raise FrameError(f"a frame of {length} bytes; at most {MAX_FRAME} are allowed")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield body


class CommandReader(FrameReader[Command]):
    """Bytes from the daemon -> commands."""

    def __init__(self) -> None:
        super().__init__(Command)


class EventReader(FrameReader[Event]):
    """Bytes from an engine process -> events."""

    def __init__(self) -> None:
        super().__init__(Event)
