"""A checked request and a model's text → a job: prompt, limits, sampling; pure but for what is handed in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import msgspec
from attrs import frozen

from neuron_jax.daemon.generation import GenerationJob
from neuron_jax.daemon.model_text import Encoded, ModelText, Render
from neuron_jax.daemon.params_schema import SamplingParams
from neuron_jax.daemon.problems import context_too_long, invalid_body, unsupported
from neuron_jax.daemon.schema import ChatRequest, CompletionRequest
from neuron_jax.daemon.structured import Binding
from neuron_jax.text.bound_calls import calls_or_answer, forced_calls, free_calls
from neuron_jax.text.errors import TooManyTokensError, UncutTextError
from neuron_jax.text.prompt import Rendered
from neuron_jax.text.thinking import thought_tokens
from neuron_jax.workers.frames import Constraint, Sampling, Submit, Thoughts

UINT64 = 2**64
MAX_PROMPT_TOKENS = 2**19
"""Of all prompts of one request together, where the context is shorter than that."""


@frozen
class Outside:
    """What a job needs from outside: a fresh id and seed, the clock, the context limit in tokens, the adapter's number."""

    id: str
    seed: int
    created: int
    max_context: int
    adapter: int = 0


def with_bound_calls(request: ChatRequest, text: ModelText) -> ChatRequest:
    """A request whose calls are bound: those that it must make, and those that it makes of functions that are strict.
    Raises Problem where the model's cannot be forced.
    """
    if request.forced:
        return _with_forced_calls(request, text)
    functions = [tool["function"] for tool in request.chat.tools or ()]
    form = request.params.form
    if text.tool_format is None or not functions:
        return request
    if form is not None:
        return _with_calls_beside(request, text.tool_format, functions, form)
    if not any(function.get("strict") is True for function in functions):
        return request
    source = free_calls(text.tool_format, functions, several=not request.one_call)
    return _bound(request, Binding(Constraint("calls", source), "tools", among_text=True))


def _with_calls_beside(
    request: ChatRequest, format_: str, functions: Sequence[Mapping[str, Any]], form: Binding
) -> ChatRequest:
    """An answer that is to be JSON may be calls instead: whoever sends tools wants them used first."""
    schema = {"json_object": '{"type": "object"}', "json_schema": form.constraint.source}.get(form.constraint.kind)
    if schema is None:
        return request
    source = calls_or_answer(format_, functions, schema, several=not request.one_call)
    return _bound(request, Binding(Constraint("calls", source), form.field))


def _with_forced_calls(request: ChatRequest, text: ModelText) -> ChatRequest:
    if request.params.form is not None:
        raise invalid_body(
            "tool_choice", f"tool_choice: {request.params.form.field} says already what the answer looks like."
        )
    if text.tool_format is None:
        raise unsupported("tool_choice", "tool_choice: calls of this model cannot be forced; leave it to the model.")
    source = forced_calls(text.tool_format, request.forced, several=not request.one_call)
    return _bound(request, Binding(Constraint("calls", source), "tools"))


def _bound(request: ChatRequest, form: Binding) -> ChatRequest:
    return attrs.evolve(request, params=attrs.evolve(request.params, form=form))


async def render_chat(render: Render, request: ChatRequest, text: ModelText, outside: Outside) -> Rendered:
    """The prompt of a chat. Raises Problem when the template refuses it, or when it surely does not fit."""
    with fitting("messages", outside.max_context):
        return await text.render_chat(render, request.chat, outside.max_context - 1)


def chat_job(request: ChatRequest, prompt: Rendered, text: ModelText, outside: Outside) -> GenerationJob:
    """Raises Problem when a token is unknown, or the prompt leaves no room for an answer."""
    with fitting("messages", outside.max_context):
        encoded = text.encode_chat(prompt, tools=bool(request.chat.tools), most=outside.max_context - 1)
    functions = [tool["function"] for tool in request.chat.tools or ()]
    reading = attrs.evolve(
        encoded.reading, functions=functions, one_call=request.one_call, only_calls=bool(request.forced)
    )
    job = _job(request.params, text, [attrs.evolve(encoded, reading=reading)], outside)
    if request.params.prompt_logprobs is None:
        return job
    form = request.params.form  # calls that are bound; what the body names itself was refused with it
    if form is not None:
        raise invalid_body(form.field, f"{form.field}: calls are bound only where prompt_logprobs is absent.")
    first, *others = job.submits  # all have the same prompt
    return attrs.evolve(job, submits=[_recited(first), *others])


def completion_job(request: CompletionRequest, text: ModelText, outside: Outside) -> GenerationJob:
    """Raises Problem when a token is unknown or a prompt does not fit."""
    several = len(request.prompts) > 1
    names = [f"prompt[{index}]" if several else "prompt" for index in range(len(request.prompts))]
    encoded: list[Encoded] = []
    left = max(MAX_PROMPT_TOKENS, outside.max_context)
    for name, prompt in zip(names, request.prompts, strict=True):
        with fitting(name, outside.max_context):
            encoded.append(_encoded(request, name, prompt, text, outside.max_context - 1))
        left -= len(encoded[-1].ids)
        if left < 0:
            raise invalid_body("prompt", f"prompt: more than {MAX_PROMPT_TOKENS} tokens in one request.")
    params = attrs.evolve(request.params, n=request.best_of)
    chosen = request.best_of > request.params.n
    if chosen and params.logprobs is None:
        params = attrs.evolve(params, logprobs=0)  # by which the likeliest are found
    echoes = [_as_text(prompt, text) for prompt in request.prompts for _ in range(params.n)] if request.echo else ()
    job = _job(params, text, encoded, outside)
    recited = request.scores or params.prompt_logprobs is not None
    return attrs.evolve(
        job,
        submits=[_recited(one) for one in job.submits] if recited else job.submits,
        echoes=echoes,
        recites=request.scores,
        hidden=request.params.max_tokens == 0,
        told=request.params.n if chosen else None,
    )


