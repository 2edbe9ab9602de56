"""The items of a Responses body as chat messages for a neuron; adds no word to a turn and takes none away.

What one answer consisted of (thoughts, text, calls) becomes one assistant's message again, so that a neuron meets what it
has generated. Items of a kind that no model here has made or can read are left out, and their kinds told.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field, frozen

from cortex_gateway.dialects.fields import Json, array, kind, name, obj, refused, text
from cortex_gateway.dialects.opaque import unseal
from cortex_gateway.dialects.responses.tools import Tools, as_arguments, flat

Message = dict[str, Any]
ROLES = ("user", "assistant", "system", "developer")
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
SUMMARIZE = (
    "Write a summary of this conversation for somebody who will go on with it and will see nothing of it but your words: "
    "what was asked and why, every constraint and preference that was told, what has been found out, decided and done, "
    "with the files, commands and results that matter, and what is left to be done. "
    "Answer with the summary alone, and call no tool."
)
SUMMARY = "What this conversation was about so far:\n\n"
_NO_MEDIA = "content of type {} is not supported: the models here read text only"


@frozen
class Placed:
    """An item and where it stands, for what is told of it."""

    item: Json
    path: str


@define
class _Turn:
    """An assistant's, while it is put together."""

    texts: list[str] = field(factory=list)
    thoughts: list[str] = field(factory=list)
    calls: list[Message] = field(factory=list)

    def message(self) -> Message | None:
        content, thought = content_of(self.texts), "".join(self.thoughts)
        if not (content or thought or self.calls):
            return None
        reasoning = {"reasoning_content": thought} if thought else {}
        calls = {"tool_calls": self.calls} if self.calls else {}
        return {"role": "assistant", "content": content, **reasoning, **calls}


@define
class Conversation:
    """Items go in, in their order; `messages` are those of a chat.

    Attributes:
        tools: those of the request, to which items may add.
        compacting: an item asks for a summary of all before it.
        dropped: a sentence for each kind of item that was left out.
    """

    tools: Tools
    compacting: bool = False
    dropped: dict[str, None] = field(factory=dict)
    _done: list[Message] = field(factory=list)
    _turn: _Turn = field(factory=_Turn)

    def add(self, items: Iterable[Placed]) -> None:
        """Take them. Raises RefusedError with the path of what cannot be passed on."""
        for placed in items:
            read = _READ.get(kind_of(placed.item, placed.path))
            if read is None:
                found = kind(placed.item.get("type"))
                self.dropped[f"items of type {found} are left out: no model here has made them or can read them"] = None
            else:
                read(self, placed.item, placed.path)

    def messages(self) -> list[Message]:
        """All of them; the last one asks for the summary where one is wanted."""
        self._end_turn()
        return [*self._done, {"role": "user", "content": SUMMARIZE}] if self.compacting else self._done

    def say(self, role: str, texts: list[str]) -> None:
        """A whole turn of somebody else than the assistant."""
        self._end_turn()
        content = content_of(texts)
        if content:
            self._done.append({"role": role, "content": content})

    def _end_turn(self) -> None:
        message = self._turn.message()
        if message:
            self._done.append(message)
        self._turn = _Turn()

    def _message(self, item: Json, path: str) -> None:
        role = item.get("role")
        if role not in ROLES:
            raise refused(f"{path}.role", f"must be one of {', '.join(ROLES)}, found {kind(role)}")
        texts = texts_of(item.get("content"), f"{path}.content")
        if role == "assistant":
            self._turn.texts += texts
        else:
            self.say(role, texts)

    def _reasoning(self, item: Json, path: str) -> None:
        """By what we have sealed, which is what was thought; else by what is legible of it."""
        thought = unseal("reasoning", item.get("encrypted_content"))
        if thought is None:
            parts = item.get("content") or item.get("summary") or []
            thought = "".join(texts_of(parts, f"{path}.content" if item.get("content") else f"{path}.summary"))
        self._turn.thoughts.append(thought)

    def _function_call(self, item: Json, path: str) -> None:
        self._call(item, path, text(item.get("arguments"), f"{path}.arguments"))

    def _custom_call(self, item: Json, path: str) -> None:
        self._call(item, path, as_arguments(text(item.get("input"), f"{path}.input")))

    def _call(self, item: Json, path: str, arguments: str) -> None:
        function = {"name": flat(name(item.get("name"), f"{path}.name"), item.get("namespace")), "arguments": arguments}
        call = {"id": name(item.get("call_id"), f"{path}.call_id"), "type": "function", "function": function}
        self._turn.calls.append(call)

    def _output(self, item: Json, path: str) -> None:
        identity = name(item.get("call_id"), f"{path}.call_id")
        self._end_turn()
        content = content_of(texts_of(item.get("output"), f"{path}.output"))
        self._done.append({"role": "tool", "tool_call_id": identity, "content": content})

    def _compaction(self, item: Json, path: str) -> None:
        summary = unseal("compaction", item.get("encrypted_content"))
        if summary is None:
            raise refused(f"{path}.encrypted_content", "was not made here, and nobody here can read it")
        self.say("user", [SUMMARY + summary])

    def _trigger(self, _: Json, __: str) -> None:
        self.compacting = True

    def _more_tools(self, item: Json, path: str) -> None:
        self.tools.add(array(item.get("tools"), f"{path}.tools"), f"{path}.tools")


_READ: Mapping[str, Callable[[Conversation, Json, str], None]] = {
    "message": Conversation._message,  # noqa: SLF001 -- the table of the class above
    "reasoning": Conversation._reasoning,  # noqa: SLF001
    "function_call": Conversation._function_call,  # noqa: SLF001
    "function_call_output": Conversation._output,  # noqa: SLF001
    "custom_tool_call": Conversation._custom_call,  # noqa: SLF001
    "custom_tool_call_output": Conversation._output,  # noqa: SLF001
    "compaction": Conversation._compaction,  # noqa: SLF001
    "compaction_summary": Conversation._compaction,  # noqa: SLF001
    "compaction_trigger": Conversation._trigger,  # noqa: SLF001
    "additional_tools": Conversation._more_tools,  # noqa: SLF001
}


def kind_of(item: Json, path: str) -> str:
    """Its type, which messages and references may leave out."""
    if item.get("type") is not None:
        return text(item["type"], f"{path}.type")
    if "role" in item:
        return "message"
    if "id" in item:
        return "item_reference"
    raise refused(f"{path}.type", f"must name the item's type, found {kind(item.get('type'))}")


def listed(value: object, path: str = "input") -> list[Json]:
    """`input` as items; a string is one message."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": value}]}]
    return [obj(item, f"{path}.{at}") for at, item in enumerate(array(value, path))]


def texts_of(value: object, path: str) -> list[str]:
    """A string, or the parts of a list, all of them text."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [_text(obj(part, f"{path}.{at}"), f"{path}.{at}") for at, part in enumerate(array(value, path))]


def content_of(texts: list[str]) -> str | list[Message]:
    """One text as it is, several as parts: how they are joined is the neuron's business."""
    full = [piece for piece in texts if piece]
    if len(full) <= 1:
        return "".join(full)
    return [{"type": "text", "text": piece} for piece in full]


def _text(part: Json, path: str) -> str:
    found = part.get("type")
    if found == "refusal":
        return text(part.get("refusal"), f"{path}.refusal")
    if found not in TEXTS:
        if not isinstance(found, str):
            raise refused(f"{path}.type", f"must name the part's type, found {kind(found)}")
        raise refused(path, _NO_MEDIA.format(kind(found)), "unsupported_parameter")
    return text(part.get("text"), f"{path}.text")
