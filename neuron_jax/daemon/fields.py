"""Reads the fields of a JSON object, with the field's path in every complaint; knows no dialect."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from neuron_jax.daemon.json_bounds import MAX_DEPTH, MAX_VALUES, deep_path, has_too_many_values, may_be_deep
from neuron_jax.daemon.problems import Problem, invalid_body, malformed_json


def decode_object(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in `body`. Raises Problem malformed_json, or invalid_request_body for another JSON value, for far
    too many of them, or for some that are nested too deeply."""
    if has_too_many_values(body):
        raise invalid_body(None, f"The body has more than {MAX_VALUES} JSON values.")
    try:
        value = msgspec.json.decode(body)
    except RecursionError as error:
        raise malformed_json("it is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise malformed_json(str(error)) from error
    if not isinstance(value, dict):
        raise invalid_body(None, f"The body must be a JSON object, not {shown(value)}.")
    if may_be_deep(body) and (path := deep_path(value)) is not None:
        raise too_deep(path)
    return value


def too_deep(path: str) -> Problem:
    """The complaint about a field in which something is nested too deeply."""
    return invalid_body(path, f"{path} is nested too deeply: at most {MAX_DEPTH} levels are read.")


def shown(value: Any) -> str:
    """A short form of `value` for a message."""
    value = value[:80] if isinstance(value, str | list) else value
    try:
        text = msgspec.json.encode(value).decode()
    except (msgspec.MsgspecError, OverflowError, ValueError):
        text = f"{value:.6g}" if isinstance(value, float) else "a number that is too large"
    return text if len(text) <= 80 else text[:77] + "..."


@frozen
class Fields:
    """One object of the body; `null` counts as absent everywhere."""

    values: Mapping[str, Any]
    path: str = ""

    def name(self, key: str) -> str:
        """The path of a field, as `param` shows it."""
        return f"{self.path}{key}"

    def get(self, key: str) -> Any:
        """The raw value, or None."""
        return self.values.get(key)

    def wrong(self, key: str, allowed: str) -> Problem:
        """The complaint about a field."""
        return invalid_body(self.name(key), f"{self.name(key)} must be {allowed}; found {shown(self.get(key))}.")

    def text(self, key: str) -> str | None:
        """A string."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def flag(self, key: str, *, absent: bool = False) -> bool:
        """A boolean."""
        value = self.get(key)
        if value is None:
            return absent
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def integer(self, key: str, low: int, high: int) -> int | None:
        """An integer (a whole float is none, a boolean is none)."""
        value = self.get(key)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def number(self, key: str, low: float, high: float, *, above: bool = False) -> float | None:
        """A finite number in [low, high], or in (low, high] when `above`."""
        value = self.get(key)
        if value is None:
            return None
        if not is_number(value, low, high) or (above and value == low):
            raise self.wrong(
                key, f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
            )
        return float(value)

    def object(self, key: str) -> "Fields | None":
        """A nested object."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value, f"{self.name(key)}.")

    def list(self, key: str, allowed: str = "a list") -> Sequence[Any] | None:
        """A list."""
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, allowed)
        return value

    def objects(self, key: str, most: int) -> "Sequence[Fields]":
        """A list of at most so many objects; absent is empty."""
        found = []
        items = self.list(key, "a list of objects") or ()
        if len(items) > most:
            raise invalid_body(self.name(key), f"{self.name(key)} must have at most {most} items; found {len(items)}.")
        for index, item in enumerate(items):
            if not isinstance(item, dict):
                name = f"{self.name(key)}[{index}]"
                raise invalid_body(name, f"{name} must be an object; found {shown(item)}.")
            found.append(Fields(item, f"{self.name(key)}[{index}]."))
        return found


def is_number(value: Any, low: float, high: float) -> bool:
    """A finite int or float within bounds; a boolean is no number."""
    return type(value) in (int, float) and low <= value <= high and math.isfinite(value)
