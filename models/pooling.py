"""How a text's hidden states become one vector, or one score, read from what sentence-transformers writes; must not know
jax or files.

A folder's modules.json, and the config.json of each module that has one, stand in a config under `MODULES`:
`[{"type": "Transformer"}, {"type": "Pooling", "config": {...}}, {"type": "Normalize"}]`. Types are without their package,
which changes with its versions. https://sbert.net/docs/package_reference/sentence_transformer/modules.html
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from models.errors import ModelError

MODULES = "sentence_transformers_modules"

Kind = Literal["mean", "cls", "lasttoken"]
_KINDS: Mapping[str, Kind] = {"mean": "mean", "cls": "cls", "lasttoken": "lasttoken"}
_FLAGS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


@frozen
class DenseLayer:
    """A map of vectors, and what becomes of its values. `name` is that of its folder, and the beginning of its tensors'."""

    name: str
    inputs: int
    outputs: int
    bias: bool = True
    activation: Literal["identity", "tanh"] = "tanh"


_OF_GGUF = {0: None, 1: "mean", 2: "cls", 3: "lasttoken"}
"""`pooling_type` as llama.cpp numbers it; 4 is that of rerankers. https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h"""
_RANK = 4
_VERDICT = "rank"
VERDICT = "cls.output"
"""Of a GGUF file of a decoder that scores: the rows of the head for "yes" and for "no", which is all that it has of it."""

_ACTIVATIONS: Mapping[str, Literal["identity", "tanh"]] = {"Identity": "identity", "Tanh": "tanh"}
_TRAINED = (128, 256, 512)
"""To how many values the vectors of EmbeddingGemma may be cut, which its config does not say. https://arxiv.org/abs/2509.20354"""


@frozen
class Pooling:
    """`kind`: the mean over a text's tokens, or its first ("cls") or last one alone. Then `dense`, one after the other.
    `normalize`: to length 1.
    """

    kind: Kind = "mean"
    normalize: bool = False
    dense: tuple[DenseLayer, ...] = ()


@frozen
class LogitScore:
    """A text's score: the logit of the token `true` behind its last one, less that of `false` where there is one."""

    true: int
    false: int | None = None


