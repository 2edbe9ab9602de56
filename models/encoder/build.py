"""From an `Encoder` and its table of names to a `models.spec.Embedder`; must not know any family."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import frozen

from models.encoder.network import EncoderNetwork
from models.encoder.record import Encoder
from models.encoder.rules import Names, rules
from models.encoder.texts import Texts
from models.errors import ModelError
from models.functional import Functional, functional
from models.mapping import Ignore, Rule
from models.spec import LayerSpec, Params


@frozen(eq=False)
class EncoderModel:
    """`models.spec.Embedder` of an encoder."""

    architecture: str
    vocab_size: int
    max_positions: int
    widest: int
    width: int
    heads: int
    rules: Sequence[Rule | Ignore]
    _network: Functional[EncoderNetwork]

    @property
    def layers(self) -> Sequence[LayerSpec]:
        """None: nothing is kept of a text."""
        return ()

    @property
    def param_specs(self) -> Mapping[str, Any]:
        return self._network.param_specs

    def embed(self, params: Params, texts: Texts) -> jax.Array:
        """See `models.spec.Embedder`."""
        return self._network.bind(params)(texts)


def build_encoder(
    c: Encoder,
    names: Names,
    *,
    ignored: tuple[str, ...] = (),
    tensor_parallel: int = 1,
    expert_parallel: int = 1,
    quant: str = "none",
    dtype: Any = None,
    native: bool = False,
    storage: Any = None,
    draft: bool = False,
) -> EncoderModel:
    """The model of `c`, whose tensors have these names (see `models.encoder.rules`); the rest as in `models.spec.Build`.

    Raises ModelError for what an encoder does not do: it is small, computed by XLA on one device, as it is stored.
    """
    del storage
    misfits = [f"quant {quant!r} is not supported, only none"] if quant != "none" else []
    misfits += (
        ["it is served on one device, not split over several"] if max(tensor_parallel, expert_parallel) != 1 else []
    )
    if misfits:
        raise ModelError(c.architecture, misfits)
    assert not native, "the native kernels are for decoders"
    assert not draft, "an encoder drafts nothing"
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return EncoderModel(
        architecture=c.architecture,
        vocab_size=c.vocab_size,
        max_positions=c.max_positions,
        widest=max(3 * c.hidden_size, c.intermediate_size * (2 if c.gated else 1)),
        width=c.hidden_size if c.classifier is None else c.classifier.labels,
        heads=c.heads,
        rules=rules(c, names, np.dtype(dtype), ignored),
        network=functional(lambda: EncoderNetwork(c, dtype)),
    )
