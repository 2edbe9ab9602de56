"""Predictions of one model held against those of another, on windows of a text; knows models and arrays, no files.

A window is read alone, with plain causal attention: what its first tokens lack in context they lack in every format.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from attrs import frozen

from models.attend import causal
from models.spec import Model, Params

WINDOW = 256
"""Tokens read at once. Their logits are float32 [256, V]."""

Logits = npt.NDArray[np.float32]


@frozen
class Quality:
    """Over all predicted tokens: `perplexity`; the divergence from float32's distribution, KL(float32 || this), in nats
    (mean, and what 99 of 100 tokens are below); and the share whose likeliest token is that of float32."""

    perplexity: float
    kl_mean: float
    kl_p99: float
    same_first: float
    tokens: int

    @classmethod
    def of(cls, rows: "Sequence[Compared]") -> Self:
        """Of all windows together."""
        loss, kl, same = (np.concatenate([getattr(row, name) for row in rows]) for name in ("loss", "kl", "same"))
        return cls(
            perplexity=float(np.exp(np.mean(loss, dtype=np.float64))),
            kl_mean=float(np.mean(kl, dtype=np.float64)),
            kl_p99=float(np.quantile(kl, 0.99)),
            same_first=float(np.mean(same)),
            tokens=len(kl),
        )


@frozen(eq=False)
class Compared:
    """Per predicted token of one window: its loss in nats, the divergence, and whether the likeliest token stayed."""

    loss: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    same: npt.NDArray[np.bool_]


def windows(ids: Sequence[int], bos: int | None) -> list[npt.NDArray[np.int32]]:
    """`ids` cut into windows of at least two tokens; each begins with `bos` if `ids` do."""
    head = [bos] if bos is not None and ids[:1] == [bos] else []
    body, step = ids[len(head) :], WINDOW - len(head)
    cut = [np.array([*head, *body[at : at + step]], np.int32) for at in range(0, len(body), step)]
    return [window for window in cut if len(window) > 1]


def predictions(model: Model, params: Params, cut: Sequence[npt.NDArray[np.int32]]) -> Iterator[Logits]:
    """Logits of each window, float32 [tokens - 1, V]: the last token predicts nothing that is known."""

    @jax.jit
    def run(params: Params, tokens: jax.Array) -> jax.Array:
        positions = jnp.arange(WINDOW, dtype=jnp.int32)
        hidden, _ = model.forward(params, tokens, positions, causal(), [None] * len(model.layers))
        return model.logits(params, hidden)

    for window in cut:
        padded = np.zeros(WINDOW, np.int32)
        padded[: len(window)] = window
        yield np.asarray(run(params, jnp.asarray(padded)))[: len(window) - 1]


def compare(exact: Logits, found: Logits, window: npt.NDArray[np.int32]) -> Compared:
    """`found` beside `exact`, the logits of float32 for the same window."""
    loss, kl, same = [], [], []
    for row, other, token in zip(exact, found, window[1:], strict=True):  # a whole window in float64 is large
        wanted, given = _log_softmax(row), _log_softmax(other)
        loss.append(-given[token])
        kl.append(np.sum(np.exp(wanted) * (wanted - given)))
        same.append(wanted.argmax() == given.argmax())
    return Compared(np.array(loss), np.array(kl), np.array(same))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    """[V] -> [V]."""
    shifted = logits.astype(np.float64) - logits.max()
    found: npt.NDArray[np.float64] = shifted - np.log(np.sum(np.exp(shifted)))
    return found