def modules_of_gguf(kind: Any, dense: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """For a config, what a `pooling_type` of a GGUF file and maps behind it are in sentence-transformers' words. Vectors have
    length 1, as llama.cpp gives them. Empty of a model that generates."""
    if kind == _RANK:
        return {MODULES: [{"type": "Transformer"}, {"type": _VERDICT}]}
    pooling = _OF_GGUF.get(kind, f"number {kind}") if type(kind) is int else f"{kind!r}"
    if pooling is None:
        return {}
    middle = [{"type": "Pooling", "config": {"pooling_mode": pooling}}, *dense]
    return {MODULES: [{"type": "Transformer"}, *middle, {"type": "Normalize"}]}


def scores_by_rows(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a decoder whose verdict is in `VERDICT`, as llama.cpp's converter makes of Qwen3-Reranker."""
    return any(_type_of(module) == _VERDICT for module in _modules(config))


def scores_by_logits(config: Mapping[str, Any]) -> bool:
    """Whether a config was saved as that of a decoder whose next token is the score of a pair, as Qwen3-Reranker is."""
    return scores_by_rows(config) or any(_type_of(module) == "LogitScore" for module in _modules(config))


def read_logit_score(config: Mapping[str, Any], vocab_size: int) -> LogitScore | None:
    """What a config that `scores_by_logits` takes for "yes" and "no"; None where it names no tokens. Raises ModelError."""
    if not scores_by_logits(config) or scores_by_rows(config):
        return None
    modules = _modules(config)
    types = [_type_of(module) for module in modules]
    if types != ["Transformer", "LogitScore"]:
        raise ModelError("modules.json", [f"the modules are {', '.join(types)}, must be Transformer and LogitScore"])
    said = modules[1].get("config")
    if not isinstance(said, Mapping):
        raise ModelError("modules.json", ["a LogitScore has no config.json"])
    false, known = said.get("false_token_id"), range(vocab_size)
    named = {"true_token_id": said.get("true_token_id"), **({} if false is None else {"false_token_id": false})}
    wrong = [
        f"{key} is {token!r}, must be a token below {vocab_size}"
        for key, token in named.items()
        if type(token) is not int or token not in known
    ]
    if wrong:
        raise ModelError("LogitScore", wrong)
    return LogitScore(said["true_token_id"], false)


def has_pooling(config: Mapping[str, Any]) -> bool:
    """Whether a config was saved with a pooling, and so is of a model of embeddings whatever its architecture."""
    return any(_type_of(module) == "Pooling" for module in _modules(config))


def read_pooling(config: Mapping[str, Any]) -> Pooling:
    """The pooling of a config; the mean where none was saved, as sentence-transformers has it. Raises ModelError."""
    modules = _modules(config)
    if not modules:
        return Pooling()
    types = [_type_of(module) for module in modules]
    known = {"Transformer", "Pooling", "Dense", "Normalize"}
    strange = [f"the module {name} is not supported" for name in types if name not in known]
    kinds = [_kind(module.get("config")) for module, name in zip(modules, types, strict=True) if name == "Pooling"]
    maps = [module for module, name in zip(modules, types, strict=True) if name == "Dense"]
    between = ["Dense"] * len(maps)
    usual = ["Transformer", "Pooling", *between]
    if not strange and types not in (usual, [*usual, "Normalize"]):
        strange.append(f"the modules are {', '.join(types)}, must be Transformer, Pooling, Dense and Normalize at most")
    dense, wrong = _dense(maps, config.get("hidden_size"))
    misfits = [*strange, *(kind for kind in kinds if kind not in _KINDS), *wrong]
    if misfits:
        raise ModelError("modules.json", misfits)
    return Pooling(_KINDS[kinds[0]], "Normalize" in types, dense)


def sees_both_ways(config: Mapping[str, Any]) -> bool:
    """Whether the tokens of a decoder's text all see each other, as those of EmbeddingGemma do."""
    return config.get("use_bidirectional_attention") is True


def dense_folders(config: Mapping[str, Any]) -> list[str]:
    """The folders with tensors of their own beside a config's."""
    return [
        str(module.get("path")) for module in _modules(config) if _type_of(module) == "Dense" and module.get("path")
    ]


def _dense(modules: Sequence[Mapping[str, Any]], width: Any) -> tuple[tuple[DenseLayer, ...], list[str]]:
    """The layers, and what is wrong with them. `width`: that of what goes into the first."""
    found: list[DenseLayer] = []
    wrong: list[str] = []
    for at, module in enumerate(modules):
        name, config = str(module.get("path") or f"Dense {at}"), module.get("config")
        said = config if isinstance(config, Mapping) else {}
        activation = _ACTIVATIONS.get(str(said.get("activation_function", "Tanh")).rpartition(".")[2])
        inputs, outputs, bias = said.get("in_features"), said.get("out_features"), said.get("bias", True)
        if type(inputs) is not int or inputs != width or type(outputs) is not int or outputs < 1:
            wrong.append(f"{name} maps {inputs!r} to {outputs!r} values, and gets {width!r}")
            return (), wrong
        if activation is None or type(bias) is not bool or said.get("use_residual"):
            wrong.append(f"{name}: only Identity and Tanh without a residual are supported")
            return (), wrong
        found.append(DenseLayer(name, inputs, outputs, bias, activation))
        width = outputs
    return tuple(found), wrong


def dimensions(config: Mapping[str, Any]) -> Sequence[int]:
    """To how many values a vector may be cut: to those that a model was trained for, where its config says so in the words
    of vLLM. https://arxiv.org/abs/2205.13147."""
    width, listed = config.get("hidden_size"), config.get("matryoshka_dimensions")
    if type(width) is not int:
        return ()
    if dense_folders(config):
        width = read_pooling(config).dense[-1].outputs
    if listed is None and sees_both_ways(config):
        listed = list(_TRAINED)
    if isinstance(listed, list):
        return sorted({width, *(size for size in listed if type(size) is int and 0 < size < width)})
    return range(1, width + 1) if config.get("is_matryoshka") is True else (width,)


def _kind(config: Any) -> str:
    """The one kind that a Pooling's config names, or what is wrong with it."""
    if not isinstance(config, Mapping):
        return "a Pooling has no config.json"
    named = config.get("pooling_mode")
    found = [named] if isinstance(named, str) else [kind for flag, kind in _FLAGS.items() if config.get(flag) is True]
    if len(found) == 1 and found[0] in _KINDS:
        return found[0]
    return f"the pooling is {' and '.join(found) or 'not named'}, must be one of {', '.join(_KINDS)}"


def _modules(config: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = config.get(MODULES)
    return found if isinstance(found, list) and all(isinstance(module, Mapping) for module in found) else ()


def _type_of(module: Mapping[str, Any]) -> str:
    return str(module.get("type"))
