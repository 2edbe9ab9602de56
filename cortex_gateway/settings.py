"""How a table of a TOML file becomes an attrs record, or a list of what is wrong with it; knows no section by name."""

import difflib
import math
import pathlib
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs

T = TypeVar("T")
NESTED = "__"
HIDDEN = {"hidden": True}
"""The metadata of a field that holds a secret: a word of visible ASCII, of which no message shows anything."""
SECRET = re.compile(r"[!-~]([ -~]*[!-~])?")
SECRETS = "allowed: a word of visible ASCII characters"
WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}


class UserError(Exception):
    """What a person at the terminal can mend: a command ends with the message as its one line, and exit code 1."""


class ConfigError(UserError):
    """What the operator wrote cannot be used: one line per problem, with file, key, what was found, what is allowed."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@attrs.frozen
class At:
    """A place in a file."""

    file: str
    path: str = ""

    def key(self, name: str) -> "At":
        return At(self.file, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> "At":
        return At(self.file, f"{self.path}[{index}]")


@attrs.define
class Reader:
    """Reads tables into records and collects every problem on the way; `finish` raises them all at once."""

    removed: Mapping[str, str] = attrs.field(factory=dict)  # keys of the predecessor that mean nothing here -> why
    problems: list[str] = attrs.field(factory=list, init=False)
    _variables: dict[str, str] = attrs.field(factory=dict, init=False)  # path -> the variable that set it

    def read(self, cls: type[T], table: Mapping[str, Any], at: At) -> T:
        """The record. Where a problem was noted it is a stand-in, worth nothing: `finish` will raise."""
        hints = typing.get_type_hints(cls)
        for key in table.keys() - hints.keys():
            self._unknown_key(at, str(key), list(hints))
        before = len(self.problems)
        values = {
            item.name: self._field(item, hints[item.name], table, at)
            for item in attrs.fields(cls)  # type: ignore[arg-type]  # every caller passes an attrs class
            if item.name in table or item.default is attrs.NOTHING
        }
        return typing.cast(T, None) if len(self.problems) > before else cls(**values)

    def with_environment(
        self, cls: type[Any], table: Mapping[str, Any], prefix: str, environ: Mapping[str, str]
    ) -> dict[str, Any]:
        """`table` with PREFIX_SECTION__KEY=value over it. A value is TOML where its key wants no string."""
        merged = dict(table)
        hints = typing.get_type_hints(cls)
        for name in sorted(name for name in environ if name.startswith(prefix)):
            parts = name.removeprefix(prefix).lower().split(NESTED)
            if len(parts) == 1 and parts[0] not in hints:
                continue  # somebody else's variable: ours have a section
            self._variables[_path(parts)] = name
            self._lay(cls, merged, parts, name, environ[name])
        return merged

    def complain(self, at: At, what: str) -> None:
        origin, place = at.file, f"{at.path}: "
        around = [path for path in self._variables if _within(at.path, path)]
        if around:
            nearest = max(around, key=len)
            origin, place = f"environment: {self._variables[nearest]}", "" if nearest == at.path else place
        self.problems.append(f"{origin}: {place}{what}")

    def unknown(self, at: At, found: str, allowed: Iterable[str]) -> None:
        """A name that should be one of `allowed`, with the nearest of them."""
        names = list(allowed)
        self.complain(at, f'found "{found}"; allowed: {_quoted(names)}{_nearest(found, names)}')

    def unique(self, at: At, names: list[str]) -> None:
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.complain(at, f'found "{name}" {names.count(name)} times; each must be there once')

    def secret(self, at: At, name: str, word: str | None, file: str | None, folder: pathlib.Path) -> str | None:
        """The secret under the key `name`, or what its file holds; of the two the one in the environment counts."""
        here, there = at.key(name), at.key(f"{name}_file")
        if word and file:
            told = {here.path, there.path} & self._variables.keys()
            if len(told) != 1:
                self.complain(here, f"is there besides {there.path}; give one of them")
                return None
            file = file if there.path in told else None
        if file is None:
            return word
        path = folder / pathlib.Path(file).expanduser()
        try:
            read = path.read_text("utf-8").strip()
        except OSError as error:
            self.complain(there, f"{path} cannot be read: {error.strerror}")
            return None
        except UnicodeDecodeError:
            read = ""
        return typing.cast("str | None", self._secret(read, there))

    def finish(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)

    def _field(self, item: Any, hint: Any, table: Mapping[str, Any], at: At) -> Any:
        here = at.key(item.name)
        if item.name not in table:
            self.complain(here, "is missing")
            return None
        if "hidden" in item.metadata:
            return self._secret(table[item.name], here)
        before = len(self.problems)
        found = self._value(hint, table[item.name], here)
        if len(self.problems) > before or item.validator is None:
            return found
        try:
            item.validator(None, item, found)
        except ValueError as error:
            self.complain(here, f"found {_shown(found)}; {str(error.args[0]).rsplit(': ', 1)[0]}")
        return found

    def _secret(self, value: Any, at: At) -> Any:
        if not (isinstance(value, str) and SECRET.fullmatch(value)):
            self.complain(at, SECRETS)
        return value

    def _value(self, hint: Any, value: Any, at: At) -> Any:
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            return self._value(next(arg for arg in inner if arg is not type(None)), value, at)
        if origin is Literal:
            return self._choice(inner, value, at)
        if origin is tuple:
            fits = self._is(list, value, at)
            return tuple(self._value(inner[0], item, at.item(n)) for n, item in enumerate(value)) if fits else None
        if origin is not None:
            fits = self._is(dict, value, at)
            return {key: self._value(inner[1], item, at.key(key)) for key, item in value.items()} if fits else None
        if attrs.has(hint):
            return self.read(hint, value, at) if self._is(dict, value, at) else None
        return self._scalar(hint, value, at)

    def _choice(self, allowed: tuple[str, ...], value: Any, at: At) -> Any:
        if value not in allowed:
            self.unknown(at, str(value), allowed)
        return value

    def _scalar(self, hint: type[Any], value: Any, at: At) -> Any:
        if hint is float and type(value) is int:
            return float(value)
        if self._is(hint, value, at) and hint is float and not math.isfinite(value):
            self.complain(at, f"found {value}; allowed: a finite number")
        return value

    def _is(self, kind: type[Any], value: Any, at: At) -> bool:
        if type(value) is not kind:
            self.complain(at, f"found {_shown(value)}; allowed: {WORDS[kind]}")
        return type(value) is kind

    def _unknown_key(self, at: At, key: str, allowed: list[str]) -> None:
        if not at.path and key in self.removed:
            self.complain(at.key(key), self.removed[key])
            return
        self.complain(at.key(key), f"is not a key here; allowed: {_quoted(allowed)}{_nearest(key, allowed)}")

    def _lay(self, cls: type[Any], table: dict[str, Any], parts: list[str], name: str, text: str) -> None:
        hints = typing.get_type_hints(cls)
        hint = hints.get(parts[0])
        if len(parts) == 1 and hint is not None:
            self._lay_value(hint, table, parts[0], name, text)
        elif len(parts) > 1 and hint is not None and attrs.has(hint):
            inner = table.get(parts[0], {})
            table[parts[0]] = dict(inner) if isinstance(inner, dict) else {}
            self._lay(hint, table[parts[0]], parts[1:], name, text)
        elif len(parts) > 2 and (entry := _entry(hint)) and parts[1].isdigit():
            self._lay_entry(entry, table, parts, name, text)
        else:
            wanted = [key for key, kind in hints.items() if len(parts) == 1 or attrs.has(kind) or _entry(kind)]
            self.unknown(At("environment", name), parts[0], wanted)

    def _lay_value(self, hint: Any, table: dict[str, Any], key: str, name: str, text: str) -> None:
        """A string as it stands, everything else as TOML. What is no TOML may be a string to complain of, not a table."""
        if str in (hint, *get_args(hint)) or get_origin(hint) is Literal:
            table[key] = text
            return
        try:
            table[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            if attrs.has(hint) or _entry(hint):
                self.problems.append(f"environment: {name}: not TOML: {error}")
            else:
                table[key] = text

    def _lay_entry(self, cls: type[Any], table: dict[str, Any], parts: list[str], name: str, text: str) -> None:
        """LIST__N__KEY: changes the entry N, or adds one behind the last."""
        found = table.get(parts[0], [])
        entries = list(found) if isinstance(found, list) else []
        index = int(parts[1])
        if index > len(entries):
            self.problems.append(
                f"environment: {name}: there are {len(entries)} {parts[0]}; the next is {len(entries)}"
            )
            return
        entry = entries[index] if index < len(entries) else {}
        entries[index : index + 1] = [dict(entry) if isinstance(entry, dict) else {}]
        table[parts[0]] = entries
        self._lay(cls, entries[index], parts[2:], name, text)


def variables(cls: type[Any], prefix: str) -> list[str]:
    """The names of all variables that `with_environment` reads for `cls`, but for single entries of lists."""
    found = []
    for key, hint in typing.get_type_hints(cls).items():
        name = f"{prefix}{key.upper()}"
        found += [name, *(variables(hint, name + NESTED) if attrs.has(hint) else ())]
    return found


def _path(parts: list[str]) -> str:
    """As `At` spells it: the parts of a variable's name, numbers as places in a list."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in parts).removeprefix(".")


def _within(path: str, other: str) -> bool:
    return path == other or path.startswith((f"{other}.", f"{other}["))


def _entry(hint: Any) -> Any:
    """The record that a list of tables consists of; None where it is no such list."""
    inner = get_args(hint)[0] if get_origin(hint) is tuple else None
    return inner if inner is not None and attrs.has(inner) else None


def _shown(value: Any) -> str:
    """For a message. A table may hold a secret, so its values are not shown."""
    if isinstance(value, list | tuple):
        tables = any(isinstance(item, dict) for item in value)
        return "a list of tables" if tables else f"[{', '.join(map(_shown, value))}]"
    return f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, dict) else str(value)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names) or "nothing"


def _nearest(found: str, names: list[str]) -> str:
    near = difflib.get_close_matches(found, names, n=1)
    return f'; did you mean "{near[0]}"?' if near else ""
