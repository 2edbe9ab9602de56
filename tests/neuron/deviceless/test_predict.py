"""What is predicted of a step, held to sums by hand."""

import pytest
from attrs import evolve, frozen

from neuron_jax.deviceless.census import Census, Launch
from neuron_jax.deviceless.predict import BANDWIDTH, LAUNCH, PRODUCTS, WAIT, decode, prefill, whole
from neuron_jax.hardware.cards import card

H100, L4 = card("h100"), card("l4")
PLAIN = Launch("k", "fusion", 3352 * 10**6, 0, 0, "", 0, 1, (), wide=False)


@frozen
class Texts:
    def text_bytes(self, context: int) -> int:
        return 1000 * context

    def pair_flops(self) -> int:
        return 10**6


def test_memory_or_products_whichever_takes_longer() -> None:
    product = evolve(PLAIN, what="gemm", flops=int(989.4e9 * 4), dtype="bf16")
    found = decode([PLAIN, product], H100, Texts(), streams=2, context=1000)

    assert found.work == pytest.approx((1e-3 + 2e6 / H100.bandwidth) / BANDWIDTH + 4e-3 / PRODUCTS)
    assert found.launching == pytest.approx(2 * LAUNCH)
    assert (found.waiting, found.exchanging) == (0, 0)


def test_a_choice_makes_the_host_wait_and_a_sum_goes_over_the_bus() -> None:
    kernels = [
        evolve(PLAIN, what="conditional", moved=0),
        evolve(PLAIN, what="all-reduce", exchanged=32 * 10**6, times=2),
    ]
    found = prefill(kernels, L4, Texts(), tokens=10)

    assert found.waiting == WAIT
    assert found.exchanging == pytest.approx(2 * (30e-6 + 1e-3))
    assert found.work == pytest.approx(55e6 / (L4.rates["bfloat16"] * PRODUCTS))


def test_a_whole_model_repeats_the_layers_that_were_compiled() -> None:
    def of(name: str, layer: int | None, weights: int = 1) -> Launch:
        path = f"params['layers'][{layer}]['up']" if layer is not None else "params['norm']"
        return evolve(PLAIN, name=name, arguments=(path,), weights=weights)

    kernels = (of("embed", None), of("a", 0), of("b", 1), of("c", 2), of("norm", None))
    found = whole(Census(kernels, 0, 0, 0, (), ()), (0, 1, 1, 2, 1, 2))

    assert "".join(kernel.name for kernel in found) == "embedabbcbcnorm"
