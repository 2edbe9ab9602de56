"""Hunyuan's turns: their markers; must not know streams.

Source: the chat template of https://huggingface.co/tencent/Hunyuan-A13B-Instruct. Calls are a list of `{"name": "...",
"arguments": {...}}`.
"""

from neuron_jax.text.calls.json_calls import json_calls
from neuron_jax.text.calls.turns import turns

THINK, END_THINK = "<think>", "</think>"
CALLS, END_CALLS = "<tool_calls>", "</tool_calls>"
ANSWER = ("<answer>", "</answer>")
MARKERS = (THINK, END_THINK, CALLS, END_CALLS, *ANSWER)

read = turns((THINK, END_THINK), (CALLS, END_CALLS), json_calls, answer=ANSWER)
