"""What an engine that embeds is asked for and cannot do is refused by name, before a weight is read."""

from typing import Any

import pytest

from models.errors import ModelError
from neuron_jax.engine.embedding.build import design
from neuron_jax.engine.memory import TOTAL, DoesNotFitError
from neuron_jax.workers.frames import EngineSpec
from tests.fakes import tiny_bert

LIMIT = 1 << 30


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"deterministic": True}, "deterministic: sums of whole texts"),
        ({"kv_dtype": "int8"}, "kv_dtype 'int8': a model of whole texts keeps nothing"),
        ({"transform": "steer.py"}, "transform: it is for models that generate"),
        ({"adapters": ("poet",)}, "adapters: they are served beside models that generate"),
        ({"quant": "int8"}, "quant"),
        ({"tensor_parallel": 2}, "one device"),
    ],
)
def test_what_it_does_not_do_is_refused(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        design(tiny_bert.CONFIG, EngineSpec("m", "p", **asked), limit=LIMIT)


def test_what_does_not_fit_is_told_with_what_is_missing() -> None:
    """With just so much it fits, and reads texts as long as its positions go."""
    made = design(tiny_bert.CONFIG, EngineSpec("m", "p"), limit=LIMIT)
    (total,) = [row.bytes for row in made.rows if row.what == TOTAL]

    assert design(tiny_bert.CONFIG, EngineSpec("m", "p"), limit=total).max_context == 64
    with pytest.raises(DoesNotFitError, match="1 MiB more would do"):
        design(tiny_bert.CONFIG, EngineSpec("m", "p"), limit=total - 1)
