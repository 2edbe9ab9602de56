"""The command that health checks of containers run: whether a neuron answers; must not know JAX."""

from typing import Annotated

import httpx
from cyclopts import Parameter

from neuron_jax.common.addresses import parse_url
from neuron_jax.common.tls import client_context, words
from neuron_jax.errors import NeuronError

ANSWER_SECS = 5.0


def _check(_: object, value: str) -> None:
    parse_url(value)


def health(
    *,
    endpoint: Annotated[str, Parameter(name=["--endpoint", "-e"], validator=_check)] = "http://localhost:13131",
    ready: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Ask whether a neuron answers. The exit code is 1 if it does not within 5 seconds.

    Parameters
    ----------
    endpoint:
        The neuron to ask. Its certificate must be one that the system trusts, or that SSL_CERT_FILE names.
    ready:
        The exit code is 1, too, while it loads the models that it loads at start.
    """
    verify = client_context() if endpoint.startswith("https:") else True
    try:
        with httpx.Client(timeout=ANSWER_SECS, trust_env=False, verify=verify) as http:
            state = http.get(f"{endpoint.rstrip('/')}/health").raise_for_status().json()["activation"]["state"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise NeuronError(f"no neuron answers at {endpoint}: {words(error, 'SSL_CERT_FILE') or error}") from error
    print(state)  # noqa: T201 - the answer itself
    return 1 if ready and state != "ready" else 0
