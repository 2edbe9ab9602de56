"""A head that is held: what goes out, in how many writes, and when."""

import asyncio
from collections.abc import Callable, Iterable

import pytest
from attrs import define, field

from neuron_jax.common.joined import JoinedTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


@define
class Written:
    """A transport that keeps what it is given, a write each. It takes no empty piece, which asyncio's never gets rid of."""

    writes: list[bytes] = field(factory=list)
    closed: bool = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def writelines(self, pieces: Iterable[bytes]) -> None:
        together = list(pieces)
        assert all(together), together
        self.writes.append(b"".join(together))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def written(*steps: Callable[[JoinedTransport], None]) -> list[bytes]:
    """What is out after `steps` within one turn of the loop, and then what is after the next one."""

    async def run() -> list[bytes]:
        below = Written()
        joined = JoinedTransport(below, asyncio.get_running_loop())  # type: ignore[arg-type]
        for step in steps:
            step(joined)
        at_once = list(below.writes)
        await asyncio.sleep(0)
        assert joined.is_closing() is below.closed
        return [*at_once, b"|", *below.writes[len(at_once) :]]

    return asyncio.run(run())


def write(data: bytes) -> Callable[[JoinedTransport], None]:
    return lambda joined: joined.write(data)


@pytest.mark.parametrize(
    ("steps", "out"),
    [
        ([write(HEAD), write(b"ok")], [HEAD + b"ok", b"|"]),
        ([write(HEAD)], [b"|", HEAD]),
        ([write(HEAD), write(b"a"), write(b"b")], [HEAD + b"a", b"b", b"|"]),
        ([write(HEAD), write(HEAD)], [HEAD + HEAD, b"|"]),
        ([write(b"a")], [b"a", b"|"]),
        ([write(HEAD), JoinedTransport.close], [HEAD, b"|"]),
        ([write(HEAD), write(b""), JoinedTransport.close], [HEAD, b"|"]),
    ],
)
def test_a_head_goes_out_with_what_follows_it(steps: list[Callable[[JoinedTransport], None]], out: list[bytes]) -> None:
    assert written(*steps) == out
