"""A decoder that embeds or scores: its last hidden states, pooled, or the next token's logits; knows any `models.spec.Model`,
must not know families.

Qwen3-Embedding and Qwen3-Reranker are such: causal attention over the whole text, and the state of its last token.
https://arxiv.org/abs/2506.05176
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from attrs import evolve, frozen
from jax import lax

from models.encoder.texts import Texts, attend, normalized, pool
from models.errors import ModelError
from models.mapping import Ignore, Rule
from models.pooling import LogitScore, Pooling
from models.spec import LayerSpec, Model, PagedLayer, Params

_PREFIX = "model."
ROWS = 16
"""Texts whose logits are computed at once: of all of a call they would be larger than anything else in it."""

Finish = Callable[[Params, jax.Array, Texts], jax.Array]
"""Parameters, hidden [T, D] and the texts -> float32 [N, width]."""


@frozen
class CausalTexts:
    """The `models.spec.Mixer` of a decoder that reads whole texts and keeps nothing: caches go in and come out as None."""

    owner: jax.Array
    live: jax.Array | None = None
    rotates: bool = False

    def attend(
        self, layer: PagedLayer, q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, *, sinks: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """See `models.spec.Mixer`."""
        assert cache is None, "whole texts read no cache"
        assert sinks is None, "sinks are of decoders that embed nothing"
        assert layer.soft_cap is None, "soft caps are of decoders that embed nothing"
        # The window counts the token itself.
        reach = None if layer.window is None else layer.window - 1
        return attend(q, k, v, self.owner, reach=reach, causal=True), None

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
        return self.model.param_specs

    def embed(self, params: Params, texts: Texts) -> jax.Array:
        """See `models.spec.Embedder`."""
        tokens, positions = texts.tokens.reshape(-1), texts.positions.reshape(-1)
        hidden, _ = self.model.forward(
            params, tokens, positions, CausalTexts(texts.owner), [None] * len(self.model.layers)
        )
        return self.finish(params, hidden, texts)


def embedding_decoder(model: Model, pooling: Pooling, width: int, stored: Mapping[str, Any] | None) -> DecoderEmbedder:
    """`model` as one that embeds in `width` values. `stored`: its checkpoint's tensors by name.

    Raises ModelError for layers that whole texts are not read with.
    """

    def finish(params: Params, hidden: jax.Array, texts: Texts) -> jax.Array:
        del params
        pooled = pool(hidden, texts, pooling)
        return normalized(pooled) if pooling.normalize else pooled

    bare = stored is not None and not any(name.startswith(_PREFIX) for name in stored)
    rules = tuple(map(_bare, model.rules)) if bare else model.rules
    return DecoderEmbedder(model, finish, _heads(model), width, rules)


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
