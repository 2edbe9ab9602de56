"""What the devices of an engine say to each other in one step, read from the compiled programs: sums, and one gather."""

import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from models import registry
from models.registry import build
from models.sharding import make_mesh
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Draws, Key, SlotKey, StepKey
from neuron_jax.engine.page_groups import page_groups
from neuron_jax.engine.programs import Program, Shapes
from tests.fakes import quick, trial_files
from tests.fakes.expert_files import CONFIGS
from tests.fakes.params import slow_but

LAYERS, WIDTH, EVEN, ODD = 2, 40, 304, 301
CONFIG: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "hidden_size": WIDTH,
    "intermediate_size": 70,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "sliding_window": 40,
    "attention_bias": True,
    "mlp_bias": True,
    "max_position_embeddings": 512,
}
DECODE, PROMPT, SEVERAL, SHORT = StepKey(4, 4), StepKey(16, 4), StepKey(4, 4, 4), StepKey(8, 8)
PLAIN = StepKey(4, 4, 1, Draws.PLAIN)
KINDS = ["sliding_attention", "full_attention"]

COLLECTIVE = re.compile(
    r"= (?P<shapes>\(?\w+\[.*?) "
    r"(?P<name>all-reduce|all-gather|all-to-all|ragged-all-to-all|reduce-scatter|collective-permute|collective-broadcast)"
    r"(-start)?\("
)


def collectives(
    devices: int,
    key: Key,
    vocab: int = EVEN,
    *,
    quant: str = "none",
    kv: str = "float32",
    config: Any = CONFIG,
    parts: int = 1,
) -> Counter[str]:
    """How often each collective stands in the program, named with the shape of each array that it moves."""
    spread = {"tensor_parallel": devices, "expert_parallel": parts}
    model = build(config | {"vocab_size": vocab}, quant=quant, dtype=jnp.float32, **spread)
    mesh = make_mesh(jax.devices("cpu")[:devices], parts)
    attention = choose(Case(mesh, jnp.float32, KVFormat(kv), 16, 16, kinds(model)))
    hlo = (
        Program(model, mesh, Shapes(16, (16,) * len(page_groups(model.layers)), 4, 128), attention)
        .lower(key)
        .compile(quick.OPTIONS)
        .as_text()
    )
    return Counter(
        f"{found['name']} {shape}"
        for found in COLLECTIVE.finditer(hlo)
        for shape in re.findall(r"\w+\[[\d,]*\]", found["shapes"])
    )


def expected(devices: int, key: StepKey, vocab: int = EVEN) -> dict[str, int]:
    """Two sums a layer, after attention and after the MLP, and what stands outside of the layers. A step of several tokens
    has its layers once, in a loop.

    The table of tokens is split by tokens: each device looks up what it has, and one more sum puts the rows together. The
    logits are gathered once, so that each device can draw by itself; where nothing is cut, and the vocabulary divides, what
    each has drawn of its own part.
    """
    if key.draws == Draws.PLAIN and vocab % devices == 0:
        return {f"all-reduce f32[{key.tokens},{WIDTH}]": 2 * LAYERS + 1, f"all-gather s32[{devices},2,{key.rows}]": 1}
    padded = -(-vocab // devices) * devices
    return {f"all-reduce f32[{key.tokens},{WIDTH}]": 2 * LAYERS + 1, f"all-gather f32[{key.rows},{padded}]": 1}


@pytest.mark.parametrize(
    ("devices", "key", "vocab"),
    slow_but(
        [(2, PROMPT, ODD), (4, SEVERAL, EVEN), (4, PLAIN, EVEN)],
        [
            (4, PLAIN, EVEN),
            (2, PLAIN, ODD),
            (2, DECODE, EVEN),
            (2, PROMPT, ODD),
            (4, DECODE, ODD),
            (4, PROMPT, EVEN),
            (8, DECODE, EVEN),
            (8, PROMPT, ODD),
            (4, SEVERAL, EVEN),
            (8, SHORT, EVEN),
        ],
    ),
    ids=str,
)
def test_a_layer_costs_two_sums(devices: int, key: StepKey, vocab: int) -> None:
    """No weight, no page and no count of the sampler's moves, whatever divides or does not."""
    assert collectives(devices, key, vocab) == expected(devices, key, vocab)


@pytest.mark.parametrize("quant", slow_but(["int8"], ["int8", "int4"]))
def test_a_layer_of_narrow_weights_costs_two_sums(quant: str) -> None:
    """A device rounds what it multiplies by itself. Coded tables have a scale per token, which is one more sum."""
    found = collectives(4, DECODE, quant=quant)

    assert found.pop(f"all-reduce s8[4,{WIDTH}]") == found.pop("all-reduce f32[4]") == 1
    assert found == expected(4, DECODE) | {f"all-reduce f32[4,{WIDTH}]": 2 * LAYERS}


def test_narrow_pages_add_nothing() -> None:
    """Scales of keys and values lie with their heads."""
    assert collectives(4, PROMPT, kv="int8") == expected(4, PROMPT)


def test_to_fill_a_slot_nothing_is_exchanged() -> None:
    assert not collectives(4, SlotKey())


def test_no_option_of_a_family_adds_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of heads and behind the sums, sinks, caps: each device has what it needs of them."""
    monkeypatch.setattr(registry, "FAMILIES", [*registry.FAMILIES, "tests.fakes.family_trial"])
    config = trial_files.CONFIG | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "layer_types": KINDS}

    assert collectives(2, PROMPT, config=config) == expected(2, PROMPT)


def test_whole_experts_on_some_devices_add_nothing() -> None:
    """The sum over all devices that a layer ends with is theirs, too: tokens and weights stay where they are."""
    changes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_experts": 8}

    assert collectives(4, PROMPT, config=CONFIGS["qwen3moe"] | changes, parts=2) == expected(4, PROMPT)
