"""What is known of one request and goes with it from its arrival to its record; knows no HTTP, no fleet and no dialect."""

from collections.abc import Mapping

from attrs import frozen

from cortex_gateway.auth.principal import Principal
from cortex_gateway.errors import InvalidBody

SESSION_HEADERS = (
    "x-claude-code-session-id",
    "x-session-affinity",
    "x-session-id",
    "session-id",
    "session_id",
    "conversation_id",
)
"""Under these names clients tell which conversation a request belongs to; the first that is there counts."""
AGENT_HEADERS = ("x-claude-code-agent-id",)
"""A conversation's helpers have prompts of their own."""
TIMEOUT_HEADER = "x-request-timeout"
LONGEST_KEY = 256  # characters


@frozen(kw_only=True)
class RequestContext:
    """One request.

    Attributes:
        id: the client's own x-request-id, or a new one.
        principal: who sent it; his key goes no further than the routes.
        affinity: requests with an equal one belong to one conversation, of which a replica may keep the pages; None: unknown.
        timeout_secs: the client wants no answer later than so long after its arrival; None: it waits.
    """

    id: str
    principal: Principal
    affinity: str | None = None
    timeout_secs: float | None = None

    @property
    def anonymous(self) -> bool:
        """Nobody's in particular: others go first where requests wait."""
        return self.principal.key is None


def session(headers: Mapping[str, str]) -> str | None:
    """The conversation that a request's headers name, if they do. Header names are lower case."""
    named = next((value for name in SESSION_HEADERS if (value := headers.get(name))), None)
    if named is None:
        return None
    agent = next((value for name in AGENT_HEADERS if (value := headers.get(name))), "")
    return f"{named[:LONGEST_KEY]} {agent[:LONGEST_KEY]}".rstrip()


def timeout_secs(headers: Mapping[str, str]) -> float | None:
    """How long the client waits, in seconds. Raises InvalidBody where that is no number of seconds."""
    sent = headers.get(TIMEOUT_HEADER)
    if sent is None:
        return None
    try:
        seconds = float(sent)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InvalidBody(f"The header {TIMEOUT_HEADER} must be a number of seconds above 0, found {sent[:100]!r}.")
    return seconds
