"""gpt-oss's Harmony: messages with a channel and an addressee, in which thoughts, calls and the answer stand.

Source: the format's description, https://cookbook.openai.com/articles/openai-harmony
"""

import re

from neuron_jax.text.calls.notations import named
from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Waits

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
ENDS = (START, CHANNEL, END, CALL, RETURN)
MARKERS = (START, CHANNEL, MESSAGE, END, CALL, RETURN, "<|constrain|>")

_TO = re.compile(r"\bto=functions\.([\w.-]+)")


def read(reader: CallReader) -> Waits[None]:
    """A whole turn, which begins behind `<|start|>assistant`."""
    source = reader.source
    marker: str | None = None
    while True:
        while marker not in (START, CHANNEL):
            marker = yield from source.until(ENDS, reader.say, reader.say_unless_cut)
            if marker is None:
                return
        header: list[str] = []
        if (yield from source.until((MESSAGE,), header.append)) is None:
            return
        marker = yield from _message(reader, "".join(header))
        if marker is None:
            return


def _message(reader: CallReader, header: str) -> Waits[str | None]:
    """What follows a header, and which marker ends it."""
    show, last = reader.say, reader.say_unless_cut
    if (to := _TO.search(header)) is not None:
        yield from named(reader, to[1])
        show = last = reader.leave
    elif "analysis" in header:
        reader.thinking, show, last = True, reader.think, reader.leave
    marker = yield from reader.source.until(ENDS, show, last)
    reader.thinking = False
    return marker
