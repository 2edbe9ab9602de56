"""The file that changes hidden states: found, run, traced behind each layer, and refused in words."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from models.registry import build
from neuron_jax.errors import LoadError
from neuron_jax.workers.frames import EngineSpec, GroupMember
from neuron_jax.workers.start import read_transform
from tests.fakes.family_files import CONFIGS
from tests.fakes.plain_pass import full_logits, random_params
from tests.fakes.tiny_llama import tiny

STEER = """
import jax.numpy as jnp
vector = jnp.ones((1, 32))
def transform(layer, hidden):
    return hidden + vector if layer == 1 else hidden
"""


def spec(path: Path, **more: object) -> EngineSpec:
    return EngineSpec("tiny", "", transform=str(path), **more)  # type: ignore[arg-type]


def test_it_acts_behind_its_layer(tmp_path: Path) -> None:
    """Behind the last of two layers a vector is added: the norm and the table see the sum."""
    (tmp_path / "steer.py").write_text(STEER)
    model, params = tiny()
    steered = model.transformed(read_transform(spec(tmp_path / "steer.py")))
    seen: list[np.ndarray] = []
    watched = model.transformed(lambda layer, hidden: (seen.append((layer, hidden.shape)), hidden)[1])

    assert not np.allclose(full_logits(model, params, [1, 2, 3]), full_logits(steered, params, [1, 2, 3]))
    assert np.array_equal(full_logits(model, params, [1, 2, 3]), full_logits(watched, params, [1, 2, 3]))
    assert seen == [(0, (256, 32)), (1, (256, 32))]
    assert read_transform(EngineSpec("tiny", "")) is None


def test_the_mean_stays_out_of_a_centred_stream() -> None:
    """A layer norm takes no notice of what is added to all of a vector alike, behind a transform as before."""
    model = build(CONFIGS["cohere2"], dtype=jnp.float32)
    params, lifted = random_params(model, seed=1), model.transformed(lambda _, hidden: hidden + 3.0)

    np.testing.assert_allclose(
        full_logits(lifted, params, [1, 2, 3]), full_logits(model, params, [1, 2, 3]), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [("transform = 1", "has no function `transform`"), ("1 +", "SyntaxError"), (None, "FileNotFoundError")],
)
def test_what_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "steer.py"
    if text is not None:
        path.write_text(text)

    with pytest.raises(LoadError, match=words) as found:
        read_transform(spec(path))
    assert found.value.kind == "bad_transform"


def test_no_rank_runs_it(tmp_path: Path) -> None:
    """A leader could have it from another host."""
    (tmp_path / "steer.py").write_text("raise AssertionError")

    with pytest.raises(LoadError, match="not into those of ranks"):
        read_transform(spec(tmp_path / "steer.py", group=GroupMember(1, 2)))
