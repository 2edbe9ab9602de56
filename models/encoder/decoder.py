"""A decoder that embeds or scores: its last hidden states, pooled, or the next token's logits; knows any `models.spec.Model`,
must not know families.

Qwen3-Embedding and Qwen3-Reranker are such: causal attention over the whole text, and the state of its last token.
EmbeddingGemma's tokens all see each other, and their mean goes through two maps. https://arxiv.org/abs/2506.05176,
https://arxiv.org/abs/2509.20354
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from attrs import evolve, frozen
from jax import lax

from models.encoder.rules import map_rules
from models.encoder.texts import Texts, attend, normalized, pool
from models.errors import ModelError
from models.mapping import Ignore, Rule
from models.pooling import VERDICT, DenseLayer, LogitScore, Pooling
from models.spec import LayerSpec, Model, PagedLayer, Params, ParamSpec

_PREFIX = "model."
_WIDE = np.dtype(np.float32)
ROWS = 16
"""Texts whose logits are computed at once: of all of a call they would be larger than anything else in it."""

Finish = Callable[[Params, jax.Array, Texts], jax.Array]
"""Parameters, hidden [T, D] and the texts -> float32 [N, width]."""


@frozen
class WholeTexts:
    """The `models.spec.Mixer` of a decoder that reads whole texts and keeps nothing: caches go in and come out as None."""

    owner: jax.Array
    causal: bool = True
    live: jax.Array | None = None
    rotates: bool = False

    def attend(
        self, layer: PagedLayer, q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, *, sinks: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """See `models.spec.Mixer`."""
        assert cache is None, "whole texts read no cache"
        assert sinks is None, "sinks are of decoders that embed nothing"
        assert layer.soft_cap is None, "soft caps are of decoders that embed nothing"
        assert not layer.aligned, "aligned windows are of decoders that embed nothing"
        # The window counts the token itself.
        reach = None if layer.window is None else layer.window - 1
        return attend(q, k, v, self.owner, reach=reach, causal=self.causal), None

    def attend_rotated(self, *_: Any, **__: Any) -> tuple[jax.Array, Any]:
        """Never called: `rotates` is False."""
        raise AssertionError("whole texts are rotated by their model")

    def recur(self, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Never called: no family with a recurrent state embeds."""
        raise AssertionError("whole texts have no state")


@frozen(eq=False)
class DecoderEmbedder:
    """`models.spec.Embedder` over a decoder."""

    model: Model
    finish: Finish
    heads: int
    width: int
    rules: Sequence[Rule | Ignore]
    causal: bool = True
    dense: tuple[DenseLayer, ...] = ()

    @property
    def architecture(self) -> str:
        return self.model.architecture

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def max_positions(self) -> int:
        return self.model.max_positions

    @property
    def layers(self) -> Sequence[LayerSpec]:
        """None: nothing is kept of a text."""
        return ()

    @property
    def widest(self) -> int:
        return self.model.widest

    @property
    def param_specs(self) -> Mapping[str, Any]:
        """Those of the model, and those of its `dense` layers."""
        if not self.dense:
            return self.model.param_specs
        return {**self.model.param_specs, "dense": {at: _specs(layer) for at, layer in enumerate(self.dense)}}

    def embed(self, params: Params, texts: Texts) -> jax.Array:
        """See `models.spec.Embedder`."""
        tokens, positions = texts.tokens.reshape(-1), texts.positions.reshape(-1)
        own = {name: value for name, value in params.items() if name in self.model.param_specs}
        hidden, _ = self.model.forward(
            own, tokens, positions, WholeTexts(texts.owner, self.causal), [None] * len(self.model.layers)
        )
        return self.finish(params, hidden, texts)


def _specs(layer: DenseLayer) -> dict[str, ParamSpec]:
    kernel = ParamSpec((layer.inputs, layer.outputs), jnp.float32, (None, None))
    return {"kernel": kernel} | ({"bias": ParamSpec((layer.outputs,), jnp.float32, (None,))} if layer.bias else {})


