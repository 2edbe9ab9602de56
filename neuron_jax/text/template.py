"""Messages to one prompt string by the model's own chat template; knows no tokens beyond their names.

Messages are OpenAI's. They are put into the shape templates are written for: text parts joined with a newline (unless
the template walks the parts itself), absent content empty, tool arguments parsed, `developer` called `system` where the
template does not know it.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from itertools import product
from typing import Any

import jinja2
import msgspec
from jinja2 import nodes

from neuron_jax.text import sandbox
from neuron_jax.text.errors import TemplateError
from neuron_jax.text.turns import one_call_each, with_reminders, without_system

Message = Mapping[str, Any]
MALFORMED = "malformed_arguments"
"""The key under which a template that walks arguments finds those that are no object."""
Ordered = Callable[[Sequence[Message]], list[Message]]
_ORDERS: tuple[Ordered, ...] = (list, with_reminders, without_system)
_CALLS: tuple[Ordered, ...] = (list, one_call_each)
MAX_SOURCE = 1024 * 1024
"""Characters of a template. The longest known have some 30,000."""


class ChatTemplate:
    """A template, read but not run: what it supports can be told of any template. Raises TemplateError when it is none.

    It is compiled with the first `render`. Compiling computes its constants, so both take a process of their own.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str | None,
        eos_token: str | None,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"the chat template has {len(source)} characters; at most {MAX_SOURCE} are read")
        self.source = source
        self._environment = sandbox.environment(clock)
        try:
            tree = self._environment.parse(source)
            self.supports_tools = _reads(tree, "tools")
            self.supports_thinking = any(_reads(tree, name) for name in ("enable_thinking", "reasoning_effort")) or any(
                tag in source for tag in ("<think>", "<|channel|>")
            )
            self._walks_parts = _walks_content(tree)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:  # the last for numbers of many digits
            raise TemplateError(f"the chat template does not compile: {error}") from error
        self._tokens = {"bos_token": bos_token or "", "eos_token": eos_token or ""}
        self._knows_none = re.search(r"""content['"\]]*\s+is\s+(not\s+)?none\b""", source, re.IGNORECASE) is not None
        self._short_ids = re.search(r"length\s*!=\s*9\b", source) is not None
        self._thinking = re.search(r"""\.thinking\b|['"]thinking['"]""", source) is not None
        self._thinks_or_says = "both content and thinking" in source
        self._wants_parts = self._walks_parts and not re.search(r"\bis\s+(not\s+)?string\b", source)

    def compile(self) -> None:
        """Raises TemplateError when it cannot be run."""
        assert self._template is not None

    @cached_property
    def _template(self) -> jinja2.Template:
        try:
            return self._environment.from_string(self.source)
        except (jinja2.TemplateError, ArithmeticError, RecursionError, TypeError, ValueError, SyntaxError) as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `continue_final` leaves the last message open, for the model to go on where it ends.

        `variables` are the template's own switches (`enable_thinking`); they cannot replace the arguments above. Raises
        TemplateError, with the template's own message where it refuses the conversation.
        """
        shaped = [self._shaped(message) for message in messages]
        names = {**(variables or {}), **self._tokens, "tools": list(tools) if tools else None}
        if not continue_final:
            return self._run(shaped, {**names, "add_generation_prompt": add_generation_prompt})
        mark = unused_character([list(messages), self.source])
        rendered = self._run(_marked_end(shaped, mark), {**names, "add_generation_prompt": False})
        before, found, _ = rendered.rpartition(mark)
        if not found:
            raise TemplateError("the chat template does not let the last message be continued")
        return before

    def _run(self, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
        """The first way of writing `messages` that the template takes; the first error when it takes none."""
        refused: TemplateError | None = None
        for written in self._ways(messages):
            try:
                return sandbox.render(self._template, {**variables, "messages": written})
            except TemplateError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _ways(self, messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """As they were sent; else with one call a turn, and system turns in words, where a template has no place for them."""
        tried: list[Sequence[Message]] = []
        for order, calls in product(_ORDERS, _CALLS):
            ordered = calls(order(messages))
            if ordered not in tried:
                tried.append(ordered)
                yield from self._spellings([dict(turn) for turn in ordered])

    def _spellings(self, messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Absent content as none where the template asks for none, else empty.

        Arguments as objects, else as sent; where they are no objects and the template takes neither, within one.
        """
        nulls = self._knows_none and any(message["content"] is None for message in messages)
        for written in _argument_ways(messages):
            if nulls:
                yield written
            yield [message if message["content"] is not None else {**message, "content": ""} for message in written]

    def _shaped(self, message: Message) -> dict[str, Any]:
        shaped = {**message, "content": self._content(message.get("content"))}
        if shaped.get("role") == "developer" and "developer" not in self.source:
            shaped["role"] = "system"
        if not shaped.get("tool_calls"):
            shaped.pop("tool_calls", None)
        if shaped.get("reasoning_content") is None and isinstance(shaped.get("reasoning"), str):
            shaped["reasoning_content"] = shaped["reasoning"]
        if self._thinking and shaped.get("reasoning_content"):
            self._think(shaped)
        return _with_short_ids(shaped) if self._short_ids else shaped

    def _think(self, shaped: dict[str, Any]) -> None:
        """gpt-oss's template knows thoughts as `thinking`, and refuses a call with thoughts and words: they are one then."""
        shaped.setdefault("thinking", shaped["reasoning_content"])
        said = shaped["content"]
        if self._thinks_or_says and "tool_calls" in shaped and said:
            words = said if isinstance(said, str) else "\n".join(map(_part_text, said))
            shaped["thinking"], shaped["content"] = f"{shaped['thinking']}\n\n{words}", ""

    def _content(self, content: Any) -> Any:
        if content is None:
            return None
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if self._wants_parts else content
        return content if self._walks_parts else "\n".join(map(_part_text, content))


