"""The gateway's own HTTP API as the commands use it: JSON, event streams, and failures as one clean line."""

import contextlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
from attrs import field, frozen

from neuron_jax.common.errors import UserError
from neuron_jax.common.tls import client_context, words

PATIENCE = httpx.Timeout(None, connect=5.0)
"""A load may take as long as it takes; only the connection has a limit."""
PROGRESS = ": progress "
KEY_VARIABLE = "CORTEX_API_KEY"


class CommandError(UserError):
    """A command could not do what it was asked: the message is for the user, and the exit code is 1."""


class UsageError(UserError):
    """The words of a command do not go together: exit code 2."""


@frozen
class Api:
    """A gateway (or a neuron) at `endpoint`, asked with `key`. `transport` stands in for the network in tests."""

    endpoint: str
    transport: httpx.BaseTransport | None = None
    key: str | None = field(default=None, repr=False)
    patience: httpx.Timeout = PATIENCE

    def get(self, path: str) -> Any:
        """The JSON behind `path`. Raises CommandError."""
        with self._client() as http:
            return _checked(http.get(path)).json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to `body`. Raises CommandError."""
        with self._client() as http:
            return _checked(http.post(path, json=body)).json()

    @contextlib.contextmanager
    def events(
        self, path: str, body: dict[str, Any], waits: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> Iterator[Iterator[dict[str, Any]]]:
        """The JSON events of the stream that answers `body`, up to `[DONE]` or its end. Raises CommandError, also midway.

        `waits` is called with what the stream's comments say that it waits for.
        """
        headers = {"accept": "text/event-stream"}
        with self._client() as http, http.stream("POST", path, json=body, headers=headers) as response:
            yield _events(_checked(response), waits)

    @contextlib.contextmanager
    def _client(self) -> Iterator[httpx.Client]:
        try:
            with httpx.Client(
                base_url=self.endpoint,
                timeout=self.patience,
                transport=self.transport,
                trust_env=False,
                headers={"authorization": f"Bearer {self.key}"} if self.key else {},
                verify=client_context() if self.endpoint.startswith("https:") else True,
            ) as http:
                yield http
        except httpx.ConnectError as error:
            if why := words(error, "SSL_CERT_FILE"):
                raise CommandError(f"{self.endpoint}: {why}") from error
            raise CommandError(
                f"no gateway answers at {self.endpoint}; start one with `cortex up` or `cortex serve`, "
                "or name another with --endpoint"
            ) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise CommandError(f"{self.endpoint!r} is not a URL, as http://localhost:31313") from error
        except httpx.HTTPError as error:
            raise CommandError(f"{self.endpoint} broke off: {str(error) or type(error).__name__}") from error
        except json.JSONDecodeError as error:
            raise CommandError(f"{self.endpoint} answered with something that is not JSON; is it a gateway?") from error


def read_key(file: pathlib.Path | None, environ: Mapping[str, str]) -> str | None:
    """The key to ask with: what the file holds, else $CORTEX_API_KEY, else none. Never an argument: others see those.

    Raises CommandError, which does not say it.
    """
    source = f"--key-file {file}" if file else f"${KEY_VARIABLE}"
    try:
        text = file.read_text(encoding="utf-8") if file else environ.get(KEY_VARIABLE, "")
    except OSError as error:
        raise CommandError(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise CommandError(f"{source}: holds no key: it is not text") from None
    key = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise CommandError(f"{source}: holds no key: a key is one word of ASCII characters")
    if file and not key:
        raise CommandError(f"{source}: holds no key: it is empty")
    return key or None


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_success:
        return response
    response.read()
    try:
        body = response.json()
    except ValueError:
        raise CommandError(f"{response.text[:200]} (HTTP {response.status_code}; is it a gateway?)") from None
    way_in = f" (the commands take one from --key-file or ${KEY_VARIABLE})" if response.status_code == 401 else ""
    raise CommandError(message(body) + way_in)


def _events(response: httpx.Response, waits: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith(PROGRESS):
            waits(json.loads(line.removeprefix(PROGRESS)))
            continue
        data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise CommandError(message(event))
            yield event


def message(body: Any) -> str:
    """The words of an error envelope of either dialect, or of whatever else came."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
