"""Bodies of /api/chat and /api/generate as what a neuron reads; knows both shapes, and neither routing nor HTTP.

Source: ollama/ollama api/types.go (GenerateRequest, ChatRequest, Options) and server/routes.go, as of August 2026.
`keep_alive`, `truncate`, `shift` and the options of Ollama's runner (num_ctx, num_batch, num_gpu …) are tolerated: how long
a model stays, and how large its context is, is the operator's affair here, and nothing is ever truncated. So are unknown
fields and options, which Ollama does no more than log.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec
from attrs import frozen

from cortex_gateway.dialects.fields import Json, array, body, flag, kind, model, name, number, obj, refused, text
from cortex_gateway.dialects.ollama import turns

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MOST_ALTERNATIVES = 20
DEGREES = ("low", "medium", "high", "max")
WHOLE_TEXT = "Ollama's option `repeat_last_n` was left out: penalties look at the whole text."
_ZERO = re.compile(r"[-+]?0[0.nuµmsh]*")  # a duration of Go's without another digit; reads any text in one pass
_STREAMING = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@frozen
class OllamaRequest:
    """A decoded request.

    Attributes:
        model: what the client called it.
        stream: whether the answer is a stream.
        path: the neuron's route.
        fields: what it reads there, without `model` and `stream`; None where only the model is to be loaded.
        dropped: what was left out, a sentence for each.
    """

    model: str
    stream: bool
    path: str
    fields: dict[str, Any] | None
    dropped: tuple[str, ...] = ()

    def neuron_body(self, model: str) -> bytes:
        """The bytes to post."""
        assert self.fields is not None, "there is nothing to ask a neuron"
        return msgspec.json.encode({"model": model, **self.fields, **(_STREAMING if self.stream else {})})


def chat(raw: bytes) -> OllamaRequest:
    """Read a body of /api/chat. Raises RefusedError."""
    top = body(raw)
    named, stream = model(top), _stream(top)
    messages = [] if top.get("messages") is None else turns.conversation(top["messages"])
    if not messages:
        _stays(top)
        return OllamaRequest(named, stream, CHAT, None)
    fields: dict[str, Any] = {"messages": messages}
    if turns.continues(messages):
        fields.update(add_generation_prompt=False, continue_final_message=True)
    if tools := _tools(top):
        fields["tools"] = tools
    return OllamaRequest(
        named, stream, CHAT, {**fields, **_thinking(top), **_common(top), **_logprobs(top)}, _dropped(top)
    )


def generate(raw: bytes) -> OllamaRequest:
    """Read a body of /api/generate: a chat of one turn, or with `raw` or `suffix` bare text. Raises RefusedError."""
    top = body(raw)
    named, stream = model(top), _stream(top)
    prompt, suffix, system = _text(top, "prompt"), _text(top, "suffix"), _text(top, "system")
    bare = flag(top["raw"], "raw") if top.get("raw") is not None else False
    if not prompt:
        _stays(top)
        return OllamaRequest(named, stream, CHAT, None)
    _refuse(top)
    if bare and system:
        raise refused("raw", "raw mode does not support template, system, or context")
    if bare or suffix:
        if _wants_logprobs(top):
            raise refused("logprobs", "is not supported of bare text: /v1/completions has it", "unsupported_parameter")
        text_fields = {"prompt": prompt, **({"suffix": suffix} if suffix else {})}
        return OllamaRequest(named, stream, COMPLETIONS, {**text_fields, **_common(top)}, _dropped(top))
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    fields = {"messages": messages, **_thinking(top), **_common(top), **_logprobs(top)}
    return OllamaRequest(named, stream, CHAT, fields, _dropped(top))


def shown(raw: bytes) -> str:
    """The model that a body of /api/show asks about, which it may still call by `name`. Raises RefusedError."""
    top = body(raw)
    return model(top if top.get("model") else {"model": top.get("name")})


def _stream(top: Json) -> bool:
    return True if top.get("stream") is None else flag(top["stream"], "stream")


def _text(top: Json, key: str) -> str:
    return "" if top.get(key) is None else text(top[key], key)


def _stays(top: Json) -> None:
    """Nothing to answer and `keep_alive` 0 would unload the model, which others may be using."""
    kept = top.get("keep_alive")
    if (isinstance(kept, int | float) and kept == 0) or (isinstance(kept, str) and _ZERO.fullmatch(kept)):
        message = "0 would unload the model: here the operator does that, by POST /admin/unload"
        raise refused("keep_alive", message, "unsupported_parameter")


def _refuse(top: Json) -> None:
    """What changes the prompt in a way that no neuron knows."""
    turns.no_images(top, "images")
    if _text(top, "template"):
        raise refused("template", "is not supported: the model's own is used", "unsupported_parameter")
    if top.get("context") is not None and array(top["context"], "context"):
        raise refused("context", "is not supported: send the conversation to /api/chat", "unsupported_parameter")


def _tools(top: Json) -> list[Json]:
    given = [] if top.get("tools") is None else array(top["tools"], "tools")
    return [_tool(obj(tool, f"tools.{at}"), f"tools.{at}") for at, tool in enumerate(given)]


def _tool(tool: Json, path: str) -> Json:
    function = obj(tool.get("function"), f"{path}.function")
    name(function.get("name"), f"{path}.function.name")
    if function.get("parameters") is not None:
        obj(function["parameters"], f"{path}.function.parameters")
    return {"type": "function", "function": function}


def _thinking(top: Json) -> dict[str, Any]:
    think = top.get("think")
    if think is None:
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if think not in DEGREES:
        raise refused("think", f"must be true, false, low, medium, high or max, found {kind(think)}")
    return {"chat_template_kwargs": {"enable_thinking": True, "reasoning_effort": think}}


def _common(top: Json) -> dict[str, Any]:
    """What both routes say in the same way: options and form."""
    return {**_sampling(_options(top)), **_form(top.get("format"))}


def _logprobs(top: Json) -> dict[str, Any]:
    if not _wants_logprobs(top):
        return {}
    alternatives = 0 if top.get("top_logprobs") is None else _integer(top["top_logprobs"], "top_logprobs")
    if not 0 <= alternatives <= MOST_ALTERNATIVES:
        raise refused("top_logprobs", f"must be from 0 to {MOST_ALTERNATIVES}, found {alternatives}")
    return {"logprobs": True, "top_logprobs": alternatives}


def _wants_logprobs(top: Json) -> bool:
    return top.get("logprobs") is not None and flag(top["logprobs"], "logprobs")


def _options(top: Json) -> Json:
    return {} if top.get("options") is None else obj(top["options"], "options")


def _sampling(options: Json) -> dict[str, Any]:
    said = {
        theirs: read(options[ours], f"options.{ours}")
        for ours, (theirs, read) in SAMPLING.items()
        if _is(options, ours)
    }
    return {key: value for key, value in said.items() if value is not None}


def _is(options: Json, key: str) -> bool:
    return options.get(key) is not None


def _integer(value: object, path: str) -> int:
    """Ollama takes 5.0 for 5."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise refused(path, f"must be a whole number, found {kind(value)}")
    return int(value)