def _recited(submit: Submit) -> Submit:
    """The same answer, with its prompt told as the beginning of it: all but the first token, of which nothing is known."""
    first, *rest = submit.prompt
    most = len(rest) + submit.max_tokens
    return msgspec.structs.replace(submit, prompt=[first], begins=tuple(rest), max_tokens=most)


def _encoded(request: CompletionRequest, name: str, prompt: str | list[int], text: ModelText, most: int) -> Encoded:
    if request.suffix and isinstance(prompt, str):
        return text.encode_gap(prompt, request.suffix, most)
    return text.encode_prompt(name, prompt, most)


def _as_text(prompt: str | list[int], text: ModelText) -> str:
    return prompt if isinstance(prompt, str) else text.tokenizer.decode(prompt, skip_special=False)


@contextmanager
def fitting(name: str, limit: int) -> Iterator[None]:
    """Raises Problem where the field `name` is too long for a context of `limit` tokens, or cannot be counted."""
    try:
        yield
    except TooManyTokensError as error:
        raise context_too_long(name, error.tokens, limit, exact=error.exact) from error
    except UncutTextError as error:
        raise invalid_body(name, f"{name}: {error}.") from error


def _job(params: SamplingParams, text: ModelText, encoded: Sequence[Encoded], outside: Outside) -> GenerationJob:
    text.check_ids("stop_token_ids", params.stop_token_ids)
    text.check_ids("logit_bias", tuple(params.logit_bias))
    choices = [item for item in encoded for _ in range(params.n)]
    base = sampling(params, text.advice, outside.seed)
    return GenerationJob(
        id=outside.id,
        model=params.model,
        created=outside.created,
        text=text,
        submits=[
            _submit(
                index,
                params,
                item,
                eos_ids=text.description.eos_ids,
                drawn=_reseeded(base, index),
                outside=outside,
                constraint=_constraint(params, item.reading.reasoning, text),
                thoughts=_thoughts(params, item.reading.reasoning, text),
            )
            for index, item in enumerate(choices)
        ],
        encoded=choices,
        stops=params.stops,
        stop_token_ids=frozenset(params.stop_token_ids) - frozenset(text.description.eos_ids),
        min_tokens=params.min_tokens,
        prompt_tokens=sum(len(item.ids) for item in encoded),
        alternatives=params.logprobs,
        prompt_alternatives=params.prompt_logprobs,
    )


def _submit(
    index: int,
    params: SamplingParams,
    encoded: Encoded,
    *,
    eos_ids: Sequence[int],
    drawn: Sampling,
    outside: Outside,
    constraint: Constraint | None,
    thoughts: Thoughts | None,
) -> Submit:
    left = outside.max_context - len(encoded.ids)
    if params.min_tokens > left:
        raise invalid_body(
            "min_tokens", f"min_tokens is {params.min_tokens}, and the context has room for {left} tokens."
        )
    eos = () if params.ignore_eos else eos_ids
    stop_ids = tuple(dict.fromkeys((*eos, *encoded.ends, *params.stop_token_ids)))
    return Submit(
        request=index,
        prompt=encoded.ids,
        sampling=drawn,
        max_tokens=left if params.max_tokens is None else max(1, min(params.max_tokens, left)),
        min_tokens=params.min_tokens,
        stop_ids=stop_ids,
        ignore_eos=params.ignore_eos and not stop_ids,
        constraint=constraint,
        thoughts=thoughts,
        adapter=outside.adapter,
    )


def _constraint(params: SamplingParams, reasoning: str | None, text: ModelText) -> Constraint | None:
    """What binds the answer: where the model thinks first, what comes behind that."""
    if params.form is None:
        return None
    if reasoning is None or params.form.among_text:
        return params.form.constraint
    opens, closes = text.thinking
    if closes is None:
        raise unsupported(
            params.form.field, f"{params.form.field}: this model's thoughts end with no token of their own."
        )
    opened = reasoning == "think_opened"
    return msgspec.structs.replace(params.form.constraint, after=closes, opens=None if opened else opens)


def _thoughts(params: SamplingParams, reasoning: str | None, text: ModelText) -> Thoughts | None:
    """How long it may think, where it thinks at all and its thoughts end with a token of their own."""
    if params.thinking_budget is None or reasoning is None:
        return None
    tokens = thought_tokens(text.tokenizer, reasoning)
    if tokens is None:
        return None
    closing = tokens.closing if params.form else (*tokens.closing, *tokens.begins)
    return Thoughts(params.thinking_budget, tokens.closes, closing, tokens.opens)


def sampling(params: SamplingParams, advice: Mapping[str, Any], seed: int) -> Sampling:
    """Request, then what the model's authors advise, then neutral; a drawn `seed` where the client gave none."""
    return Sampling(
        **{**advice, **params.sampling},
        seed=seed if params.seed is None else params.seed,
        logit_bias=dict(params.logit_bias),
        logprobs=max((most for most in (params.logprobs, params.prompt_logprobs) if most is not None), default=None),
    )


def _reseeded(base: Sampling, index: int) -> Sampling:
    """The sampling of choice `index`: seeds count up, so that the choices differ and can be repeated one by one."""
    return msgspec.structs.replace(base, seed=(base.seed + index) % UINT64)
