"""Reads the few facts that routing needs from an OpenAI body and leaves every other byte alone; knows no routing."""

import msgspec
from attrs import frozen

from cortex_gateway.dialects.failure import Failure, RefusedError
from neuron_jax.common.names import too_long

LONGEST_KEY = 256  # characters
_BODY = msgspec.json.Decoder(dict[str, msgspec.Raw])


@frozen
class PassedRequest:
    """A body on its way through.

    Attributes:
        model: what the client called it.
        stream: whether the answer is a stream.
        fields: the top level, each value as its own bytes, in the client's order.
        body: the bytes as they came.
    """

    model: str
    stream: bool
    fields: dict[str, msgspec.Raw]
    body: bytes

    @property
    def cache_key(self) -> str | None:
        """`prompt_cache_key`, with which clients say what belongs to one conversation; what is no string says nothing."""
        key = _value(self.fields, "prompt_cache_key")
        return key[:LONGEST_KEY] if isinstance(key, str) and key else None

    def addressed(self, model: str) -> bytes:
        """The body for `model`: untouched when that is its name already, else with that one value replaced."""
        if model == self.model:
            return self.body
        return msgspec.json.encode({**self.fields, "model": model})


def read(body: bytes) -> PassedRequest:
    """Decode one level. Raises RefusedError: malformed_json, invalid_request_body, missing_model_field."""
    fields = _fields(body)
    model = _value(fields, "model")
    if model is None or model == "":
        raise _refused("missing_model_field", "The body has no `model`: name one of GET /v1/models.", "model")
    if not isinstance(model, str):
        raise _refused("invalid_request_body", f"`model` must be a string, found {_kind(model)}.", "model")
    if wrong := too_long(model):
        raise _refused("invalid_request_body", f"`model` {wrong}.", "model")
    stream = _value(fields, "stream")
    if not isinstance(stream, bool | None):
        raise _refused("invalid_request_body", f"`stream` must be true or false, found {_kind(stream)}.", "stream")
    return PassedRequest(model=model, stream=bool(stream), fields=fields, body=body)


def _fields(body: bytes) -> dict[str, msgspec.Raw]:
    try:
        body.decode()
        return _BODY.decode(body)
    except UnicodeDecodeError as error:
        raise _refused("malformed_json", f"The body is not UTF-8: byte {error.start} cannot be decoded.") from error
    except RecursionError as error:
        raise _refused("malformed_json", "The body is nested too deeply.") from error
    except msgspec.ValidationError as error:
        raise _refused("invalid_request_body", f"The body must be a JSON object: {error}.") from error
    except msgspec.DecodeError as error:
        raise _refused("malformed_json", f"The body is not JSON: {error}.") from error


def _value(fields: dict[str, msgspec.Raw], name: str) -> object:
    raw = fields.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except (ValueError, RecursionError) as error:
        raise _refused("invalid_request_body", f"`{name}` cannot be read: {error}.", name) from error


def _kind(value: object) -> str:
    return {dict: "an object", list: "an array", bool: "a boolean", str: "a string"}.get(type(value), "a number")


def _refused(code: str, message: str, param: str | None = None) -> RefusedError:
    return RefusedError(Failure(400, "invalid_request_error", code, message, param))
