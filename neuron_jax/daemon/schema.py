"""The bodies of chat, completions and tokenize, checked field by field; must not know models, engines or HTTP.

A parameter that would change the result and that nobody here carries out is refused by name; fields nobody knows are
ignored, as every client expects. The ranges are those of docs/wire.md section 3.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import msgspec
from attrs import evolve, frozen

from neuron_jax.common.names import LONGEST_NAME
from neuron_jax.daemon.fields import Fields, is_number, too_deep
from neuron_jax.daemon.json_bounds import deep_path, may_be_deep
from neuron_jax.daemon.problems import Problem, invalid_body, unsupported
from neuron_jax.daemon.structured import Asked, read_constraint
from neuron_jax.daemon.thinking import read_budget, read_hidden, read_variables
from neuron_jax.text.prompt import Chat

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 16_384
MAX_PARTS = 4_096
MAX_TOOLS = 4_096
MAX_CHOICES = 16
MAX_PROMPTS = 128
MAX_STOPS = 16
MAX_BIAS = 300
MAX_ALTERNATIVES = 20
INT64 = 2**63
MAX_TOKEN = 2**31 - 1
MAX_TOKENS = 2**40
"""Above any context; a larger max_tokens is a mistake."""


def _only(*harmless: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(item) and value == item for item in harmless)


def _never(_: Any) -> bool:
    return False


UNSUPPORTED: Mapping[str, Callable[[Any], bool]] = {
    "functions": _only([]),
    "function_call": _only("none"),
    "modalities": _only(["text"]),
    "audio": _never,
    "web_search_options": _never,
    "chat_template": _never,
    "documents": _only([]),
    "prompt_logprobs": _never,
    "use_beam_search": _only(False),
    "truncate_prompt_tokens": _never,
    "include_stop_str_in_output": _only(False),
    "skip_special_tokens": _only(True),
    "bad_words": _only([]),
    "allowed_token_ids": _never,
    "typical_p": _only(1, 1.0),
    "top_a": _only(0, 0.0),
    "mirostat": _only(0),
    "dry_multiplier": _only(0, 0.0),
    "xtc_probability": _only(0, 0.0),
}
"""Parameters that change the result, and the values of each that do not."""
UNSUPPORTED_IN_CHAT = {**UNSUPPORTED, "best_of": _only(1), "suffix": _only(""), "echo": _only(False)}
"""The same of chats, for which what completions have has no meaning."""


class Turn(Enum):
    """How a rendered chat ends: a new turn of the assistant is opened, nothing is, or its last message stays open."""

    NEW = "new"
    NONE = "none"
    CONTINUED = "continued"


@frozen
class SamplingParams:
    """What a client asks of generation itself, the same for both routes. None = not said."""

    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    max_tokens: int | None
    min_tokens: int
    sampling: Mapping[str, float | int]  # only what was said
    logit_bias: Mapping[int, float]
    seed: int | None  # uint64
    stops: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    n: int
    logprobs: int | None  # alternatives per token; None = no logprobs
    form: Asked | None = None  # what the answer must look like
    thinking_budget: int | None = None  # tokens of thoughts, after which they are closed
    hides_thoughts: bool = False  # they are counted and not told


@frozen
class ChatRequest:
    """POST /v1/chat/completions; messages and tools are as sent, checked."""

    params: SamplingParams
    chat: Chat
    one_call: bool = False
    forced: Sequence[Mapping[str, Any]] = ()  # functions of which one must be called

    @property
    def answers(self) -> int:
        """How many run side by side."""
        return self.params.n


@frozen
class CompletionRequest:
    """POST /v1/completions; each prompt is text or ids. `suffix`: what is to follow the answer; `echo`: the prompt comes
    before it; of `best_of` answers to each prompt the `params.n` likeliest are told."""

    params: SamplingParams
    prompts: Sequence[str | list[int]]
    suffix: str = ""
    echo: bool = False
    best_of: int = 1

    @property
    def answers(self) -> int:
        """How many run side by side."""
        return len(self.prompts) * self.best_of


@frozen
class TokenizeRequest:
    """POST /tokenize: `chat` or `prompt`. `special`: a prompt gets what the tokenizer puts around it; `names`: tokens are told
    by their text, too."""

    model: str
    prompt: str | None = None
    chat: Chat | None = None
    special: bool = True
    names: bool = False


@frozen
class DetokenizeRequest:
    """POST /detokenize."""

    model: str
    tokens: list[int]


def read_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    _refuse(fields, UNSUPPORTED_IN_CHAT)
    chat = _chat(fields, _chosen_tools)
    params = _read_params(fields, model, _chat_logprobs(fields))
    return ChatRequest(
        params=evolve(params, thinking_budget=read_budget(fields), hides_thoughts=read_hidden(fields)),
        chat=chat,
        one_call=not fields.flag("parallel_tool_calls", absent=True) or isinstance(fields.get("tool_choice"), dict),
        forced=_forced(fields, chat.tools or ()),
    )


def read_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    _refuse(fields, UNSUPPORTED)
    prompts = _prompts(fields)
    params = _read_params(fields, model, fields.integer("logprobs", 0, MAX_ALTERNATIVES))
    request = CompletionRequest(
        params, prompts, _suffix(fields, prompts), _echo(fields, params), _best_of(fields, params)
    )
    if request.answers > MAX_PROMPTS:
        raise fields.wrong("prompt", f"at most {MAX_PROMPTS} answers in one request, prompts times n or best_of")
    return request


def _suffix(fields: Fields, prompts: Sequence[str | list[int]]) -> str:
    suffix = fields.text("suffix") or ""
    if suffix and not all(isinstance(prompt, str) for prompt in prompts):
        raise fields.wrong("suffix", "absent where the prompt is token ids")
    return suffix


def _echo(fields: Fields, params: SamplingParams) -> bool:
    echo = fields.flag("echo")
    if echo and params.logprobs is not None:
        raise unsupported(
            "echo", "echo: log-probabilities of a prompt are not computed here; leave out echo or logprobs."
        )
    return echo


def _best_of(fields: Fields, params: SamplingParams) -> int:
    best_of = fields.integer("best_of", params.n, MAX_CHOICES) or params.n
    if params.stream and best_of > params.n:
        raise fields.wrong("best_of", "absent in a stream, for which is best is known at the end")
    return best_of


def read_tokenize(body: Mapping[str, Any]) -> TokenizeRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    prompt, names = fields.text("prompt"), fields.flag("return_token_strs")
    if prompt is not None:
        special = fields.flag("add_special_tokens", absent=True)
        return TokenizeRequest(model, prompt=prompt, special=special, names=names)
    return TokenizeRequest(model, chat=_chat(fields, _tools), names=names)


def read_detokenize(body: Mapping[str, Any]) -> DetokenizeRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model, tokens = read_model(fields), fields.get("tokens")
    if not isinstance(tokens, list):
        raise fields.wrong("tokens", "a list of token ids")
    return DetokenizeRequest(model, _ids("tokens", tokens))


def _chat(fields: Fields, tools: Callable[[Fields], Sequence[Mapping[str, Any]] | None]) -> Chat:
    messages, turn = read_messages(fields), _turn(fields)
    return Chat(
        messages=messages,
        tools=tools(fields),
        variables=read_variables(fields),
        add_generation_prompt=turn is Turn.NEW,
        continue_final=turn is Turn.CONTINUED,
    )


def read_model(fields: Fields) -> str:
    """The model's name. Raises Problem missing_model_field, invalid_request_body."""
    name = fields.text("model")
    if not name:
        raise Problem(400, "missing_model_field", "The body must name a model.", param="model")
    if len(name) > LONGEST_NAME:
        raise fields.wrong("model", f"a string of at most {LONGEST_NAME} characters")
    return name


