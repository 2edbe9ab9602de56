"""What a model's files say about it besides tensors: limits, tokenizer, template, advice; must not know jax or HTTP."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import msgspec
from attrs import frozen

from models.errors import ModelError
from models.pooling import dimensions, scores_by_logits
from models.registry import purpose, read
from models.spec import Outline, Purpose
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.gguf_checkpoint import GgufCheckpoint
from neuron_jax.weights.modules import read_instruction
from neuron_jax.weights.reading import read_text, read_whole
from neuron_jax.weights.safetensors import read_json
from neuron_jax.weights.spec import Checkpoint

_TOKENIZER = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_PAIR = f"{_TEMPLATE}.rerank"
_MOST = 2**31
GENERATION_CONFIG = "generation_config.json"
DEFAULT, TOOL_USE = "default", "tool_use"
"""Names of chat templates that transformers takes by itself: the second where tools are offered."""
TEMPLATE_FILE, TEMPLATE_FILES = "chat_template.jinja", "additional_chat_templates"
"""The default one, and the folder of those with other names."""
OLD_TEMPLATE_FILE = "chat_template.json"
GGUF_TOKENIZER = "tokenizer-gguf.json"
"""The `tokenizer.ggml.*` keys of the header that a converted model was made of."""
TOKENIZER_FILES = ("tokenizer.json", "tekken.json", "tokenizer.model")
"""What a folder's tokenizer is read from, the first that is there."""
_GGUF_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


@frozen(eq=False)
class TokenizerSource:
    """Where a tokenizer comes from: the bytes of tokenizer.json, the `tokenizer.ggml.*` keys of a GGUF header, or another
    file, its name and its bytes.

    `config` is tokenizer_config.json, empty without one.
    """

    json: bytes | None
    gguf: Mapping[str, Any] | None
    config: Mapping[str, Any]
    file: tuple[str, bytes] | None = None


@frozen(eq=False)
class ModelDescription:
    """A model without its tensors. `config` in config.json's terms; `outline` is what its family reads of it, and `purpose`
    what it is for; `generation_config` is the authors' advice, `instruction` what a decoder that scores is told of its
    task, or `pair` the whole text that asks it, with `{query}` and `{document}` in it. `tool_template` is the chat template
    where tools are offered, for models that have one of their own for that.
    """

    config: Mapping[str, Any]
    outline: Outline
    tokenizer: TokenizerSource
    chat_template: str | None
    generation_config: Mapping[str, Any]
    eos_ids: tuple[int, ...]
    bos_id: int | None
    parameters: int
    weight_bytes: int
    purpose: Purpose = "generate"
    instruction: str | None = None
    pair: str | None = None
    tool_template: str | None = None

    @property
    def context_length(self) -> int:
        """Tokens."""
        return self.outline.max_positions

    @property
    def dimensions(self) -> Sequence[int]:
        """To how many values its vectors may be cut."""
        return dimensions(self.config)

    @property
    def asks_in_words(self) -> bool:
        """Whether it is a decoder that scores, and so has to be asked by a prompt."""
        return scores_by_logits(self.config)


class _TokenizerFile(msgspec.Struct):
    """What a tokenizer.json has at least; a download that was cut short has not even that. Read in a few milliseconds."""

    model: msgspec.Raw


def describe(path: Path) -> ModelDescription:
    """Reads headers and small files only. Raises WeightsError listing all that is wrong with them.

    A generation_config.json beside a .gguf file counts as that file's.
    """
    with open_checkpoint(path) as checkpoint:
        if isinstance(checkpoint, GgufCheckpoint):
            return _of_gguf(path, checkpoint)
        return _of_folder(path, checkpoint)


def _of_gguf(path: Path, checkpoint: GgufCheckpoint) -> ModelDescription:
    header = checkpoint.metadata
    tokenizer = {key: value for key, value in header.items() if key.startswith(_TOKENIZER)}
    advice = _optional_json(path.parent / GENERATION_CONFIG)
    ends = [header.get(_TOKENIZER + key) for key in _GGUF_ENDS]
    return _description(
        path,
        checkpoint,
        tokenizer=TokenizerSource(json=None, gguf=tokenizer, config={}),
        templates={DEFAULT: header.get(_TEMPLATE), TOOL_USE: header.get(f"{_TEMPLATE}.{TOOL_USE}")},
        advice=advice,
        ends=[advice.get("eos_token_id"), *ends],
        pair=header.get(_PAIR),
    )


