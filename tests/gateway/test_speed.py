"""A speed is told only where there is one."""

import pytest

from cortex_gateway.speed import tokens_per_second


@pytest.mark.parametrize(
    ("tokens", "seconds", "speed"),
    [
        (21, 2.0, 10.0),
        (2, 0.1, 10.0),
        (8, 0.00037, None),  # once told as 19,098 tokens per second
        (8, 0.0, None),
        (1, 5.0, None),
        (0, 0.0, None),
    ],
)
def test_a_speed_needs_two_tokens_and_a_time(tokens: int, seconds: float, speed: float | None) -> None:
    """An answer that came in one piece has none."""
    assert tokens_per_second(tokens, seconds) == (None if speed is None else pytest.approx(speed))