def _mapped(layer: DenseLayer, params: Params, vectors: jax.Array) -> jax.Array:
    """vectors [N, inputs] -> [N, outputs]."""
    made = jnp.matmul(vectors, params["kernel"], precision=lax.Precision.HIGHEST)
    if layer.bias:
        made += params["bias"][None]
    return jnp.tanh(made) if layer.activation == "tanh" else made


def embedding_decoder(
    model: Model, pooling: Pooling, width: int, stored: Mapping[str, Any] | None, *, causal: bool = True
) -> DecoderEmbedder:
    """`model`, which is `width` wide, as one that embeds. `stored`: its checkpoint's tensors by name. Without `causal` all
    tokens of a text see each other.

    Raises ModelError for layers that whole texts are not read with.
    """

    def finish(params: Params, hidden: jax.Array, texts: Texts) -> jax.Array:
        pooled = pool(hidden, texts, pooling)
        for at, layer in enumerate(pooling.dense):
            pooled = _mapped(layer, params["dense"][at], pooled)
        return normalized(pooled) if pooling.normalize else pooled

    bare = stored is not None and not any(name.startswith(_PREFIX) for name in stored)
    rules = tuple(map(_bare, model.rules)) if bare else tuple(model.rules)
    for at, layer in enumerate(pooling.dense):
        width, stem = layer.outputs, f"{layer.name}.linear"
        rules += tuple(map_rules(f"dense.{at}", (stem,), layer.outputs, layer.inputs, _WIDE, bias=layer.bias))
    return DecoderEmbedder(model, finish, _heads(model), width, rules, causal, pooling.dense)


def scoring_decoder(model: Model, score: LogitScore) -> DecoderEmbedder:
    """`model` as one that gives a text the score of its next token. Raises ModelError as `embedding_decoder` does."""

    def some(params: Params, ends: jax.Array) -> jax.Array:
        """ends [ROWS, D], the states of last tokens -> [ROWS]."""
        logits = model.logits(params, ends)
        return logits[:, score.true] - (0.0 if score.false is None else logits[:, score.false])

    def finish(params: Params, hidden: jax.Array, texts: Texts) -> jax.Array:
        count = texts.last.shape[0]
        ends = jnp.pad(hidden[texts.last], ((0, -count % ROWS), (0, 0))).reshape(-1, ROWS, hidden.shape[-1])
        found: jax.Array = lax.map(partial(some, params), ends)
        return found.reshape(-1, 1)[:count]

    return DecoderEmbedder(model, finish, _heads(model), 1, model.rules)


def verdict_decoder(model: Model, width: int) -> DecoderEmbedder:
    """`model`, which is `width` wide, as one that gives a text how much likelier "yes" is than "no", by two rows of a head that
    the checkpoint has alone. Raises ModelError as `embedding_decoder` does."""
    rows = DenseLayer(VERDICT, width, 2, bias=False, activation="identity")

    def finish(params: Params, hidden: jax.Array, texts: Texts) -> jax.Array:
        logits = _mapped(rows, params["dense"][0], hidden[texts.last].astype(jnp.float32))
        return logits[:, :1] - logits[:, 1:]

    added = map_rules("dense.0", (rows.name,), rows.outputs, rows.inputs, _WIDE, bias=False)
    return DecoderEmbedder(model, finish, _heads(model), 1, (*model.rules, *added), dense=(rows,))


def _heads(model: Model) -> int:
    """How many look at once. Raises ModelError for layers that whole texts are not read with."""
    layers = [layer for layer in model.layers if isinstance(layer, PagedLayer)]
    if len(layers) < len(model.layers) or any(layer.soft_cap is not None or layer.sinks for layer in layers):
        raise ModelError(model.architecture, ["models with recurrent states, soft caps or sinks do not embed"])
    return max(layer.kv_heads * layer.group for layer in layers)


def _bare(rule: Rule | Ignore) -> Rule | Ignore:
    """For a checkpoint of the network below the head alone, as sentence-transformers writes it."""
    if isinstance(rule, Ignore):
        return rule
    return evolve(rule, parts=tuple(evolve(part, name=part.name.removeprefix(_PREFIX)) for part in rule.parts))
