"""The bodies of chat, completions and tokenize, checked field by field; must not know models, engines or HTTP.

A parameter that would change the result and that nobody here carries out is refused by name; fields nobody knows are
ignored, as every client expects. The ranges are those of docs/wire.md section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from neuron_jax.daemon.chat_schema import calls_once, chosen_tools, forced_functions, read_conversation, read_tools
from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.params_schema import (
    MAX_ALTERNATIVES,
    MAX_CHOICES,
    MAX_TOKEN,
    UNSUPPORTED,
    UNSUPPORTED_IN_CHAT,
    SamplingParams,
    read_model,
    read_params,
    refuse_beside_scores,
    refuse_unfit,
)
from neuron_jax.daemon.problems import invalid_body
from neuron_jax.daemon.thinking import read_budget, read_hidden
from neuron_jax.text.prompt import Chat

MAX_PROMPTS = 128


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
    before it, with the log-probabilities of its tokens where those are asked for; of `best_of` answers to each prompt the
    `params.n` likeliest are told."""

    params: SamplingParams
    prompts: Sequence[str | list[int]]
    suffix: str = ""
    echo: bool = False
    best_of: int = 1

    @property
    def answers(self) -> int:
        """How many run side by side."""
        return len(self.prompts) * self.best_of

    @property
    def scores(self) -> bool:
        """Whether `logprobs` has those of the prompts' tokens, too."""
        return self.echo and self.params.logprobs is not None


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
    refuse_unfit(fields, UNSUPPORTED_IN_CHAT)
    chat = read_conversation(fields, chosen_tools)
    params = read_params(fields, model, _chat_logprobs(fields))
    budget = read_budget(fields)
    if budget is not None and params.prompt_logprobs is not None:
        raise fields.wrong("prompt_logprobs", "absent where there is a budget of thoughts")
    return ChatRequest(
        params=evolve(params, thinking_budget=budget, hides_thoughts=read_hidden(fields)),
        chat=chat,
        one_call=calls_once(fields),
        forced=forced_functions(fields, chat.tools or ()),
    )


def read_completion(body: Mapping[str, Any]) -> CompletionRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    refuse_unfit(fields, UNSUPPORTED)
    prompts = _prompts(fields)
    params = read_params(fields, model, fields.integer("logprobs", 0, MAX_ALTERNATIVES))
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
        refuse_beside_scores(fields, params.form, "echo and logprobs ask")
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
    return TokenizeRequest(model, chat=read_conversation(fields, read_tools), names=names)


def read_detokenize(body: Mapping[str, Any]) -> DetokenizeRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model, tokens = read_model(fields), fields.get("tokens")
    if not isinstance(tokens, list):
        raise fields.wrong("tokens", "a list of token ids")
    return DetokenizeRequest(model, _ids("tokens", tokens))


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


def _chat_logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_ALTERNATIVES)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "absent unless logprobs is true")
    return (top or 0) if wanted else None
