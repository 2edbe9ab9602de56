"""What a card is asked: a model's shapes, the formats of its weights, the cases; knows numbers, no JAX and no clock."""

from collections.abc import Mapping
from typing import Any, Literal

from attrs import frozen

from neuron_jax.benchmark.cases import Case, Decode, LongPrompt, Prefill
from neuron_jax.workers.frames import EngineSpec
from tests.fakes.public_shapes import LLAMA_8B
from tests.fakes.tiny_llama import CONFIG

FORMATS = ("none", "int8", "int4", "fp8")


@frozen
class Asked:
    """A model of random weights on one device, and what is measured of it."""

    config: Mapping[str, Any]
    platform: Literal["cpu", "cuda"]
    tokens: tuple[int, ...]  # sizes of steps that are compiled
    slots: int
    context: int
    cases: tuple[Case, ...]
    rounds: int
    patience: float = 1.0  # what the stages' seconds are multiplied by

    def spec(self, quant: str, path: str = "", cache: str = "") -> EngineSpec:
        return EngineSpec(
            "random",
            path,
            platform=self.platform,
            quant=quant,
            max_context=self.context,
            max_slots=self.slots,
            chunk_tokens=self.tokens[-1],
            prefix_cache=False,
            compile_cache=cache,
        )


CARD = Asked(
    config=LLAMA_8B,
    platform="cuda",
    tokens=(1, 8, 64, 256, 512, 1024, 2048),
    slots=64,
    context=16384,
    # Texts of some 1,024 tokens on average, which is what rates are predicted for.
    cases=(
        *(Decode(streams, 960, 128) for streams in (1, 8, 64)),
        *(Prefill(tokens) for tokens in (2048, 8192)),
        LongPrompt(4, 64, 4000),
    ),
    rounds=2,
)
TINY = Asked(
    config=CONFIG | {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": False},
    platform="cpu",
    tokens=(1, 8, 32),
    slots=8,
    context=512,
    cases=(*(Decode(streams, 20, 8) for streams in (1, 8)), Prefill(64), LongPrompt(4, 8, 100)),
    rounds=1,
    patience=4.0,
)
"""For a machine without a card, which may be slow: everything but the figures is the same."""

SHAPES = {"8b": CARD, "tiny": TINY}
