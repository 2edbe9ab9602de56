"""Messages to ids, so that nothing a client writes becomes a control token; joins the template and the tokenizer.

A special token's name inside a message ("<|im_end|>" in a question about chat formats) is plain text: the name is broken
by a character that occurs nowhere, the template runs, and the tokenizer takes the character out again without
recognising the name. Text without such names takes the ordinary path: its ids are those of every other implementation.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from neuron_jax.text.template import ChatTemplate, Message, unused_character
from neuron_jax.text.tokenizer import Tokenizer


def encode_chat(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    continue_final: bool = False,
    variables: Mapping[str, Any] | None = None,
    most: int | None = None,
) -> tuple[str, list[int]]:
    """The rendered prompt and its ids; the arguments are those of `ChatTemplate.render`, `most` is the tokenizer's.

    Raises TemplateError, TooManyTokensError, UncutTextError.
    """
    render = partial(
        template.render,
        add_generation_prompt=add_generation_prompt,
        continue_final=continue_final,
    )
    sent: dict[str, Any] = {"messages": list(messages), "tools": list(tools) if tools else None, "variables": variables}
    names = tokenizer.special_names
    if not _mentions(names, sent):
        text = render(**sent)
        return text, tokenizer.encode(text, add_special=False, most=most)
    mark = unused_character([sent, template.source])
    text = render(**_broken(names, mark, sent))
    return text.replace(mark, ""), tokenizer.encode_marked(text, mark=mark, most=most)


def _mentions(names: re.Pattern[str], value: Any) -> bool:
    if isinstance(value, str):
        return names.search(value) is not None
    if isinstance(value, Mapping):
        return any(_mentions(names, part) for item in value.items() for part in item)
    return isinstance(value, list | tuple) and any(_mentions(names, item) for item in value)


def _broken(names: re.Pattern[str], mark: str, value: Any) -> Any:
    """`value` with `mark` after the first character of every special token's name in its strings and keys."""
    if isinstance(value, str):
        return names.sub(lambda found: found[0][:1] + mark + found[0][1:], value)
    if isinstance(value, Mapping):
        return {_broken(names, mark, key): _broken(names, mark, item) for key, item in value.items()}
    return [_broken(names, mark, item) for item in value] if isinstance(value, list | tuple) else value
