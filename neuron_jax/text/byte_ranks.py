"""Vocabularies that are bytes with a rank: tiktoken's files and Mistral's tekken.json; must not know where they lie.

Text is cut by a pattern, and in each word those two neighbours are joined first whose joining has the lowest rank.
https://github.com/openai/tiktoken, src/lib.rs; https://github.com/mistralai/mistral-common, tokens/tokenizers/tekken.py.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, models, processors

from neuron_jax.text.errors import TokenizerError
from neuron_jax.text.gguf_vocab import byte_level, ranked_merges
from neuron_jax.text.pre_tokenizers import LLAMA3_SPLIT, QWEN2_SPLIT, PreTokenizer
from neuron_jax.text.vocab_bytes import BYTES

_CHARS = {byte: char for char, byte in BYTES.items()}
_BOS, _EOS = "<s>", "</s>"
_OLD_SPECIALS = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
    ),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
"""Of files that do not list theirs."""


def from_tekken(content: bytes) -> tokenizers.Tokenizer:
    """Special tokens have the first ids. Raises TokenizerError."""
    try:
        said = json.loads(content)
        config = said["config"]
        count, size = config["default_num_special_tokens"], config["default_vocab_size"]
        ranks = {b64decode(row["token_bytes"]): row["rank"] for row in said["vocab"][: size - count]}
        listed = said.get("special_tokens") or [
            {"rank": at, "token_str": name} for at, name in enumerate(_OLD_SPECIALS)
        ]
        named = {row["rank"]: row["token_str"] for row in listed}
        specials = {named.get(id_, f"<SPECIAL_{id_}>"): id_ for id_ in range(count)}
        pattern = config["pattern"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"not a tekken.json: {error!r}") from error
    return _tokenizer({token: rank + count for token, rank in ranks.items()}, specials, {}, pattern, first=_BOS)


def from_tiktoken(content: bytes, added: Mapping[int, tuple[str, bool]], *, qwen: bool, first: str | None) -> Any:
    """Lines of a token in base64 and its rank; `added` are those by id that no file lists, and whether they are special.

    The file does not say its pattern: it is Llama 3's, or that of the first `qwen`. `first` is put before a raw prompt.
    Raises TokenizerError.
    """
    try:
        rows = [line.split() for line in content.splitlines() if line]
        ranks = {b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError as error:
        raise TokenizerError(f"not a tiktoken file: {error}") from error
    special = {text: id_ for id_, (text, is_special) in added.items() if is_special}
    plain = {text: id_ for id_, (text, is_special) in added.items() if not is_special}
    return _tokenizer(ranks, special, plain, QWEN2_SPLIT if qwen else LLAMA3_SPLIT, first=first)


def _tokenizer(
    ids: Mapping[bytes, int], special: Mapping[str, int], plain: Mapping[str, int], pattern: str, *, first: str | None
) -> tokenizers.Tokenizer:
    spelt = {"".join(map(_CHARS.__getitem__, token)): id_ for token, id_ in ids.items()}
    try:
        # A word that is a token is that token, whatever would be joined first.
        model = models.BPE({**spelt, **special, **plain}, ranked_merges(spelt), ignore_merges=True)
        found = byte_level(model, PreTokenizer((pattern,)))
    except Exception as error:  # the library raises bare Exception for every kind of bad vocabulary
        raise TokenizerError(f"the vocabulary cannot be used: {error}") from error
    found.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    found.add_tokens([AddedToken(token, normalized=False) for token in plain])
    if first is not None and (id_ := found.token_to_id(first)) is not None:
        found.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, id_)])
    return found
