"""From what a dense family reads and its names to its record in the registry; must not know any family, nor jax."""

from collections.abc import Callable
from typing import Any

from models.config import MOST_HEADS, Keys
from models.dense.names import Names
from models.dense.record import Dense, GatedDelta, Mamba2, Recurrent
from models.gguf import GgufTable
from models.spec import Config, Family, Model


def checked(keys: Keys, found: Dense) -> Dense:
    """`found`, read of `keys`. Raises ModelError with every misfit, those between its sizes included."""
    if found.query_heads % found.kv_heads:
        keys.refuse(f"{found.query_heads} attention heads do not divide among {found.kv_heads} key-value heads")
    heads = max(found.query_heads, *(_heads(layer.recurrence) for layer in found.stack))
    if heads > MOST_HEADS:
        keys.refuse(f"{heads} heads are more than the {MOST_HEADS} that a layer may have")
    for experts in found.mixtures:
        keys.refuse(experts.misfits)
    keys.check()
    return found


def _heads(kind: Recurrent | None) -> int:
    match kind:
        case GatedDelta():
            return kind.value_heads
        case Mamba2():
            return kind.heads
    return 0


def dense_family(
    *,
    architectures: tuple[str, ...],
    model_types: tuple[str, ...],
    read: Callable[[Config], Dense],
    names: Names,
    gguf: GgufTable | None = None,
    ignored: tuple[str, ...] | Callable[[Dense], tuple[str, ...]] = (),
    drafts: bool = False,
) -> Family:
    """`names` of all tensors that one of the family may have; `ignored` as in `models.dense.rules`. `drafts`: its checkpoints
    may have what drafts tokens, see `models.dense.ahead`.
    """

    def build(config: Config, **choices: Any) -> Model:
        from models.dense.build import build_dense  # brings JAX, which who only reads configs does without

        found = read(config)
        return build_dense(found, names, ignored=ignored(found) if callable(ignored) else ignored, **choices)

    tables = () if gguf is None else (gguf,)
    return Family(
        architectures=architectures, model_types=model_types, read=read, build=build, gguf=tables, drafts=drafts
    )
