"""Bodies of /v1/embeddings, /v1/rerank and /v1/score → what they ask for; pure, must not know models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from neuron_jax.daemon.fields import Fields
from neuron_jax.daemon.params_schema import MAX_TOKEN, read_model
from neuron_jax.daemon.problems import Problem, invalid_body, unsupported

MAX_INPUTS = 2048
"""Texts of one request, as OpenAI has it."""

Text = str | list[int]


@frozen
class EmbeddingsRequest:
    """POST /v1/embeddings. `dimensions` None: all. `truncate`: inputs that are too long are cut rather than refused.
    `normalize`: to length 1, whether or not the model does so itself.
    """

    model: str
    inputs: Sequence[Text]
    encoding: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    truncate: bool = False
    normalize: bool = False


@frozen
class PairsRequest:
    """What POST /v1/rerank and /v1/score ask of a model: how well the texts of each pair go together.

    `fields` are the names of the body's fields that the pairs come from. `raw`: as the model says it, else from 0 to 1.
    """

    model: str
    pairs: Sequence[tuple[str, str]]
    fields: tuple[str, str]
    raw: bool = False


@frozen
class RerankRequest:
    """POST /v1/rerank: the `top` documents that go best with a query, all by default."""

    asked: PairsRequest
    top: int
    documents: bool


def read_embeddings(body: Mapping[str, Any]) -> EmbeddingsRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    encoding = fields.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise fields.wrong("encoding_format", '"float" or "base64"')
    return EmbeddingsRequest(
        model,
        _inputs(fields),
        encoding or "float",
        fields.integer("dimensions", 1, 2**20),
        fields.integer("truncate_prompt_tokens", -1, -1) is not None,
        _normalize(fields),
    )


def _normalize(fields: Fields) -> bool:
    if fields.get("normalize") is not None and not fields.flag("normalize"):
        raise unsupported("normalize", "normalize: vectors come as the model makes them; say true or leave it out.")
    return fields.flag("normalize")


def read_rerank(body: Mapping[str, Any]) -> RerankRequest:
    """Raises Problem on the first field that cannot be followed."""
    fields = Fields(body)
    model = read_model(fields)
    query = _said(fields, "query")
    documents = _each(fields, "documents", _document)
    shown = fields.flag("return_documents", absent=True)
    top = fields.integer("top_n", 1, 2**31 - 1)
    asked = PairsRequest(model, [(query, document) for document in documents], ("query", "documents"), _raw(fields))
    return RerankRequest(asked, min(top or len(documents), len(documents)), shown)


def read_score(body: Mapping[str, Any]) -> PairsRequest:
    """`text_1` and `text_2`: one with each of several, or as many pairs. Raises Problem."""
    fields = Fields(body)
    model = read_model(fields)
    first, second = (_one_or_each(fields, name) for name in ("text_1", "text_2"))
    if len(first) == 1:
        first = [*first] * len(second)
    if len(first) != len(second):
        raise fields.wrong("text_2", f"as many texts as text_1 has, which are {len(first)}")
    return PairsRequest(model, list(zip(first, second, strict=True)), ("text_1", "text_2"), _raw(fields))


def _raw(fields: Fields) -> bool:
    """vLLM's `use_activation` and its older `activation`."""
    return not fields.flag("use_activation", absent=fields.flag("activation", absent=True))


def _inputs(fields: Fields) -> Sequence[Text]:
    found = fields.get("input")
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list) or not found:
        raise fields.wrong("input", "a string, a list of strings, a list of token ids, or a list of such lists")
    if all(type(item) is int for item in found):
        return [_ids("input", found)]
    if len(found) > MAX_INPUTS:
        raise invalid_body("input", f"input must have at most {MAX_INPUTS} items; found {len(found)}.")
    return [item if isinstance(item, str) else _ids(f"input[{at}]", item) for at, item in enumerate(found)]


def _ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= MAX_TOKEN for item in value):
        raise invalid_body(name, f"{name} must be a string or a list of token ids.")
    return value


def _said(fields: Fields, name: str) -> str:
    found = fields.text(name)
    if not found:
        raise fields.wrong(name, "a string that is not empty")
    return found


def _one_or_each(fields: Fields, name: str) -> Sequence[str]:
    found = fields.get(name)
    return [_said(fields, name)] if isinstance(found, str) else _each(fields, name, _text)


def _each(fields: Fields, name: str, read: Callable[[str, Any], str]) -> Sequence[str]:
    found = fields.list(name, "a list of strings")
    if not found:
        raise fields.wrong(name, "a list of at least one text")
    if len(found) > MAX_INPUTS:
        raise invalid_body(name, f"{name} must have at most {MAX_INPUTS} items; found {len(found)}.")
    return [read(f"{name}[{at}]", item) for at, item in enumerate(found)]


def _text(name: str, item: Any) -> str:
    if not isinstance(item, str):
        raise invalid_body(name, f"{name} must be a string.")
    return item


def _document(name: str, item: Any) -> str:
    """A string, or an object with a `text` as Cohere's first version and Jina have it."""
    return _text(f"{name}.text", item.get("text")) if isinstance(item, dict) else _text(name, item)


def refuse_kind(model: str, able: Sequence[str], wanted: str) -> None:
    """Raises Problem where a model that can be asked for `able` is asked for something else."""
    if wanted in able:
        return
    raise Problem(
        400,
        "unsupported_model",
        f"The model {model!r} cannot be asked for {NAMES[wanted]}: it {DOES[able[0]]}.",
        param="model",
        capabilities=list(able),
    )


NAMES = {"text": "text", "embeddings": "embeddings", "rerank": "an order of documents", "score": "scores"}
DOES = {
    "text": "generates text (/v1/chat/completions, /v1/completions)",
    "embeddings": "makes embeddings (/v1/embeddings)",
    "rerank": "scores pairs of texts (/v1/rerank, /v1/score)",
}