def unused_character(value: Any) -> str:
    """A private-use character that is in no string of `value` (any JSON)."""
    used = set(json.dumps(value, ensure_ascii=False))
    return next(char for char in map(chr, range(0xF0000, 0x10FFFE)) if char not in used)


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        raise TemplateError("a content part without text; this chat template takes text only")
    return text


def _marked_end(messages: list[dict[str, Any]], mark: str) -> list[dict[str, Any]]:
    if not messages:
        raise TemplateError("there is no message to continue")
    last = messages[-1]
    content = "" if last["content"] is None else last["content"]
    if isinstance(content, str):
        return [*messages[:-1], {**last, "content": content + mark}]
    *parts, end = content or [{"type": "text", "text": ""}]
    return [*messages[:-1], {**last, "content": [*parts, {**end, "text": _part_text(end) + mark}]}]


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Ids of calls as nine letters and digits, the same for the same id: older Mistral templates take no other."""
    changed = dict(message)
    if isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = _short_id(message["tool_call_id"])
    if "tool_calls" in message:
        changed["tool_calls"] = [{**call, "id": _short_id(str(call.get("id", "")))} for call in message["tool_calls"]]
    return changed


def _short_id(id_: str) -> str:
    return id_ if re.fullmatch("[A-Za-z0-9]{9}", id_) else hashlib.sha256(id_.encode()).hexdigest()[:9]


def _argument_ways(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The messages with their tool calls' arguments written in each way that a template may expect."""
    if not any("tool_calls" in message for message in messages):
        yield messages
        return
    parsed = [_with_arguments(message, _parsed_arguments) for message in messages]
    yield parsed
    yield messages
    boxed = [_with_arguments(message, _boxed_arguments) for message in messages]
    if boxed != parsed:
        yield boxed


def _with_arguments(message: dict[str, Any], write: Callable[[Any], Any]) -> dict[str, Any]:
    """`message` with the arguments of its tool calls as `write` gives them."""
    if "tool_calls" not in message:
        return message
    return {**message, "tool_calls": [_call_with(call, write) for call in message["tool_calls"]]}


