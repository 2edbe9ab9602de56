"""What a chat body says of thinking, in the spellings that clients have for it; must not know models, engines or HTTP.

OpenAI's `reasoning_effort`, vLLM's `thinking_token_budget`, Qwen's `enable_thinking` and `thinking_budget`, OpenRouter's
`reasoning` and DeepSeek's and GLM's `thinking`. What `chat_template_kwargs` say comes before all of them.
"""

from collections.abc import Mapping
from typing import Any

from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.problems import invalid_body

MAX_TOKENS = 2**40
BUDGETS = ("thinking_token_budget", "thinking_budget")
MODES = {"enabled": True, "adaptive": True, "auto": None, "disabled": False}


def read_variables(fields: Fields) -> Mapping[str, Any]:
    """The variables of the chat's template: those that the client names, and what he says of thinking. Raises Problem."""
    given = fields.object("chat_template_kwargs")
    reasoning = fields.object("reasoning") or Fields({})
    said = {
        "enable_thinking": _wanted(fields, reasoning),
        "reasoning_effort": fields.text("reasoning_effort") or reasoning.text("effort"),
    }
    return {**{key: value for key, value in said.items() if value not in (None, "")}, **(given.values if given else {})}


def read_budget(fields: Fields) -> int | None:
    """After how many tokens thoughts are closed; None: when the model does so. Raises Problem."""
    thinking, reasoning = fields.object("thinking") or Fields({}), fields.object("reasoning") or Fields({})
    places = [*((fields, name) for name in BUDGETS), (thinking, "budget_tokens"), (reasoning, "max_tokens")]
    said = [(place.name(name), place.integer(name, 0, MAX_TOKENS)) for place, name in places]
    known = [(name, budget) for name, budget in said if budget is not None]
    if len({budget for _, budget in known}) > 1:
        raise invalid_body(known[1][0], f"{known[1][0]}: {known[0][0]} says {known[0][1]} already.")
    return known[0][1] if known else None


def read_hidden(fields: Fields) -> bool:
    """Whether the thoughts are not to be told: vLLM's `include_reasoning`, OpenRouter's `reasoning.exclude`. Raises Problem."""
    reasoning = fields.object("reasoning") or Fields({})
    return not fields.flag("include_reasoning", absent=True) or reasoning.flag("exclude")


def _wanted(fields: Fields, reasoning: Fields) -> bool | None:
    thinking = fields.object("thinking")
    if fields.get("enable_thinking") is not None:
        return fields.flag("enable_thinking")
    if thinking is not None:
        mode = thinking.text("type")
        if mode not in MODES:
            raise thinking.wrong("type", "enabled, adaptive, auto or disabled")
        return MODES[mode]
    return reasoning.flag("enabled") if reasoning.get("enabled") is not None else None
