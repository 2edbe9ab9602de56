"""The demo model behind the whole product, once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.fakes.stack import Stack, running


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """float32, so that texts can be compared with the reference; room for everything the tests send at once."""
    with running(
        "--model", "demo", "--quant", "none", NEURON_ENGINE__MAX_SLOTS="16", NEURON_ENGINE__KV_MB="512"
    ) as stack:
        yield stack
