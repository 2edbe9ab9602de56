"""One request inside the engine: a few counters in one asserted order; knows no pages' content, no device, no text."""

from attrs import define, field

from neuron_jax.workers.frames import Sampling, Submit


@define(eq=False)
class Request:
    """What the scheduler knows of a request. `tokens` is prompt + generated; 0 <= computed < len(tokens) <= limit.

    `computed` counts the tokens whose keys and values are in `pages`. `slot` is its row of the device state while it
    is admitted. `arrival` orders requests: the youngest is preempted first.
    """

    id: int
    prompt_length: int
    tokens: list[int]
    sampling: Sampling
    limit: int  # len(tokens) at which it ends with "length"
    min_tokens: int
    stop_ids: frozenset[int]
    arrival: int
    computed: int = 0
    pages: list[int] = field(factory=list)
    slot: int | None = None

    @property
    def to_compute(self) -> int:
        """Tokens whose keys and values are still to be computed; the last of them is the one sampled after."""
        assert 0 <= self.computed < len(self.tokens) <= self.limit, self
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def decoding(self) -> bool:
        """Admitted, with nothing left of the prompt but the step that gives the next token."""
        return self.slot is not None and self.to_compute == 1

    @property
    def banned(self) -> frozenset[int]:
        """Ids that must not be drawn now: those that would end it before `min_tokens`."""
        return self.stop_ids if self.generated < self.min_tokens else frozenset()


def from_submit(submit: Submit, *, arrival: int, max_context: int) -> Request:
    """A new request. `limit` is the shorter of what was asked and what the context holds."""
    assert submit.prompt, "the daemon refuses empty prompts"
    assert submit.max_tokens >= 1, submit.max_tokens
    return Request(
        id=submit.request,
        prompt_length=len(submit.prompt),
        tokens=list(submit.prompt),
        sampling=submit.sampling,
        limit=min(len(submit.prompt) + submit.max_tokens, max_context),
        min_tokens=submit.min_tokens,
        stop_ids=frozenset() if submit.ignore_eos else frozenset(submit.stop_ids),
        arrival=arrival,
    )
