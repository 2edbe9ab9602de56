"""What a body asks of generation itself, the same for chats and completions; must not know models, engines or HTTP."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from neuron_jax.common.names import LONGEST_NAME
from neuron_jax.daemon.fields import Fields, is_number
from neuron_jax.daemon.problems import Problem, unsupported
from neuron_jax.daemon.structured import Binding, read_constraint

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_BIAS = 300
MAX_ALTERNATIVES = 20
INT64 = 2**63
MAX_TOKEN = 2**31 - 1
MAX_TOKENS = 2**40
"""Above any context; a larger max_tokens is a mistake."""


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
    form: Binding | None = None  # what the answer must look like
    thinking_budget: int | None = None  # tokens of thoughts, after which they are closed
    hides_thoughts: bool = False  # they are counted and not told
    tells_progress: bool = False  # a stream tells how far its prompt is, in chunks
    prompt_logprobs: int | None = None  # alternatives per token of the prompt; None = none of them are told


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


def read_model(fields: Fields) -> str:
    """The model's name. Raises Problem missing_model_field, invalid_request_body."""
    name = fields.text("model")
    if not name:
        raise Problem(400, "missing_model_field", "The body must name a model.", param="model")
    if len(name) > LONGEST_NAME:
        raise fields.wrong("model", f"a string of at most {LONGEST_NAME} characters")
    return name


def refuse_unfit(fields: Fields, unfit: Mapping[str, Callable[[Any], bool]]) -> None:
    """Raises Problem on a parameter that changes the result and is not carried out. `unfit`: of each, what does not."""
    for name, harmless in unfit.items():
        value = fields.get(name)
        if value is not None and not harmless(value):
            raise unsupported(name, f"{name} is not supported by this server; leave it out.")


def read_params(fields: Fields, model: str, logprobs: int | None) -> SamplingParams:
    """What is asked of sampling, lengths and forms. `logprobs`: alternatives per token. Raises Problem."""
    options = fields.object("stream_options") or Fields({})
    most = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    seed = fields.integer("seed", -INT64, 2 * INT64 - 1)
    params = SamplingParams(
        model=model,
        stream=fields.flag("stream"),
        include_usage=options.flag("include_usage"),
        continuous_usage=options.flag("continuous_usage_stats"),
        # Of an echo alone none need follow.
        max_tokens=fields.integer("max_tokens", 0 if fields.flag("echo") else 1, MAX_TOKENS) if most is None else most,
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
        tells_progress=fields.flag("return_progress"),
        prompt_logprobs=fields.integer("prompt_logprobs", 0, MAX_ALTERNATIVES),
    )
    if params.prompt_logprobs is not None:
        if params.stream:
            raise fields.wrong("prompt_logprobs", "absent in a stream")
        refuse_beside_scores(fields, params.form, "prompt_logprobs asks")
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise fields.wrong("min_tokens", f"at most max_tokens, which is {params.max_tokens}")
    return params


def refuse_beside_scores(fields: Fields, form: Binding | None, who: str) -> None:
    """What the answer alone is drawn by would hold for the prompt as well, where its log-probabilities are computed."""
    for name in ("min_tokens", "presence_penalty", "frequency_penalty", "suffix"):
        if fields.get(name):
            raise fields.wrong(name, f"absent, empty or 0 where {who} for those of the prompt")
    if form is not None:
        raise fields.wrong(form.field, f"absent where {who} for those of the prompt")


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
