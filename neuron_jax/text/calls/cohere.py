"""Cohere's turns of Command R7B and later, and the calls of Command R: their markers; must not know streams.

Source: https://docs.cohere.com/docs/prompting-command-r, and the chat templates of these models. Calls are a list of
`{"tool_call_id": "0", "tool_name": "...", "parameters": {...}}`.
"""

from neuron_jax.text.calls.json_calls import json_calls
from neuron_jax.text.calls.turns import turns

THINKING, END_THINKING = "<|START_THINKING|>", "<|END_THINKING|>"
ACTION, END_ACTION = "<|START_ACTION|>", "<|END_ACTION|>"
ANSWER = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
OLD_ACTION, END_OLD_ACTION = ("Action:```json", "Action: ```json", "Action:\n```json"), "```"
"""Around the list of calls of Command R and R+, which are told to call `directly-answer` where they need none of the tools."""
MARKERS = (THINKING, END_THINKING, ACTION, END_ACTION, *ANSWER)

read = turns((THINKING, END_THINKING), (ACTION, END_ACTION), json_calls, answer=ANSWER)
