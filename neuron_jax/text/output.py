"""Token ids of one choice to the pieces a client sees; joins the text layer's parts, knows no wire.

ids → detokenize → stop strings → reasoning → tool calls → pieces
"""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from neuron_jax.text import formats
from neuron_jax.text.detokenize import Detokenizer
from neuron_jax.text.pieces import Piece, Text, ToolStart, merged
from neuron_jax.text.stop import Matched, StopMatcher
from neuron_jax.text.tokenizer import Tokenizer


@frozen
class OutputDelta:
    """What some tokens added. `ended`: the choice is over, by the stop string `stop` or by the only call that is wanted;
    `tokens_seen` counts all tokens so far, up to the one that completed it."""

    pieces: tuple[Piece, ...]
    stop: str | None
    tokens_seen: int
    ended: bool = False


@frozen
class Reading:
    """How the answer to a prompt is read.

    `reasoning` and `tools` are names from `neuron_jax.text.formats`, None where the request has no use for them. `functions`
    are those that may be called. With `one_call` the first call ends the answer; with `only_calls` the answer is bound to
    calls, and all else was cut off. `continues`: it goes on from a raw prompt, so a leading space stays.
    """

    reasoning: str | None = None
    tools: str | None = None
    functions: Sequence[Mapping[str, Any]] = ()
    one_call: bool = False
    only_calls: bool = False
    continues: bool = False


class OutputText:
    """One choice's output. After its end nothing follows: what is fed then is ignored and not counted.

    A stop string ends it only where a token after the first `min_tokens` completes it, as in vLLM.
    Tool calls get the ids `<call_prefix>0`, `<call_prefix>1`, …; the prefix is unique to the choice.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        reading: Reading,
        *,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        call_prefix: str = "",
    ) -> None:
        reasoning, tools = reading.reasoning, reading.tools
        assert call_prefix or not tools, "tool calls need ids that are unique beyond this choice"
        names = formats.markers(reasoning=reasoning, tools=tools) & tokenizer.special_tokens
        visible = frozenset(id_ for name in names if (id_ := tokenizer.id_of(name)) is not None)
        self._detokenizer = Detokenizer(tokenizer, visible=visible, continues=reading.continues)
        self._stops = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._reasoning = formats.reasoning_parser(reasoning, tools=tools) if reasoning else None
        # Where thoughts are told by the format of calls, that is always read.
        calls = reasoning if reasoning and self._reasoning is None else tools
        self._tools = (
            formats.tool_parser(calls, call_prefix, only_one=reading.one_call, functions=reading.functions)
            if calls
            else None
        )
        self._only_calls = reading.only_calls
        self._ended = False
        self._seen = 0
        self.reasoning_tokens = 0
        self.called_tools = False

    def feed(self, ids: Sequence[int]) -> OutputDelta:
        """The pieces that `ids` complete. Leave out a final stop id whose text is not wanted."""
        pieces: list[Piece] = []
        for id_ in ids:
            if self._ended:
                break
            self._count()
            matched = self._match(self._detokenizer.feed((id_,)))
            pieces += self._parse(matched.text)
            if matched.stop is not None or (self._tools and self._tools.ended):
                return self._end(pieces, matched.stop)
        return self._delta(pieces, None)

    def close(self, *, cut: bool = False) -> OutputDelta:
        """Everything held back, at the end of the choice, or where it is `cut` off. Empty when it had ended before."""
        if self._ended:
            return self._delta([], None)
        matched = self._match(self._detokenizer.close())
        held = "" if matched.stop is not None else self._stops.close()
        return self._end(self._parse(matched.text + held), matched.stop, cut=cut)

    def _match(self, text: str) -> Matched:
        return self._stops.feed(text, armed=self._seen > self._min_tokens)

    def _count(self) -> None:
        self._seen += 1
        thinks = self._reasoning or self._tools
        if thinks and thinks.thinking:
            self.reasoning_tokens += 1

    def _end(self, pieces: list[Piece], stop: str | None, *, cut: bool = False) -> OutputDelta:
        self._ended = True
        last = self._calls(self._reasoning.close()) if self._reasoning else []
        return self._delta(pieces + last + (self._tools.close(cut=cut) if self._tools else []), stop)

    def _parse(self, text: str) -> list[Piece]:
        if not text:
            return []
        return self._calls(self._reasoning.feed(text) if self._reasoning else [Text(text)])

    def _calls(self, pieces: list[Piece]) -> list[Piece]:
        """`pieces`, the text among them searched for tool calls."""
        if self._tools is None:
            return pieces
        found: list[Piece] = []
        for piece in pieces:
            found += self._tools.feed(piece.text) if isinstance(piece, Text) else [piece]
        return found

    def _delta(self, pieces: list[Piece], stop: str | None) -> OutputDelta:
        if self._only_calls:
            pieces = [piece for piece in pieces if not isinstance(piece, Text)]
        self.called_tools = self.called_tools or any(isinstance(piece, ToolStart) for piece in pieces)
        return OutputDelta(merged(pieces), stop, self._seen, self._ended)
