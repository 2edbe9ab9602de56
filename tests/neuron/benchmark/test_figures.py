"""Rates, waits and gaps from times at which tokens came, reckoned by hand."""

import pytest

from neuron_jax.benchmark.figures import (
    Spread,
    Stream,
    decode_figures,
    long_figures,
    percentile,
    prefill_rate,
)


def stream(sent: float, *times: float, together: int = 1) -> Stream:
    return Stream(sent, tuple((time, together) for time in times))


@pytest.mark.parametrize(("share", "value"), [(0.0, 1.0), (0.5, 3.0), (0.95, 4.8), (1.0, 5.0)])
def test_percentiles_lie_between_their_neighbours(share: float, value: float) -> None:
    assert percentile([5.0, 1.0, 3.0, 2.0, 4.0], share) == pytest.approx(value)
    assert percentile([7.0], share) == 7.0


def test_rates_count_while_all_streams_generate() -> None:
    """Two streams, the second 2 s behind: from 3 to 5 both run, and 2 + 2 tokens come in those 2 s."""
    figures = decode_figures([[stream(0, 1, 2, 3, 4, 5), stream(0, 3, 4, 5, 6, 7)]])

    assert figures.decode == pytest.approx(4 / 2)
    assert figures.total == pytest.approx(10 / 7)
    assert figures.stream == pytest.approx(1.0)
    assert (figures.first.p50, figures.first.max) == (2.0, 3.0)
    assert (figures.gaps.p50, figures.tokens_per_gap) == (1.0, 1.0)


def test_rates_are_medians_over_rounds_and_waits_are_of_all_rounds() -> None:
    rounds = [[stream(0, 1, 2, 3)], [stream(0, 1, 3, 5)], [stream(0, 4, 14, 24)]]
    figures = decode_figures(rounds)

    assert figures.decode == figures.stream == pytest.approx(0.5)
    assert figures.first.max == 4.0
    assert figures.gaps == Spread.of([1, 1, 2, 2, 10, 10])


def test_tokens_that_come_together_are_one_arrival() -> None:
    """Four a second, in one burst: the gap is a second."""
    figures = decode_figures([[stream(0, 1, 2, 3, together=4)]])

    assert (figures.decode, figures.stream, figures.total) == (4.0, 4.0, 4.0)
    assert (figures.gaps.p50, figures.tokens_per_gap) == (1.0, 4.0)


def test_streams_that_never_ran_together_have_no_common_rate() -> None:
    """The first ended before the last began."""
    figures = decode_figures([[stream(0, 1, 2), stream(0, 3, 4)]])

    assert figures.decode == 0.0
    assert figures.total == 1.0


def test_a_prefill_rate_is_the_prompt_over_the_median_wait() -> None:
    assert prefill_rate([stream(0, 2), stream(10, 11), stream(20, 24)], 100) == 50.0


def test_gaps_beside_a_long_prompt_are_held_against_those_before() -> None:
    """It comes at 3 and has its first token at 7; the gap of 3 s within is the slowest, a later one does not count."""
    beside = [stream(0, 1, 2, 3, 4, 7, 17)]
    figures = long_figures([(beside, stream(3, 7))])

    assert figures.first == 4.0
    assert (figures.alone.p50, figures.beside.p50, figures.beside.max) == (1.0, 2.0, 3.0)
    assert (figures.ratio, figures.ratio_beside) == (3.0, 1.5)


def test_nothing_seen_is_zero() -> None:
    assert Spread.of([]) == Spread(0.0, 0.0, 0.0, 0.0)
    figures = long_figures([([stream(0, 1)], stream(3, 7))])
    assert (figures.ratio, figures.ratio_beside) == (0.0, 0.0)