def read_messages(fields: Fields) -> Sequence[Mapping[str, Any]]:
    """The messages as sent. Raises Problem when one of them has a shape no template could take."""
    messages = fields.objects("messages", MAX_MESSAGES)
    if not messages:
        raise fields.wrong("messages", "a list of at least one message")
    for message in messages:
        _check_message(message)
    return [message.values for message in messages]


def _check_message(message: Fields) -> None:
    if message.get("role") not in ROLES:
        raise message.wrong("role", "one of " + ", ".join(ROLES))
    if not isinstance(message.get("content"), str | None):
        _check_parts(message)
    for key in ("name", "tool_call_id", "reasoning_content", "reasoning", "refusal"):
        message.text(key)
    for call in message.objects("tool_calls", MAX_PARTS):
        function = call.object("function")
        if function is None:
            raise call.wrong("function", "an object")
        if not function.text("name"):
            raise function.wrong("name", "a string that is not empty")
        _check_arguments(function)


def _check_arguments(function: Fields) -> None:
    """Arguments are JSON in a string, which templates get as an object: what holds for the body holds for it."""
    arguments = function.get("arguments")
    if not isinstance(arguments, str | dict | None):
        raise function.wrong("arguments", "a string")
    if not isinstance(arguments, str) or not may_be_deep(arguments):
        return
    try:
        deep = deep_path(msgspec.json.decode(arguments)) is not None
    except (msgspec.MsgspecError, ValueError):  # text then, which is not nested
        return
    except RecursionError:
        deep = True
    if deep:
        raise too_deep(function.name("arguments"))


