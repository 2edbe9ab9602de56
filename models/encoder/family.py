"""From what a family of encoders reads and its names to its record in the registry; must not know any family, nor jax."""

from collections.abc import Callable
from typing import Any

from models.config import Keys, architectures
from models.encoder.record import Encoder
from models.errors import ModelError
from models.gguf import GgufTable
from models.pooling import MODULES, Pooling, read_pooling
from models.spec import Config, Embedder, Family

SCORES = "ForSequenceClassification"
"""The end of the names of architectures that score texts."""

FIRST = Pooling("cls")


def scores(config: Config) -> bool:
    """Whether a config is that of a model that scores texts."""
    return any(name.endswith(SCORES) for name in architectures(config))


def pooling_of(keys: Keys) -> Pooling:
    """What stands beside the config; what is wrong with it is told with the rest."""
    try:
        found = read_pooling(keys.config)
    except ModelError as error:
        keys.refuse([f"{row}" for row in error.misfits])
        return FIRST
    if found.dense:
        keys.refuse("the module Dense is not supported behind an encoder")
    return found


def labels(keys: Keys) -> int:
    """How many scores a text gets: as many as `id2label` has names, or `num_labels` says, else 2."""
    named = keys.get("id2label")
    found = len(named) if isinstance(named, dict) and named else keys.size("num_labels", 2)
    if found != 1:
        keys.refuse(f"it tells {found} labels apart; only models that give one score can rank")
    return found


def ranking(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a GGUF file that has a head: no pooling of its own, and as many scores as it names, else one."""
    labels = config.get("output_labels")
    count = len(labels) if isinstance(labels, list) else 1
    return {key: value for key, value in config.items() if key != MODULES} | {"num_labels": count}


def encoder_family(
    *,
    architectures: tuple[str, ...],
    model_types: tuple[str, ...],
    read: Callable[[Config], Encoder],
    names: Callable[[Config], dict[str, str]],
    gguf: GgufTable | None = None,
    ignored: tuple[str, ...] = (),
) -> Family:
    """`names`: the table of names of a config's checkpoint; `ignored` as in `models.encoder.rules`."""

    def build(config: Config, **choices: Any) -> Embedder:
        from models.encoder.build import build_encoder  # brings JAX, which who only reads configs does without

        return build_encoder(read(config), names(config), ignored=ignored, **choices)

    return Family(
        architectures=architectures,
        model_types=model_types,
        read=read,
        build=build,
        gguf=() if gguf is None else (gguf,),
        purpose=lambda config: "score" if scores(config) else "embed",
    )
