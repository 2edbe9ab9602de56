"""What a model's output consists of, in order; knows neither tokens nor any dialect's wire."""

from collections.abc import Iterable

from attrs import frozen


@frozen
class Text:
    """Visible answer text, never empty."""

    text: str


@frozen
class Reasoning:
    """Text the model wrote before its answer, inside its thinking tags; never empty."""

    text: str


@frozen
class ToolStart:
    """A call begins. `index` counts the calls of one choice from 0."""

    index: int
    id: str
    name: str


@frozen
class ToolArguments:
    """A part of the arguments: JSON text of one object once all parts of `index` are joined."""

    index: int
    text: str


@frozen
class ToolEnd:
    """The call `index` is complete."""

    index: int


Piece = Text | Reasoning | ToolStart | ToolArguments | ToolEnd


def merged(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The same output with neighbours of one kind joined: what any chunking of a stream amounts to."""
    result: list[Piece] = []
    for piece in pieces:
        match (result[-1] if result else None), piece:
            case Text(before), Text(after):
                result[-1] = Text(before + after)
            case Reasoning(before), Reasoning(after):
                result[-1] = Reasoning(before + after)
            case ToolArguments(index, before), ToolArguments(same, after) if index == same:
                result[-1] = ToolArguments(index, before + after)
            case _:
                result.append(piece)
    return tuple(result)