def _check_parts(message: Fields) -> None:
    message.list("content", "a string or a list of parts")
    for part in message.objects("content", MAX_PARTS):
        if part.get("type") != "text":
            raise unsupported(part.name("type"), f"{part.name('type')}: only text parts are supported.")
        if part.text("text") is None:
            raise part.wrong("text", "a string")


def _tools(fields: Fields) -> Sequence[Mapping[str, Any]] | None:
    tools = fields.objects("tools", MAX_TOOLS)
    for tool in tools:
        if tool.get("type") != "function":
            raise tool.wrong("type", '"function"')
        function = tool.object("function")
        if function is None or not function.text("name"):
            raise tool.wrong("function", "an object with a name")
        function.object("parameters")
        function.flag("strict")
    return [tool.values for tool in tools] or None


def _chosen_tools(fields: Fields) -> Sequence[Mapping[str, Any]] | None:
    tools = _tools(fields)
    match fields.get("tool_choice"):
        case None | "auto":
            return tools
        case "none":
            return None
        case "required" | {"type": "function"}:
            if not tools:
                raise fields.wrong("tool_choice", "absent where there are no tools")
            return tools
        case {"type": str(other)}:
            raise unsupported("tool_choice.type", f"tool_choice.type {other!r} is not supported by this server.")
    raise fields.wrong("tool_choice", '"auto", "none", "required" or a function by its name')


