"""The wire between the daemon and a process that runs what strangers wrote: chat templates and grammars; knows no asyncio
and no sockets.

    frame := uint32 little-endian length, then a byte that says how the rest is written: msgpack, or JSON for numbers of
             more than 64 bits, which msgpack has not
    daemon -> renderer   Render or Check, one after the other
    renderer -> daemon   one answer to each: Done, Refused, TooLong or Unfit

The renderer runs programs that nobody here wrote: what it answers is decoded as one of four records and nothing else.
"""

import struct
from typing import Any

import msgspec
from msgspec import Struct

from neuron_jax.workers.frames import Constraint

HEADER = struct.Struct("<I")
_HEAD = struct.Struct("<Ic")
_MSGPACK, _JSON = msgspec.msgpack.Encoder(), msgspec.json.Encoder()


class Render(Struct, tag="render", frozen=True, omit_defaults=True):
    """Render `chat` by the format `number`, which is sent along once; without a chat it is compiled only.

    `most`: tokens of the prompt, None = any number. The fields are those of `text.prompt`, as JSON has them.
    """

    number: int
    format: dict[str, Any] | None = None
    chat: dict[str, Any] | None = None
    most: int | None = None


class Check(Struct, tag="check", frozen=True):
    """Is any text made by this constraint? The answer is Done or Unfit."""

    constraint: Constraint


class Done(Struct, tag="done", frozen=True):
    """The prompt; see `text.prompt.Rendered`."""

    text: str
    mark: str


class Refused(Struct, tag="refused", frozen=True):
    """The template's own error, or one of its bounds. `last`: the process ends after it."""

    message: str
    last: bool = False


class TooLong(Struct, tag="too_long", frozen=True):
    """The prompt surely has more tokens than `most`; about so many."""

    tokens: int


class Unfit(Struct, tag="unfit", frozen=True):
    """The constraint is none, or has these keywords, which nobody here carries out."""

    message: str
    keywords: tuple[str, ...] = ()


Task = Render | Check
Answer = Done | Refused | TooLong | Unfit


def encode(message: Struct) -> bytearray:
    """One frame, header included; made in one place, since a long chat need not be here three times."""
    frame, kind = bytearray(_HEAD.size), b"m"
    try:
        _MSGPACK.encode_into(message, frame, _HEAD.size)
    except OverflowError:
        frame, kind = bytearray(_HEAD.size), b"j"
        _JSON.encode_into(message, frame, _HEAD.size)
    _HEAD.pack_into(frame, 0, len(frame) - HEADER.size, kind)
    return frame


def decode_task(body: bytes) -> Task:
    """The record in a frame from the daemon."""
    kind, rest = body[:1], memoryview(body)[1:]
    found: Task = msgspec.json.decode(rest, type=Task) if kind == b"j" else msgspec.msgpack.decode(rest, type=Task)
    return found


def decode_answer(body: bytes) -> Answer:
    """The record in a frame from the renderer. Raises msgspec.MsgspecError."""
    answer: Answer = msgspec.msgpack.decode(memoryview(body)[1:], type=Answer)
    return answer
