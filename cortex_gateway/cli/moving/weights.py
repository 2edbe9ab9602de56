"""The predecessor's names of models and formats, and what they are here: ids, `quant`, `source`. Pure."""

from attrs import frozen

from cortex_gateway.cli.moving.notes import Notes

SCHEME = "huggingface"
"""The predecessor's own default, and the only hub that is ours."""
WHOLE = {"f16", "bf16", "f32"}
EIGHT_BITS = {"q80", "q81", "q8k", "q6k", "q50", "q51", "q5k", "q5km"}
FOUR_BITS = {"q40", "q41", "q4k", "q4km", "q3k", "q2k"}


@frozen
class Weights:
    """How a model is named and kept here. None: left to the id, and to the device."""

    id: str
    quant: str | None = None
    source: str | None = None
    why_quant: str | None = None  # where it is not what the file said
    why_source: str | None = None

    def told(self, name: str) -> dict[str, str]:
        """As keys of an entry that calls its id `name`."""
        values = {name: self.id, "quant": self.quant, "source": self.source}
        return {key: value for key, value in values.items() if value is not None}


def tell(found: Weights, quant: str, source: str, notes: Notes) -> None:
    """What became of the entry's format and of its registry, which the notes call `quant` and `source`."""
    if found.why_quant:
        (notes.changed if found.quant or found.source else notes.gone)(quant, found.why_quant)
    if found.why_source:
        notes.gone(source, found.why_source)


def weights_of(name: str, quant: str | None, scheme: str | None = None) -> Weights:
    """Of the predecessor's `[scheme:]org/name` and its `quant`: a file of a GGUF repository, else a format of candle's."""
    told, _, rest = name.rpartition(":")
    told = told or scheme or SCHEME
    elsewhere = None
    if told != SCHEME:
        elsewhere = f"registries have no names here: a neuron asks the one that $HF_ENDPOINT names, not {told!r}"
    if quant and "gguf" in rest.lower():
        return Weights(
            rest,
            source=f"hf:{rest}:{quant}",
            why_quant=f"the file of a GGUF repository is part of the source here: hf:{rest}:{quant}",
            why_source=elsewhere,
        )
    return Weights(rest, *_format(quant), why_source=elsewhere) if quant else Weights(rest, why_source=elsewhere)


def _format(quant: str) -> tuple[str | None, None, str]:
    """(quant, no source, why)."""
    word = quant.lower().replace("_", "")
    if word in WHOLE:
        return "none", None, f'{quant!r} is "none" here: bfloat16 on a GPU'
    if word in EIGHT_BITS:
        more = "" if word.startswith("q8") else ', which takes more memory; "int4" takes less and changes the text more'
        return "int8", None, f'candle\'s {quant!r} is "int8" here{more}'
    if word in FOUR_BITS:
        return "int4", None, f'candle\'s {quant!r} is "int4" here'
    return None, None, f"{quant!r} is no format that candle has: the device decides (auto)"
