"""The figures of a run as JSON; knows their names, measures nothing.

Times are seconds, sizes bytes, rates per second, shares fractions of 1.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from neuron_jax.benchmark.cases import Case, Decode, LongPrompt, Prefill
from neuron_jax.benchmark.figures import DecodeFigures, LongFigures, Spread

Json = dict[str, Any]


def decode_row(case: Decode, figures: DecodeFigures, bandwidth: float, engine: Mapping[str, float]) -> Json:
    """`bandwidth`: share of the measured copy bandwidth; `engine`: what the engine says of its steps."""
    return _row("decode", case) | attrs.asdict(figures) | {"bandwidth": bandwidth, "engine": dict(engine)}


def prefill_row(case: Prefill, rate: float, first: Spread, matmul: float, engine: Mapping[str, float]) -> Json:
    """`matmul`: share of the measured matmul rate."""
    return _row("prefill", case) | {
        "rate": rate,
        "first": attrs.asdict(first),
        "matmul": matmul,
        "engine": dict(engine),
    }


def long_row(case: LongPrompt, figures: LongFigures, engine: Mapping[str, float]) -> Json:
    return _row("long prompt", case) | attrs.asdict(figures) | {"engine": dict(engine)}


def _row(kind: str, case: Case) -> Json:
    return {"kind": kind, "case": str(case)} | attrs.asdict(case)
