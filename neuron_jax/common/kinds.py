"""What a setting may be, by the type and the validator of its attrs field, and the words for it; reads no file.

cattrs turns tables into records and collects what does not fit. It would make a number of "8" and a list of any text;
TOML has types, so what is of another is refused here.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin

import attrs
from attrs import frozen
from cattrs import Converter
from cattrs.gen import make_dict_structure_fn, override

from neuron_jax.common.addresses import parse_address, parse_host, parse_url
from neuron_jax.common.names import nearest

WORDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
HIDDEN = {"hidden": True}
"""The metadata of a field that holds a secret: `read_secret` says what may be one, and no message shows anything of it."""
SECRET = re.compile(r"[!-~]([ -~]*[!-~])?")
SECRETS = "allowed: a word of visible ASCII characters"
FILE_ONLY = {"file_only": True}
"""The metadata of a field that no variable sets."""


class Misfit(ValueError):  # noqa: N818 -- what happened; nobody sees more of it than `allowed` says
    """A value of another kind, or out of range."""


@frozen
class Rule:
    """A validator of attrs that can say beforehand what it allows. None, which is a default, it lets pass.

    `check` gives False, and then `words`, behind the kind of value, are told; or it raises ValueError with words of its own.
    """

    words: str
    check: Callable[[Any], object]

    def __call__(self, _: object, item: "attrs.Attribute[Any]", value: Any) -> None:
        if value is not None and self.check(value) is False:
            raise Misfit(f"{item.name} = {value!r}; allowed: {allowed(item.type, self)}")


def within(low: float, high: float = math.inf) -> Rule:
    """A number from `low` to `high`, both included."""
    return Rule(f" from {low} on" if high == math.inf else f" from {low} to {high}", lambda value: low <= value <= high)


def power_of_two(high: int) -> Rule:
    return Rule(f", a power of two up to {high}", lambda value: 1 <= value <= high and not value & (value - 1))


FILLED = Rule(" that is not empty", lambda text: bool(text.strip()))
EACH_FILLED = Rule(" of strings that are not empty", lambda texts: all(text.strip() for text in texts))
ADAPTER = re.compile(r"(?P<name>[^\s:=]+)=(?P<folder>.*\S)")


def _adapters(texts: tuple[str, ...]) -> bool:
    found = [ADAPTER.fullmatch(text) for text in texts]
    names = [one["name"] for one in found if one is not None]
    return len(set(names)) == len(texts)


ADAPTERS = Rule(" of NAME=FOLDER, each name once and without spaces or colons", _adapters)
ADDRESS = Rule(", host:port", parse_address)
HOST = Rule(", a name or an IP address without a port", parse_host)
URL = Rule(", a URL as http://host:port", parse_url)


def allowed(kind: Any, rule: object = None) -> str:
    """In words; `rule` is the field's validator."""
    kind = bare(kind)
    if get_origin(kind) is Literal:
        return quoted(get_args(kind))
    if attrs.has(kind) or get_origin(kind) is Mapping:
        return "a table"
    word = ("a list of tables" if entry_of(kind) else "a list") if get_origin(kind) is tuple else WORDS[kind]
    return word + (rule.words if isinstance(rule, Rule) else "")


def bare(kind: Any) -> Any:
    """The type without None."""
    inner = get_args(kind)
    return next(one for one in inner if one is not type(None)) if type(None) in inner else kind


def entry_of(kind: Any) -> Any:
    """The record that a list of tables consists of; None where it is no such list."""
    inner = get_args(kind)[0] if get_origin(kind) is tuple else None
    return inner if inner is not None and attrs.has(inner) else None


def quoted(names: Iterable[Any]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "nothing"


def did_you_mean(found: object, names: Iterable[str]) -> str:
    """What was meant, perhaps, for the end of a message."""
    near = nearest(str(found), names, 1, 0.6)
    return f'; did you mean "{near[0]}"?' if near else ""


def read_secret(value: Any, _: object = None) -> str:
    """Raises ValueError, without the value."""
    if type(value) is not str or not SECRET.fullmatch(value):
        raise ValueError(SECRETS)
    return value


def _as_it_is(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise Misfit
    return value


def _number(value: Any, _: object) -> float:
    if type(value) not in (int, float):
        raise Misfit
    if not math.isfinite(value):
        raise ValueError("allowed: a finite number")
    return float(value)


def _path(value: Any, _: object) -> Path:
    if type(value) is not str or not value.strip():
        raise Misfit
    return Path(value).expanduser()


def _choice(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise Misfit
    return value


def _container(of: type[Any], read: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """What reads a value of the type `of` by `read`, and nothing else."""
    return lambda value, _: read(_as_it_is(value, of))


def _list(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    items: Any = GenericAlias(list, get_args(kind)[:1])
    read = converter.get_structure_hook(items)
    return _container(list, lambda value: tuple(read(value, items)))


def _mapping(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    items: Any = GenericAlias(dict, get_args(kind))
    read = converter.get_structure_hook(items)
    return _container(dict, lambda value: read(value, items))


def _record(kind: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    special = [item for item in attrs.fields(kind) if item.validator or "hidden" in item.metadata]
    hooks = {item.name: override(struct_hook=_field(item, converter)) for item in special}
    read = make_dict_structure_fn(kind, converter, **hooks)  # type: ignore[arg-type]  # the options are not among them
    return _container(dict, lambda value: read(value, kind))


def _field(item: "attrs.Attribute[Any]", converter: Converter) -> Callable[[Any, Any], Any]:
    """A field with its validator: in the record's constructor only the first that refuses would be heard."""
    structure, validator = converter.get_structure_hook(item.type), item.validator

    def read(value: Any, kind: Any) -> Any:
        found = structure(value, kind)
        if validator is not None:
            validator(None, item, found)
        return found

    return read_secret if "hidden" in item.metadata else read


def _is(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: bool(get_origin(kind) == origin)


def _converter() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    for kind in (str, int, bool):
        converter.register_structure_hook(kind, _as_it_is)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(_is(Literal), _choice)
    converter.register_structure_hook_factory(_is(tuple), _list)
    converter.register_structure_hook_factory(_is(Mapping), _mapping)
    converter.register_structure_hook_factory(attrs.has, _record)
    return converter


CONVERTER = _converter()
"""Tables of TOML into records. Raises what cattrs raises: a tree of all misfits. Immutable once it is made."""
