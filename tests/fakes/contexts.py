"""Request contexts for tests that need no more of one than its id."""

from cortex_gateway.auth.policy import NOBODY
from cortex_gateway.context import RequestContext


def asked(identity: str, affinity: str | None = None) -> RequestContext:
    """A request of nobody in particular."""
    return RequestContext(id=identity, principal=NOBODY, affinity=affinity)