def _of_folder(folder: Path, checkpoint: Checkpoint) -> ModelDescription:
    config = _optional_json(folder / "tokenizer_config.json")
    advice = _optional_json(folder / GENERATION_CONFIG)
    return _description(
        folder,
        checkpoint,
        tokenizer=_tokenizer(folder, config),
        templates=_chat_templates(folder, config),
        advice=advice,
        ends=[advice.get("eos_token_id") or checkpoint.config.get("eos_token_id")],
        instruction=read_instruction(folder),
    )


def _tokenizer(folder: Path, config: Mapping[str, Any]) -> TokenizerSource:
    """tokenizer.json where it is there: it says the most."""
    if (folder / GGUF_TOKENIZER).is_file():
        return TokenizerSource(json=None, gguf=read_json(folder / GGUF_TOKENIZER), config=config)
    path = next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)
    path = path or next(iter(sorted(folder.glob("*.tiktoken"))), None)
    if path is None:
        raise bad_checkpoint(folder, [f"has no {', '.join(TOKENIZER_FILES)} or .tiktoken file"])
    content = read_whole(path)
    if path.name != TOKENIZER_FILES[0]:
        return TokenizerSource(json=None, gguf=None, config=config, file=(path.name, content))
    try:
        msgspec.json.decode(content, type=_TokenizerFile)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise bad_checkpoint(path, [f"not a tokenizer: {error}"]) from error
    return TokenizerSource(json=content, gguf=None, config=config)


def _description(
    path: Path,
    checkpoint: Checkpoint,
    *,
    tokenizer: TokenizerSource,
    templates: Mapping[str, Any],
    advice: Mapping[str, Any],
    ends: list[Any],
    instruction: str | None = None,
    pair: Any = None,
) -> ModelDescription:
    config = checkpoint.config
    outline, wrong = _outline(config)
    used = [templates.get(name) for name in (DEFAULT, TOOL_USE)]
    wrong += [f"the chat template is {one!r}, must be text" for one in used if not isinstance(one, str | None)]
    if pair is not None and not isinstance(pair, str):
        wrong.append(f"{_PAIR} is {pair!r}, must be text")
    wrong += [
        f"eos_token_id is {value!r}, must be a token or a list of tokens" for value in ends if not _names_ids(value)
    ]
    if outline is None or wrong:
        raise bad_checkpoint(path, wrong)
    return ModelDescription(
        config=config,
        outline=outline,
        tokenizer=tokenizer,
        chat_template=used[0],
        generation_config=advice,
        eos_ids=_ids(ends),
        bos_id=next(iter(_ids([config.get("bos_token_id")])), None),
        parameters=sum(prod(info.shape) for info in checkpoint.tensors.values()),
        weight_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
        purpose=purpose(config),
        instruction=instruction,
        pair=pair,
        tool_template=used[1],
    )


def _outline(config: Mapping[str, Any]) -> tuple[Outline | None, list[str]]:
    """What the family makes of the config, and what it finds wrong: told here, so that nobody has to load it to know."""
    try:
        return read(config), []
    except ModelError as error:
        return None, list(error.misfits)


def _names_ids(value: Any) -> bool:
    """A model whose ends are lost would not stop. Some files have -1 for none."""
    return value is None or all(type(item) is int for item in (value if isinstance(value, list) else [value]))


def _ids(values: list[Any]) -> tuple[int, ...]:
    """Token ids out of numbers, lists of numbers and None, each once."""
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return tuple(dict.fromkeys(item for item in flat if type(item) is int and 0 <= item < _MOST))


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """By name, as they stand there, which should be text.

    In files of their own in newer repositories, which are then all there are; else in tokenizer_config.json, as text or as a
    list of named ones. Models that see had theirs in a file of their own once.
    """
    files = {path.stem: path for path in sorted((folder / TEMPLATE_FILES).glob("*.jinja"))}
    if _is_there(folder / TEMPLATE_FILE):
        files[DEFAULT] = folder / TEMPLATE_FILE
    said = config.get("chat_template") or _optional_json(folder / OLD_TEMPLATE_FILE).get("chat_template")
    named = _named(said) if isinstance(said, list) else {DEFAULT: said}
    found = {name: read_text(files[name]) for name in (DEFAULT, TOOL_USE) if name in files}
    return {DEFAULT: named.get(DEFAULT), **found} if files else named


def _named(templates: list[Any]) -> Mapping[str, Any]:
    return {
        one["name"]: one["template"]
        for one in templates
        if isinstance(one, dict) and isinstance(one.get("name"), str) and "template" in one
    }


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if _is_there(path) else {}


def _is_there(path: Path) -> bool:
    """Also when it cannot be read: a model without its template or its limits would serve, and answer otherwise."""
    return path.exists() or path.is_symlink()