def _limit(value: object, path: str) -> int | None:
    """Below 0 it ends by itself."""
    limit = _integer(value, path)
    if limit == 0:
        raise refused(path, "must be at least 1, or -1 for no limit, found 0")
    return limit if limit > 0 else None


def _seed(value: object, path: str) -> int | None:
    """-1 is a new one for each request."""
    seed = _integer(value, path)
    return None if seed == -1 else seed


def _stops(value: object, path: str) -> list[str] | None:
    return [stop for at, item in enumerate(array(value, path)) if (stop := text(item, f"{path}.{at}"))] or None


def _form(given: object) -> dict[str, Any]:
    """`format` binds the answer to JSON, or to a JSON schema."""
    if given is None or given == "":
        return {}
    if given == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(given, dict):
        raise refused("format", f'must be "json" or a JSON schema, found {kind(given)}')
    schema = {"name": "answer", "schema": given, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _dropped(top: Json) -> tuple[str, ...]:
    return (WHOLE_TEXT,) if _options(top).get("repeat_last_n") not in (None, -1) else ()


# Ollama's name -> (the neuron's name, how it is read; None = as if it had not been said)
SAMPLING: dict[str, tuple[str, Callable[[object, str], Any]]] = {
    "num_predict": ("max_tokens", _limit),
    "temperature": ("temperature", number),
    "top_p": ("top_p", number),
    "top_k": ("top_k", _integer),
    "min_p": ("min_p", number),
    "typical_p": ("typical_p", number),
    "seed": ("seed", _seed),
    "stop": ("stop", _stops),
    "repeat_penalty": ("repetition_penalty", number),
    "presence_penalty": ("presence_penalty", number),
    "frequency_penalty": ("frequency_penalty", number),
}