def _call_with(call: Any, write: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": write(function["arguments"])}}


def _boxed_arguments(sent: Any) -> Any:
    """An object in any case: models do write calls that are cut off, and a conversation with one must go on."""
    arguments = _parsed_arguments(sent)
    return arguments if isinstance(arguments, Mapping) else {MALFORMED: arguments}


def _parsed_arguments(text: Any) -> Any:
    """The object that `text` holds; `text` itself when it holds none (a call that was cut off and sent back)."""
    if not isinstance(text, str):
        return text
    try:
        value = msgspec.json.decode(text or "{}")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _reads(tree: nodes.Node, name: str) -> bool:
    """Whether the template may ask for the variable `name` before it has set one of that name itself.

    Jinja's own `meta.find_undeclared_variables` would compute the template's constants.
    """
    return _first(tree, name) == "load"


def _first(node: nodes.Node, name: str) -> str | None:
    """What surely happens to `name` first where `node` runs: "store"; or "load" where it may; None: nothing does for sure."""
    if isinstance(node, nodes.Name) and node.name == name:
        return node.ctx
    if isinstance(node, nodes.If):
        return _first_of_branches(node, name)
    found = _first_in(_children(node, name), name)
    runs = not isinstance(
        node, nodes.For | nodes.With | nodes.Macro | nodes.CallBlock
    )  # what these set stays within them
    return found if runs or found == "load" else None


def _first_in(run: Sequence[nodes.Node], name: str) -> str | None:
    return next((found for node in run if (found := _first(node, name)) is not None), None)


def _first_of_branches(node: nodes.If, name: str) -> str | None:
    """A variable is set for sure only where every branch sets it."""
    tests = [node.test, *(other.test for other in node.elif_)]
    ways = [_first_in(way, name) for way in (node.body, *(other.body for other in node.elif_), node.else_)]
    if "load" in ways or _first_in(tests, name) == "load":
        return "load"
    return "store" if all(ways) else None


def _children(node: nodes.Node, name: str) -> Sequence[nodes.Node]:
    """In the order in which they run, but for the parts in which `name` is an argument or a loop's own."""
    match node:
        case nodes.Assign():
            return [node.node, node.target]
        case nodes.With():
            return [*node.values, *node.targets, *node.body]
        case nodes.Macro() | nodes.CallBlock() if any(argument.name == name for argument in node.args):
            return [*([node.call] if isinstance(node, nodes.CallBlock) else []), *node.defaults]
        case nodes.For() if any(target.name == name for target in node.target.find_all(nodes.Name)) or (
            isinstance(node.target, nodes.Name) and node.target.name == name
        ):
            return [node.iter]
    return list(node.iter_child_nodes())


def _walks_content(tree: nodes.Template) -> bool:
    """Whether some loop of the template goes over a message's content, or the first part is read: then it wants parts, not a
    string."""
    aliases = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node)
    }
    takes_first = any(_is_text_of_first(node) for node in tree.find_all((nodes.Getattr, nodes.Getitem)))
    return takes_first or any(_walks(loop.iter, aliases) for loop in tree.find_all(nodes.For))


def _is_text_of_first(node: nodes.Node) -> bool:
    """Whether it is `content[0].text`, as templates of pairs have it."""
    if _key_of(node) != "text" or not isinstance(node, nodes.Getattr | nodes.Getitem):
        return False
    part = node.node
    return _key_of(part) == 0 and isinstance(part, nodes.Getitem) and _is_content(part.node)


def _walks(walked: nodes.Node, aliases: set[str]) -> bool:
    if isinstance(walked, nodes.Filter) and walked.node is not None:
        return _walks(walked.node, aliases)
    return _is_content(walked) or (isinstance(walked, nodes.Name) and walked.name in aliases)


def _is_content(node: nodes.Node) -> bool:
    return _key_of(node) == "content"


def _key_of(node: Any) -> object:
    """What is looked up by name or constant; None where nothing is."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    return node.arg.value if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) else None
