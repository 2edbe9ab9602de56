"""Bodies that a careless or hostile client might send: valid ones, broken in random ways; knows JSON, no dialect."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

DEEP: Any = "bottom"
for _ in range(60):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf")),
    *(2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30, -(10**30), 10**400),
    *(
        "",
        " ",
        "x",
        "\x00",
        "\ud800",
        "é\u0301🚀",
        "<|end|>",
        "{{ 1 / 0 }}",
        "../../etc/passwd",
        "9" * 500,
        "[[",
        "x" * 5000,
        "/" + "x" * 5000,
        "~nobody/x",
        "a\n\ndata: x",
    ),
    *([], {}, [[]], [None], [{}], ["x"], [1], [-1], [1.5], [True], [2**31], {"": None}, {"type": "text"}, {"type": []}),
    *({"role": "user"}, [{"role": "user", "content": None}], {"x": DEEP}, DEEP, [[1], "a"], ["a"] * 200),
)
BYTES = (
    b"\xff",
    b"\x00",
    b"\xc3",
    b"\xed\xa0\x80",
    b"}",
    b"]",
    b'"',
    b",",
    b"{",
    b"NaN",
    b"\\u12",
    b"\xef\xbb\xbf",
    b"1e999",
)


def broken(valid: Any, seed: int, count: int) -> Iterator[bytes]:
    """`count` bodies, the same for a seed: `valid` with one to three places changed, a third of them cut or spoilt too."""
    rng = random.Random(seed)
    for _ in range(count):
        value = copy.deepcopy(valid)
        for _ in range(rng.randint(1, 3)):
            rng.choice(CHANGES)(value, rng)
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        yield spoilt(data, rng) if rng.random() < 1 / 3 else data


def spoilt(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.choice(BYTES) + data[at:]
        case 2:
            return data[:at] + b"[" * 50_000 + data[at:]
        case _:
            return data[:at] + b"9" * 5_000 + data[at:]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in `value` with every key of it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *(places(item) if item is not DEEP else ()))]


def replace(value: Any, rng: random.Random) -> None:
    if found := places(value):
        holder, key = rng.choice(found)
        holder[key] = copy.deepcopy(rng.choice(VALUES))


def remove(value: Any, rng: random.Random) -> None:
    if found := places(value):
        holder, key = rng.choice(found)
        del holder[key]


def wrap(value: Any, rng: random.Random) -> None:
    if found := places(value):
        holder, key = rng.choice(found)
        holder[key] = rng.choice(([holder[key]], {"type": holder[key]}, [holder[key]] * 3, str(holder[key])))


def swap(value: Any, rng: random.Random) -> None:
    """Two places exchange what they hold, by copies: a place may be inside the other."""
    found = places(value)
    if len(found) > 1:
        (one, key), (other, name) = rng.sample(found, 2)
        one[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(one[key])


CHANGES: tuple[Callable[[Any, random.Random], None], ...] = (replace, replace, replace, remove, wrap, swap)
