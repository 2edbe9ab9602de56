"""Typed reading of a body that is translated, with the path of what is wrong; knows JSON values, not what they mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cortex_gateway.dialects.depth import MAX_DEPTH, deep_path
from cortex_gateway.dialects.failure import Failure, RefusedError
from neuron_jax.common.names import too_long

Json = Mapping[str, Any]
INVALID = "invalid_request_body"


def body(raw: bytes) -> Json:
    """The top level of a request. Raises RefusedError where it is no JSON object, or nested too deeply."""
    try:
        top = msgspec.json.decode(raw)
    except UnicodeDecodeError as error:
        raise _malformed(f"The body is not UTF-8: {error.reason}.") from error
    except RecursionError as error:
        raise _malformed("The body is nested too deeply.") from error
    except ValueError as error:
        raise _malformed(f"The body is not JSON: {error}.") from error
    if (path := deep_path(raw, top)) is not None:
        raise refused(path, f"is nested too deeply: at most {MAX_DEPTH} levels are read")
    return obj(top, "body")


def model(top: Json) -> str:
    """What the client calls the model."""
    if top.get("model") in (None, ""):
        raise RefusedError(
            Failure(400, "invalid_request_error", "missing_model_field", "model: field required", "model")
        )
    name = text(top["model"], "model")
    if wrong := too_long(name):
        raise refused("model", wrong)
    return name


def refused(path: str, message: str, code: str = INVALID) -> RefusedError:
    """The error of a field, told with its path: `messages.0.content.1: …`."""
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


def _malformed(message: str) -> RefusedError:
    return RefusedError(Failure(400, "invalid_request_error", "malformed_json", message))
