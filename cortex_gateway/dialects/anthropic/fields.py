"""Typed reading of a Messages body with the path of what is wrong; knows JSON values, not what they mean."""

from collections.abc import Mapping, Sequence
from typing import Any

from cortex_gateway.dialects.failure import Failure, RefusedError

Json = Mapping[str, Any]


def refused(path: str, message: str, code: str = "invalid_anthropic_body") -> RefusedError:
    """The error of a field, worded as Anthropic's own: `messages.0.content.1: …`."""
    return RefusedError(Failure(400, "invalid_request_error", code, f"{path}: {message}", path))


def obj(value: object, path: str) -> Json:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise refused(path, f"must be an object, found {kind(value)}")
    return value


def array(value: object, path: str) -> Sequence[Any]:
    """`value` as an array."""
    if not isinstance(value, list):
        raise refused(path, f"must be an array, found {kind(value)}")
    return value


def text(value: object, path: str) -> str:
    """`value` as a string, empty ones included."""
    if not isinstance(value, str):
        raise refused(path, f"must be a string, found {kind(value)}")
    return value


def name(value: object, path: str) -> str:
    """`value` as a string with something in it."""
    if value == "":
        raise refused(path, "must not be empty")
    return text(value, path)


def flag(value: object, path: str) -> bool:
    """`value` as a boolean."""
    if not isinstance(value, bool):
        raise refused(path, f"must be true or false, found {kind(value)}")
    return value


def number(value: object, path: str) -> float:
    """`value` as a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refused(path, f"must be a number, found {kind(value)}")
    return value


def integer(value: object, path: str) -> int:
    """`value` as a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise refused(path, f"must be a whole number, found {kind(value)}")
    return value


def kind(value: object) -> str:
    """What a JSON value is, in words; short scalars are shown."""
    names = {dict: "an object", list: "an array", type(None): "nothing"}
    shown = repr(value)
    return names.get(type(value)) or (shown if len(shown) <= 60 else f"{shown[:57]}…")
