"""Seed-OSS' turns: their markers; must not know streams. Calls are as Qwen3-Coder writes them.

Source: https://huggingface.co/ByteDance-Seed/Seed-OSS-36B-Instruct, its chat template.
"""

from neuron_jax.text.calls.notations import coder_calls
from neuron_jax.text.calls.turns import turns

THINK, END_THINK = "<seed:think>", "</seed:think>"
CALL, END_CALL = "<seed:tool_call>", "</seed:tool_call>"
MARKERS = (THINK, END_THINK, CALL, END_CALL)

read = turns((THINK, END_THINK), (CALL, END_CALL), coder_calls)
