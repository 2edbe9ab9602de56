"""One caller's connection: what is refused before there is a request has the neuron's envelope. Knows no route."""

import msgspec

from neuron_jax.common.connection import BoundedConnection, Refusal
from neuron_jax.daemon.problems import Problem


class CallerConnection(BoundedConnection):
    """`uvicorn.Config(http=CallerConnection)`."""

    def refused(self, refusal: Refusal) -> bytes:
        return msgspec.json.encode(Problem(refusal.status, refusal.code, refusal.message).envelope())
