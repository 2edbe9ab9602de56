"""Models whose text part stands within a larger one, with images or sound: its config and the names of its tensors.

Knows names only. Such a config.json has the text part's own under `text_config`, and an architecture that ends in
ForConditionalGeneration; its checkpoint has the text part under a prefix of its own, beside what sees and hears.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from models.config import architectures

_SECTION, _WHOLE, _HEAD = "text_config", "ForConditionalGeneration", "lm_head."
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config")
"""Of the whole model, and the text part's where it says nothing itself."""
_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": _HEAD,
}
HEAD = _HEAD + "weight"
"""As transformers writes them, since version 4.52 and before, and what a model of text alone has in their place."""

_AHEAD = "mtp."
"""What drafts tokens has this name in a wrapper as well."""


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of a larger model with a text part."""
    whole = any(name.endswith(_WHOLE) for name in architectures(config))
    return whole and isinstance(config.get(_SECTION), Mapping)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the text part; one that is no wrapper is its own.

    What a text part names as its architecture counts only where it names one: else its `model_type` does.
    """
    if not is_wrapper(config):
        return config
    inner = config[_SECTION]
    shared = {key: config[key] for key in _SHARED if inner.get(key) is None and config.get(key) is not None}
    return {**inner, **shared}


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Tensors of the text part by the names that they would have alone -> those that they have in a wrapper.

    Where none has a prefix, the text part was saved alone, and all are its own.
    """
    known = list(names)
    found = {}
    for name in known:
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None:
            found[_PREFIXES[prefix] + name.removeprefix(prefix)] = name
    if not found:
        return {name: name for name in known}
    return found | {name: name for name in known if name.startswith((_HEAD, _AHEAD)) and name not in found}
