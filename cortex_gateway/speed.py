"""How fast an answer came, from when its tokens did; pure, knows no clock."""

SHORTEST_SPAN = 0.05
"""Seconds. What came within less came in one piece, as an answer of a few tokens does: that is no speed of a model."""


def tokens_per_second(tokens: int, seconds: float) -> float | None:
    """Tokens after the first over the `seconds` from it to the last; None where that says nothing."""
    return (tokens - 1) / seconds if tokens > 1 and seconds >= SHORTEST_SPAN else None