def _forced(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The functions of which one must be called."""
    choice, functions = fields.get("tool_choice"), [tool["function"] for tool in tools]
    if choice == "required":
        return functions
    if not isinstance(choice, dict):
        return ()
    named = Fields(choice, "tool_choice.").object("function") or Fields({}, "tool_choice.function.")
    found = [function for function in functions if function["name"] == named.get("name")]
    if not found:
        raise named.wrong("name", "the name of one of the tools")
    return found[:1]


def _turn(fields: Fields) -> Turn:
    """`add_generation_prompt` (absent: unless the last message is continued) and `continue_final_message`."""
    opens = fields.flag("add_generation_prompt")
    if not fields.flag("continue_final_message"):
        return Turn.NEW if opens or fields.get("add_generation_prompt") is None else Turn.NONE
    if opens:
        raise fields.wrong("add_generation_prompt", "false where continue_final_message is true")
    if fields.objects("messages", MAX_MESSAGES)[-1].get("role") != "assistant":
        raise fields.wrong("continue_final_message", "false unless the last message is the assistant's")
    return Turn.CONTINUED


def _prompts(fields: Fields) -> Sequence[str | list[int]]:
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise fields.wrong("prompt", "a string, a list of strings, a list of token ids, or a list of such lists")
    if all(type(item) is int for item in prompt):
        return [_ids("prompt", prompt)]
    return [item if isinstance(item, str) else _ids(f"prompt[{index}]", item) for index, item in enumerate(prompt)]


def _ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= MAX_TOKEN for item in value):
        raise invalid_body(name, f"{name} must be a string or a list of token ids.")
    return value


def _refuse(fields: Fields, unfit: Mapping[str, Callable[[Any], bool]]) -> None:
    for name, harmless in unfit.items():
        value = fields.get(name)
        if value is not None and not harmless(value):
            raise unsupported(name, f"{name} is not supported by this server; leave it out.")


def _read_params(fields: Fields, model: str, logprobs: int | None) -> SamplingParams:
    options = fields.object("stream_options") or Fields({})
    most = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    seed = fields.integer("seed", -INT64, 2 * INT64 - 1)
    params = SamplingParams(
        model=model,
        stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"),
        continuous_usage=options.flag("continuous_usage_stats"),
        max_tokens=fields.integer("max_tokens", 1, MAX_TOKENS) if most is None else most,
        min_tokens=fields.integer("min_tokens", 0, MAX_TOKENS) or 0,
        sampling=read_sampling(fields),
        logit_bias=_bias(fields),
        seed=None if seed is None else seed % (2 * INT64),
        stops=_stops(fields),
        stop_token_ids=_stop_ids(fields),
        ignore_eos=fields.flag("ignore_eos"),
        n=fields.integer("n", 1, MAX_CHOICES) or 1,
        logprobs=logprobs,
        form=read_constraint(fields),
    )
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise fields.wrong("min_tokens", f"at most max_tokens, which is {params.max_tokens}")
    return params


def read_sampling(fields: Fields) -> dict[str, float | int]:
    """What is said of sampling, within its bounds. Raises Problem."""
    top_k = fields.integer("top_k", -1, MAX_TOKEN)
    said: dict[str, float | int | None] = {
        "temperature": fields.number("temperature", 0, 2),
        "top_k": None if top_k is None else max(0, top_k),
        "top_p": fields.number("top_p", 0, 1, above=True),
        "min_p": fields.number("min_p", 0, 1),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repetition_penalty": fields.number("repetition_penalty", 0, 2, above=True),
    }
    return {name: value for name, value in said.items() if value is not None}


def _bias(fields: Fields) -> Mapping[int, float]:
    given = fields.object("logit_bias")
    if given is None:
        return {}
    if len(given.values) > MAX_BIAS:
        raise fields.wrong("logit_bias", f"an object of at most {MAX_BIAS} entries")
    bias = {}
    for key, value in given.values.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10) or not is_number(value, -100, 100):
            raise given.wrong(key, "a token id with a number from -100 to 100")
        bias[int(key)] = float(value)
    return bias


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise fields.wrong("stop", f"a string or a list of at most {MAX_STOPS} strings, none of them empty")
    return tuple(stops)


def _stop_ids(fields: Fields) -> tuple[int, ...]:
    ids = fields.list("stop_token_ids", "a list of token ids") or []
    if len(ids) > MAX_BIAS or not all(type(item) is int and 0 <= item <= MAX_TOKEN for item in ids):
        raise fields.wrong("stop_token_ids", f"a list of at most {MAX_BIAS} token ids")
    return tuple(ids)


def _chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_ALTERNATIVES)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "absent unless logprobs is true")
    return (top or 0) if wanted else None
