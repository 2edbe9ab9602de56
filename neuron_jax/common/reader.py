"""Reads a program's settings, TOML and then the environment, into attrs records, and tells all that does not fit.

A setting is a field of such a record: its type, its default, and a validator of `kinds` where not every value of the type
will do. Knows no setting by name.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from attrs import define, field
from cattrs import ClassValidationError

from neuron_jax.common.errors import ConfigError
from neuron_jax.common.kinds import CONVERTER, did_you_mean, quoted
from neuron_jax.common.misfits import misfits
from neuron_jax.common.variables import laid, settings

T = TypeVar("T")
ENTRY = re.compile(r"(\w+)\[(\d+)\]")


@define
class Reader:
    """Of one file, or what else is called `origin`. Problems are collected, and `finish` raises them all at once.

    `folder` is what the file's relative paths begin at; `removed` are keys that once meant something, and why they do not.
    A key is named by its path: gateway.listen, models[0].id.
    """

    origin: str
    folder: Path = Path()
    removed: Mapping[str, str] = field(factory=dict)
    problems: list[str] = field(factory=list)
    _variables: dict[str, str] = field(factory=dict, init=False)  # path -> the variable that set it

    @classmethod
    def of(cls, path: Path | None, **more: Any) -> "Reader":
        """Of a file that is, or is not, there."""
        return cls(str(path), path.parent, **more) if path else cls("defaults", **more)

    def read(
        self,
        cls: type[T],
        table: Mapping[str, Any],
        prefix: str = "",
        environ: Mapping[str, str] = MappingProxyType({}),
        beneath: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> T:
        """`table`, the variables with `prefix` over it and `beneath` what only the program knows, as a record.

        Raises ConfigError with all that does not fit.
        """
        merged = dict(table)
        for name, keys in settings(cls, prefix, environ):
            merged = self._with_variable(cls, merged, name, keys, environ[name])
        for key, values in beneath.items():
            told = merged.get(key, {})
            merged[key] = {**values, **told} if isinstance(told, dict) else told
        try:
            record = CONVERTER.structure(merged, cls)
        except ClassValidationError as error:
            for path, what in misfits(error, merged):
                self.complain(path, self.removed.get(path, what))
            raise ConfigError(self.problems) from None
        self.finish()
        return record

    def _with_variable(self, cls: type[Any], table: dict[str, Any], name: str, keys: list[str], text: str) -> Any:
        path = "".join(f"[{key}]" if key.isdecimal() else f".{key}" for key in keys)[1:]
        self._variables[path] = name
        entry = ENTRY.match(path)
        entries = table.get(entry[1], []) if entry else None
        if entry and isinstance(entries, list) and len(entries) <= int(entry[2]):
            self._variables[entry[0]] = name  # it adds the entry, and what that lacks is its affair
        try:
            return laid(cls, table, keys, text)
        except ValueError as error:
            self.problems.append(f"environment: {name}: {error}")
            return table

    def complain(self, path: str, what: str) -> None:
        """Of what is at `path`: in the file, or in the variable that set it, or all that it is in."""
        around = [other for other in self._variables if path == other or path.startswith((f"{other}.", f"{other}["))]
        if not around:
            self.problems.append(f"{self.origin}: {path}: {what}")
            return
        nearest_one = max(around, key=len)
        place = "" if nearest_one == path else f"{path}: "
        self.problems.append(f"environment: {self._variables[nearest_one]}: {place}{what}")

    def unknown(self, path: str, found: str, names: Iterable[str]) -> None:
        """A name that should be one of `names`, with the nearest of them."""
        known = list(names)
        self.complain(path, f'found "{found}"; allowed: {quoted(known)}{did_you_mean(found, known)}')

    def unique(self, path: str, names: Iterable[str]) -> None:
        """Names of which each should be there once."""
        all_names = list(names)
        for name in sorted({name for name in all_names if all_names.count(name) > 1}):
            self.complain(path, f'found "{name}" {all_names.count(name)} times; each must be there once')

    def is_told_outside(self, path: str) -> bool:
        """A variable sets just this."""
        return path in self._variables

    def finish(self) -> None:
        if self.problems:
            raise ConfigError(self.problems)


def read_record(cls: type[T], table: Mapping[str, Any], origin: str) -> T:
    """A table that stands in no file, `origin` says where. Raises ConfigError."""
    return Reader(origin).read(cls, table)


def read_toml(path: Path | None) -> dict[str, Any]:
    """The file, or nothing where there is none to read. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text("utf-8")) if path else {}
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
