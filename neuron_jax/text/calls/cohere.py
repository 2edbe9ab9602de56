"""Cohere's turns of Command R7B and later: thoughts, calls and the answer, each between markers of its own.

Source: https://docs.cohere.com/docs/prompting-command-r, and the chat templates of these models. Calls are a list of
`{"tool_call_id": "0", "tool_name": "...", "parameters": {...}}`.
"""

from neuron_jax.text.calls.json_calls import json_calls
from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Waits

THINKING, END_THINKING = "<|START_THINKING|>", "<|END_THINKING|>"
ACTION, END_ACTION = "<|START_ACTION|>", "<|END_ACTION|>"
MARKERS = (THINKING, END_THINKING, ACTION, END_ACTION)
ANSWER = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")


def read(reader: CallReader) -> Waits[None]:
    """A whole turn. An answer that stands between no markers is an answer."""
    source = reader.source
    while True:
        marker = yield from source.until((*MARKERS, *ANSWER), reader.say, reader.say_unless_cut)
        if marker is None:
            return
        if marker == THINKING:
            reader.thinking = True
            yield from source.until((END_THINKING,), reader.think, reader.leave)
            reader.thinking = False
        elif marker == ACTION:
            source.mark()
            if (yield from json_calls(reader)):
                reader.accept()
            else:
                reader.refuse()
