"""What a key has used, by a clock in the test's hand."""

import pytest

from cortex_gateway.auth.limits import Bucket, Meter
from cortex_gateway.auth.principal import Limits
from cortex_gateway.errors import RateLimited


def meter(**limits: int) -> Meter:
    return Meter(Limits(**limits))


def refused(it: Meter, now: float) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        it.enter(now)
    return caught.value


def test_without_limits_everything_passes() -> None:
    """As often as anybody likes."""
    it = meter()
    for _ in range(1000):
        it.enter(0.0)
        it.leave(0.0, 10**9)


def test_a_minutes_requests_may_come_at_once_and_then_evenly() -> None:
    """Three, then one every twenty seconds, and a pause saves up three again and not more."""
    it = meter(requests_per_minute=3)
    for _ in range(3):
        it.enter(100.0)
    assert refused(it, 100.0).retry_after == 20
    assert refused(it, 119.0).retry_after == 1
    it.enter(120.0)
    assert refused(it, 120.0).retry_after == 20
    for _ in range(3):
        it.enter(1000.0)
    assert refused(it, 1000.0).retry_after == 20


@pytest.mark.parametrize("per_minute", [1, 7, 60, 999, 20_000])
def test_who_waits_as_long_as_he_is_told_is_let_in(per_minute: int) -> None:
    """And a refused request costs nothing, however often it is tried."""
    it = meter(requests_per_minute=per_minute)
    now = 12345.678
    for _ in range(per_minute):
        it.enter(now)
    for _ in range(20):
        told = refused(it, now).retry_after
        refused(it, now)
        assert told is not None
        now += told
        while True:  # everything that has come together meanwhile
            it.enter(now)
            try:
                it._check(now)
            except RateLimited:
                break


def test_no_second_passes_more_than_the_rate_allows() -> None:
    """Over ten minutes of trying every 50 ms."""
    it = meter(requests_per_minute=30)
    passed = 0
    for step in range(12_000):
        try:
            it.enter(step * 0.05)
        except RateLimited:
            continue
        passed += 1
    assert passed == 30 + 10 * 30 - 1  # the last one is due at 600 s sharp


def test_tokens_count_when_they_are_known_and_hold_back_what_comes_next() -> None:
    """One answer of four minutes' tokens is not cut, but three minutes have to pass before the next."""
    it = meter(tokens_per_minute=600)
    it.enter(0.0)
    it.enter(0.0)
    it.leave(10.0, 2400)
    assert refused(it, 10.0).retry_after == 181  # 1800 below nothing at 10 a second, and one to spend
    it.leave(10.0, 0)
    assert refused(it, 190.0).retry_after == 1
    it.enter(190.1)


def test_a_key_that_is_idle_saves_up_no_more_than_a_minute() -> None:
    """Of tokens as of requests."""
    it = meter(tokens_per_minute=60)
    it.enter(0.0)
    it.leave(10_000.0, 60)
    assert refused(it, 10_000.0).retry_after == 1


def test_so_many_at_once_and_no_more() -> None:
    """Each end makes room for one."""
    it = meter(max_concurrent=2)
    it.enter(0.0)
    it.enter(0.0)
    assert refused(it, 0.0).retry_after == 1
    it.leave(0.0, 5)
    it.enter(0.0)
    assert it.running == 2


def test_the_longest_wait_is_told_with_its_limit() -> None:
    """So that one wait is enough."""
    it = meter(requests_per_minute=60, tokens_per_minute=60, max_concurrent=1)
    it.enter(0.0)
    it.leave(0.0, 180)
    error = refused(it, 0.0)
    assert (error.retry_after, "60 tokens a minute" in error.message) == (121, True)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    """And nothing is lost."""
    it = Bucket(60)
    for _ in range(60):
        assert it.wait(5.0) == 0.0
        it.take(5.0, 1)
    assert it.wait(5.0) == pytest.approx(1.0)
