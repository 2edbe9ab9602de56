"""Prints docs/models.md, from the registry, the families' files and the cases they are held to; writes nothing itself.

python tools/models_table.py > docs/models.md
"""

import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from models import registry  # noqa: E402 - the repository is not installed where this runs
from models.linears import NATIVE, XLA  # noqa: E402
from models.spec import Family  # noqa: E402
from neuron_jax.text.calls.table import FORMATS  # noqa: E402
from neuron_jax.weights.builtin import BUILT_IN  # noqa: E402
from neuron_jax.weights.describe import TOKENIZER_FILES  # noqa: E402
from neuron_jax.weights.gguf_formats import FORMATS as BLOCKS  # noqa: E402
from neuron_jax.weights.quantized.checkpoint import FLOATS, WAYS  # noqa: E402
from tests.models.test_encoders import CASES as ENCODERS  # noqa: E402
from tests.models.test_references import FAMILIES as DECODERS  # noqa: E402

HEAD = """# Models

Made by `python tools/models_table.py > docs/models.md` from the registry, and held to it by a test. What is not here is not
served: an architecture that no family has is refused by name. Wrappers (`text_config`) are served as their text part.
A decoder that embeds may have been saved without its head, as `Qwen3Model`.
"""
TRIED = """
## What each is held to, and what it refuses

Random models with these configurations have the logits and the greedy text of transformers, encoders its vectors and scores
(`tests/models/test_references.py`, `test_encoders.py`).
"""
FORMATS_HEAD = """
## Formats

Quantized weights stay codes where a storage of codes, scales and offsets holds them exactly. Float8 and act-order are widened
to float32, or to bfloat16 where scales are powers of two. XLA, on GPUs and over several devices, keeps MXFP4 alone as codes
(`stored`, which is what a GPU does by itself), and widens what else is not asked for in one of its own formats. What a
`quantization_config` says of rounding activations is not followed. Other methods, versions and widths are refused by name.

"""
CALLS_HEAD = """
## Tools and reasoning

A chat template shows which format its model writes, so this goes by template, not by family. Calls of a template that shows
none stay text. `<think>` is understood beside all of them.

"""
BUILT_IN_HEAD = """
## Built-in models

Fetched from the package index under these names.

"""


_BOUNDS = re.compile(r"[;,] (must not know|no files)\b.*")
_ADDRESS = re.compile(r",? ?(\()?https?://[^\s),]+(?(1)\))")
_OF_FILES = re.compile(r"^\(|Read from top|A new family is|`models\.|\.py\b")


def page() -> str:
    """The whole of docs/models.md."""
    modules = [(importlib.import_module(name), family) for name, family in _families()]
    rows = [_row(module, family) for module, family in modules]
    tried = [_tried(module, family) for module, family in modules]
    parts = [
        HEAD,
        _table(("family", "`architectures`", "`model_type`", "GGUF", "what it is"), rows),
        TRIED,
        _table(("family", "configurations", "refused"), tried),
        _formats(),
        _calls(),
        _built_in(),
    ]
    return "\n".join(part.lstrip("\n") for part in parts)


def _families() -> Iterator[tuple[str, Family]]:
    yield from zip(registry.FAMILIES, registry.families(), strict=True)


def _row(module: ModuleType, family: Family) -> tuple[str, ...]:
    title, _, more = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    title = _BOUNDS.sub("", " ".join(title.split())).removeprefix("The ").rstrip(".")
    name, _, sizes = title.partition(": ")
    about = " ".join(part for part in (f"{sizes}." if sizes else "", _prose(more)) if part)
    return (
        f"[{name.replace(' family', '')}](../models/{_file(module)})",
        _code(family.architectures),
        _code(family.model_types),
        _code(table.architecture for table in family.gguf),
        about,
    )


def _prose(text: str) -> str:
    """What a docstring says of the model, in one line: without addresses, and without what it says of the file."""
    sentences = re.split(r"(?<=[.:]) (?=[A-Z(])", _ADDRESS.sub("", " ".join(text.split())))
    return " ".join(sentence for sentence in sentences if not _OF_FILES.search(sentence) and sentence.strip(" .,"))


def _tried(module: ModuleType, family: Family) -> tuple[str, ...]:
    names = set(family.architectures)
    cases = [
        case
        for group in (*DECODERS.values(), ENCODERS)
        for case, config in group.items()
        if names & set(config.get("architectures", ()))
    ]
    return f"`{_file(module)}`", "; ".join(cases), "; ".join(dict.fromkeys(_refusals(module, family)))


def _file(module: ModuleType) -> str:
    return Path(str(module.__file__)).relative_to(ROOT / "models").as_posix()


def _refusals(module: ModuleType, family: Family) -> Iterator[str]:
    """What the family's own file refuses, besides values of a wrong type or size."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "refuse":
            yield _words(node.args[0])
        if node.func.attr == "choice" and isinstance(node.args[0], ast.Constant):
            choices: Mapping[str, Any] = eval(ast.unparse(node.args[1]), vars(module))
            yield f"`{node.args[0].value}` other than {' or '.join(choices)}"
    for table in family.gguf:
        yield from (f"GGUF `{key}`: {why}" for key, why in table.refused.items())


def _words(node: ast.expr) -> str:
    """A message, with an ellipsis for what is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def _formats() -> str:
    rows = [
        ("safetensors", _list(FLOATS)),
        ("safetensors with a `quantization_config`", _list(f"`{name}`" for name in WAYS)),
        ("GGUF, in one file or several", _list(block.name for block in BLOCKS.values())),
        ("tokenizers", _list([*(f"`{name}`" for name in TOKENIZER_FILES), "`*.tiktoken`", "the GGUF header"])),
        ("`quant` on one CPU, by the native kernels", _list(f"`{name}`" for name in NATIVE)),
        ("`quant` by XLA, on GPUs and several devices", _list(f"`{name}`" for name in XLA)),
    ]
    table = _table(("of every family", "formats"), rows)
    return FORMATS_HEAD + table


def _calls() -> str:
    rows = [(f"`{one.name}`", _code(one.markers), "yes" if one.thinks else "") for one in FORMATS]
    return CALLS_HEAD + _table(("format", "markers", "tells thoughts"), rows)


def _built_in() -> str:
    rows = [
        (f"`{one.id}`", _code(one.aliases), _code(wheel.requirement for wheel in one.wheels))
        for one in BUILT_IN.values()
    ]
    return BUILT_IN_HEAD + _table(("model", "also called", "wheels"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines
    )


def _code(names: Iterable[str]) -> str:
    return _list(f"`{name}`" for name in names)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


if __name__ == "__main__":
    print(page(), end="")
