"""Messages to a prompt's text, so that nothing a client writes becomes a control token; joins template and names of tokens.

A special token's name inside a message ("<|im_end|>" in a question about chat formats) is plain text: the name is broken
by a character that occurs nowhere, the template runs, and the tokenizer takes the character out again without
recognising the name. Text without such names takes the ordinary path: its ids are those of every other implementation.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from attrs import define, field, frozen

from neuron_jax.text.errors import TooManyTokensError
from neuron_jax.text.spelling import USUAL_CHARS, Spelling
from neuron_jax.text.template import ChatTemplate, Message, unused_character


@frozen
class ChatFormat:
    """What the prompts of a model's chats are made with; `names` are those of its special tokens."""

    source: str
    bos_token: str | None = None
    eos_token: str | None = None
    names: tuple[str, ...] = ()
    spelling: Spelling = field(factory=Spelling)


@frozen
class Chat:
    """A conversation as it is rendered; the fields are the arguments of `ChatTemplate.render`."""

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(factory=dict)
    add_generation_prompt: bool = True
    continue_final: bool = False


@frozen
class Rendered:
    """A prompt's text. In names of special tokens that are plain text stands `mark`, where there are any."""

    text: str
    mark: str = ""

    @property
    def plain(self) -> str:
        """The text as a reader sees it."""
        return self.text.replace(self.mark, "") if self.mark else self.text


@define(slots=False)
class Renderer:
    """What renders chats of one format, which is read with the first of them."""

    kind: ChatFormat

    @cached_property
    def template(self) -> ChatTemplate:
        """The format's template. Raises TemplateError when it is none."""
        return ChatTemplate(self.kind.source, bos_token=self.kind.bos_token, eos_token=self.kind.eos_token)

    @cached_property
    def names(self) -> re.Pattern[str]:
        """Finds special tokens by name."""
        return names_pattern(self.kind.names)

    def render(self, chat: Chat, most: int | None = None) -> Rendered:
        """The prompt of `chat`. Raises TemplateError, and TooManyTokensError when it surely has more than `most` tokens."""
        render = partial(
            self.template.render,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final=chat.continue_final,
        )
        sent: dict[str, Any] = {"messages": chat.messages, "tools": chat.tools, "variables": chat.variables}
        if not _mentions(self.names, sent):
            return self._fitting(Rendered(render(**sent)), most)
        mark = unused_character([sent, self.kind.source])
        return self._fitting(Rendered(render(**_broken(self.names, mark, sent)), mark), most)

    def _fitting(self, rendered: Rendered, most: int | None) -> Rendered:
        marks = rendered.text.count(rendered.mark) if rendered.mark else 0
        least = self.kind.spelling.least_tokens(rendered.text) - marks
        if most is not None and least > most:
            raise TooManyTokensError(max(least, len(rendered.text) // USUAL_CHARS), exact=False)
        return rendered


def names_pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Finds any of `names`, the longest first, as one group."""
    listed = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, listed))})" if listed else r"(?!)()")


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
