"""Which parsers a model's output needs, read off its chat template; knows names of formats, must not know streams."""

from neuron_jax.text.reasoning import CLOSE, OPEN, ReasoningParser
from neuron_jax.text.tools import (
    MISTRAL_TAG,
    PYTHON_TAG,
    TOOL_CALL_CLOSE,
    TOOL_CALL_OPEN,
    TaggedTools,
    TailTools,
    ToolParser,
)


def tool_format(source: str) -> str | None:
    """`hermes`, `llama3_json`, `mistral`, or None for a template whose calls are not understood: they stay text."""
    if TOOL_CALL_OPEN in source:
        return None if "<function=" in source else "hermes"
    if MISTRAL_TAG in source:
        return "mistral"
    return "llama3_json" if PYTHON_TAG in source or "Environment: ipython" in source else None


def reasoning_format(source: str, prompt: str) -> str | None:
    """`think` when the model may open its thinking, `think_opened` when the rendered `prompt` has done so, or None."""
    if prompt.rstrip().endswith(OPEN):
        return "think_opened"
    return "think" if CLOSE in source else None


def tool_parser(name: str, call_prefix: str, *, only_one: bool = False) -> ToolParser:
    """The parser of a format that `tool_format` named; ids of calls are `<call_prefix><index>`, and `only_one` ends it."""
    match name:
        case "hermes":
            return TaggedTools(call_prefix, only_one=only_one)
        case "mistral":
            return TailTools(call_prefix, tag=MISTRAL_TAG, bare=False, only_one=only_one)
        case "llama3_json":
            return TailTools(call_prefix, tag=PYTHON_TAG, bare=True, only_one=only_one)
    raise AssertionError(f"no tool format {name!r}")


def reasoning_parser(name: str, *, tools: str | None) -> ReasoningParser:
    """The parser of a format that `reasoning_format` named. A call envelope ends thinking that was left open."""
    assert name in ("think", "think_opened"), name
    return ReasoningParser(opened=name == "think_opened", until=(TOOL_CALL_OPEN,) if tools == "hermes" else ())


def markers(*, reasoning: str | None, tools: str | None) -> frozenset[str]:
    """Strings the parsers look for; in some vocabularies they are special tokens, which must not be skipped then."""
    by_tools = {"hermes": (TOOL_CALL_OPEN, TOOL_CALL_CLOSE), "mistral": (MISTRAL_TAG,), "llama3_json": (PYTHON_TAG,)}
    return frozenset((*((OPEN, CLOSE) if reasoning else ()), *(by_tools[tools] if tools else ())))
