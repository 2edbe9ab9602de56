"""Thinking as models know it: the variables of their templates, and the tokens around their thoughts; knows no wires.

Sources: the templates of Qwen3, GLM 4.5 and SmolLM3 (`enable_thinking`), DeepSeek V3.1 and Granite 3 (`thinking`),
gpt-oss (`reasoning_effort`); of its tokens https://cookbook.openai.com/articles/openai-harmony.
"""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from neuron_jax.text.calls import cohere, seed
from neuron_jax.text.reasoning import CLOSE, OPEN
from neuron_jax.text.tokenizer import Tokenizer

_TAGS = (OPEN, CLOSE, f"\n{CLOSE}", "\n\n")
_HARMONY = (
    "<|channel|>analysis<|message|>",
    "<|end|>",
    "<|end|><|start|>assistant<|channel|>final<|message|>",
    "",
)
_COHERE = (cohere.THINKING, cohere.END_THINKING, cohere.END_THINKING, "<|START_RESPONSE|>")
_HUNYUAN = (OPEN, CLOSE, f"\n{CLOSE}", "\n<answer>\n")
_SEED = (seed.THINK, seed.END_THINK, f"\n{seed.END_THINK}", "\n")
_WRITTEN = {
    "think": _TAGS,
    "think_opened": _TAGS,
    "harmony": _HARMONY,
    "cohere": _COHERE,
    "seed_oss": _SEED,
    "hunyuan": _HUNYUAN,
}
"""By format, what opens thoughts, what ends them, what is written in place of their end, and what comes behind it."""
OFF = ("none", "minimal")
"""Efforts that ask for as good as no thinking."""
NEAREST = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""What a template that only knows low, medium and high is told instead."""


@frozen
class ThoughtTokens:
    """The ids `opens` begin an answer's thoughts (none: its prompt has), `closes` ends them. `closing` writes their end, and
    `begins` what a model is used to behind that where no form begins there."""

    opens: tuple[int, ...]
    closes: int
    closing: tuple[int, ...]
    begins: tuple[int, ...] = ()


def thought_tokens(tokenizer: Tokenizer, reasoning: str) -> ThoughtTokens | None:
    """Those of a format that `formats.reasoning_format` named; None where thoughts end with no token of their own."""
    if reasoning not in _WRITTEN:
        return None
    opens, closes, closing, begins = _WRITTEN[reasoning]
    end = tokenizer.id_of(closes)
    ids = [tuple(tokenizer.encode(text, add_special=False)) for text in (opens, closing, begins)]
    if end is None or (reasoning != "think_opened" and tokenizer.id_of(opens.partition(">")[0] + ">") is None):
        return None
    return ThoughtTokens(() if reasoning == "think_opened" else ids[0], end, ids[1], ids[2])


def spelled(variables: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """`variables` with `enable_thinking` and `reasoning_effort` in every spelling, for a template of this `source`.

    An effort says whether to think where `enable_thinking` does not. What a client has set himself stays as it is.
    """
    said = {key: value for key, value in variables.items() if value is not None}
    effort, wanted = said.get("reasoning_effort"), said.get("enable_thinking")
    if wanted is None and isinstance(effort, str):
        wanted = effort not in OFF
    if wanted is not None:
        said = {"thinking": wanted, **said, "enable_thinking": wanted}
    if effort in NEAREST and not any(f"{quote}{effort}{quote}" in source for quote in "'\""):
        said["reasoning_effort"] = NEAREST[effort]
    return said
