"""Where a model's chat template runs: Hugging Face's dialect of Jinja, with bounds; knows no messages.

A template comes with the weights: it is data, not code of ours. It reaches no attribute that starts with an underscore,
changes nothing it is given, and ends after `MAX_STEPS` loop passes or `MAX_CHARS` characters. These are the bounds that can
be told in words; all others are those of the process that runs it (`neuron_jax.workers.render_process`).

Source of the dialect: https://huggingface.co/docs/transformers/chat_templating_writing
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from attrs import define
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from neuron_jax.text.errors import TemplateError

MAX_STEPS = 2_000_000
"""Loop passes of one rendering, all loops together: about a second. A legitimate template needs a few per message."""

MAX_CHARS = 64 * 1024 * 1024
"""Characters of one rendering, and of one string that a template builds by repetition."""

MAX_BITS = 4096
"""Bits of one power."""

_BUDGET = "_steps_left"


@define
class _Budget:
    """What is left of `MAX_STEPS` in one rendering."""

    left: int = MAX_STEPS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TemplateError(f"the chat template ran for more than {MAX_STEPS} loop passes")


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The template's output. Raises TemplateError for whatever goes wrong inside it, but for want of memory."""
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate({**variables, _BUDGET: _Budget()}):
            size += len(part)
            _check_size(size)
            parts.append(part)
    except TemplateError:
        raise
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError) as error:
        raise TemplateError(str(error) or type(error).__name__) from error
    except (RuntimeError, TypeError, ValueError) as error:
        raise TemplateError(f"the chat template failed: {error}") from error
    return "".join(parts)


def environment(clock: Callable[[], datetime]) -> "Sandbox":
    """`clock` is what templates that write today's date into the prompt read."""
    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag])
    sandbox.filters |= {"tojson": _tojson, "counted": _counted}
    sandbox.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: clock().strftime(form),
    }
    return sandbox


class Sandbox(ImmutableSandboxedEnvironment):
    """Counts every pass of every loop, and refuses to build giant strings."""

    intercepted_binops = frozenset({"*", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            _check_size(max(_length(left) * _count(right), _length(right) * _count(left)))
        elif _count(left).bit_length() * _count(right) > MAX_BITS:
            raise TemplateError(f"the chat template asks for a number of more than {MAX_BITS} bits")
        return super().call_binop(context, operator, left, right)


class GenerationTag(Extension):
    """`{% generation %}` marks what a trainer learns from; for serving its body is just its body."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    """`items`, every one taken from the rendering's budget."""
    budget = context.parent[_BUDGET]
    for item in items:
        budget.spend()
        yield item


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the model saw it in training: non-ASCII as it is, keys in the order the client sent them."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _check_size(chars: int) -> None:
    if chars > MAX_CHARS:
        raise TemplateError(f"the chat template makes a text of more than {MAX_CHARS} characters")


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
