"""Turns whose thoughts, calls and answer each stand between markers of a family's own; knows no notation of calls."""

from collections.abc import Callable, Sequence

from neuron_jax.text.calls.envelopes import Body
from neuron_jax.text.calls.reader import CallReader
from neuron_jax.text.calls.source import Waits


def turns(
    thoughts: tuple[str, str], calls: tuple[str, str], body: Body, *, answer: Sequence[str] = ()
) -> Callable[[CallReader], Waits[None]]:
    """`thoughts` and `calls` are what opens and closes them. What stands around an `answer`, opening and closing in turn, is no
    text, and may be missing; nor is white space within and behind these.
    """
    (think, thought), act = thoughts, calls[0]
    around = [word for one in answer for word in (f"\n{one}", one)]

    def read(reader: CallReader) -> Waits[None]:
        source = reader.source
        while True:
            marker = yield from source.until((*thoughts, *calls, *around), reader.say, reader.say_unless_cut)
            if marker is None:
                return
            if marker == think:
                reader.thinking = True
                yield from reader.spaces()
                yield from source.until((f"\n{thought}", thought), reader.think, reader.leave)
                reader.thinking = False
                yield from reader.spaces()
            elif marker.strip() in answer[::2]:
                yield from reader.spaces()
            elif marker == act:
                source.mark()
                reader.marker = act
                if (yield from body(reader)):
                    reader.accept()
                else:
                    reader.refuse()

    return read
