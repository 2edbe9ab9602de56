"""One request inside the engine: a few counters in one asserted order; knows no pages' content, no device, no text."""

from attrs import define, field

from neuron_jax.constraints.forced import Recital
from neuron_jax.constraints.matcher import Matcher
from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.engine.buckets import Draws
from neuron_jax.engine.guesses import Guesser, Hope
from neuron_jax.workers.frames import Sampling, Submit

Follower = Matcher | ThinkingLimit | Recital
"""Says what a text may go on with."""


@define(eq=False)
class Request:
    """What the scheduler knows of a request; 0 <= computed < length <= limit.

    `tokens` is the prompt and what was generated and fetched; `ahead` counts tokens that steps under way will add.
    `computed` counts the tokens whose keys and values are in pages, as soon as the step that computes them is planned.
    `fed` is the length when it was admitted: tokens up to there come from the host, later ones never leave the device.
    `slot` is its row of the device state while it is admitted; `stay` counts how often it gave that up, so that what a
    step under way brings for an earlier stay is known to be void. `arrival` orders requests: the youngest is preempted first.
    Of its pages, the first `found` were others' before, and the first `published` can be found by others; `names` are what
    its full pages are called. `cached` counts the prompt's tokens that were found at its first stay. What it holds is
    the `Cache`'s business: `pages` by group of layers, 0 where a window has `left` them behind (by group, how many); the
    `snapshot` that its next row begins from, the one that it leaves (`rolling`: place, and pages of text behind which
    the state is), where its text `parted` from others, and where its state was kept last (`marked`), both in pages; and of
    a step with guesses under way the snapshots behind its tokens (`marks`).
    """

    id: int
    prompt_length: int
    tokens: list[int]
    sampling: Sampling
    limit: int  # length at which it ends with "length"
    min_tokens: int
    stop_ids: frozenset[int]
    arrival: int
    wants_logprobs: bool
    given: int = 0  # tokens behind the prompt that were given, too: none of them ends it
    adapter: int = 0  # whose weights it goes through besides the model's, 0 for none
    computed: int = 0
    ahead: int = 0
    fed: int = 0
    pages: list[list[int]] = field(factory=list)
    left: dict[int, int] = field(factory=dict)
    snapshot: int = 0
    rolling: tuple[int, int] = (0, 0)
    parted: int = 0
    marked: int = 0
    marks: list[int] = field(factory=list)
    slot: int | None = None
    stay: int = 0
    names: list[bytes] = field(factory=list)
    found: int = 0
    published: int = 0
    cached: int = 0
    guesser: Guesser | None = None  # where its tokens may be guessed
    drafter: Guesser | None = None  # what is known of the model's own guesses, where it makes some
    drafted: tuple[int, list[int]] = (0, [])  # those for what follows so many tokens
    matcher: Follower | None = None  # where they are bound: it stands behind the last of `tokens`
    hope: Hope = field(factory=Hope)  # for those that are

    @property
    def length(self) -> int:
        """Tokens, those included that only the device knows yet."""
        length = len(self.tokens) + self.ahead
        assert 0 <= self.computed < length <= self.limit, self
        return length

    def binds(self, draws: int = 1) -> bool:
        """Whether all that it has drawn must be known before it draws so many more."""
        return self.matcher is not None and self.ahead + draws > self.matcher.slack

    @property
    def bound(self) -> bool:
        """Whether what it draws next is."""
        return self.matcher is not None and self.matcher.active

    @property
    def to_feed(self) -> int:
        """Tokens that are still to be computed before it decodes."""
        return max(self.fed - self.computed, 0)

    @property
    def banned(self) -> frozenset[int]:
        """Ids that must not be drawn at positions below `banned_until`: they would end it before `min_tokens`."""
        return self.stop_ids if self.min_tokens > 0 else frozenset()

    @property
    def banned_until(self) -> int:
        return self.prompt_length + self.min_tokens

    @property
    def decoding(self) -> bool:
        """Admitted, with its newest token on the device, and not as long as it may get."""
        return self.slot is not None and self.computed >= self.fed and self.length < self.limit


def has_penalties(sampling: Sampling) -> bool:
    neutral = (0.0, 0.0, 1.0)
    return (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) != neutral


def is_cut(sampling: Sampling) -> bool:
    """Whether what may be drawn depends on what else may."""
    return sampling.temperature > 0 and (sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0)


def wants_everything(sampling: Sampling) -> bool:
    """Whether drawing takes more than temperature and cuts."""
    return sampling.logprobs is not None or bool(sampling.logit_bias) or has_penalties(sampling)


def draws_by(request: Request, position: int) -> Draws:
    """What a program must be able to do to draw for `request` at `position` and behind it, where no mask is asked for."""
    if wants_everything(request.sampling) or (request.banned and position < request.banned_until):
        return Draws.FULL
    return Draws.CUT if is_cut(request.sampling) else Draws.PLAIN


def from_submit(submit: Submit, *, arrival: int, max_context: int, matcher: Follower | None = None) -> Request:
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
        wants_logprobs=submit.sampling.logprobs is not None,
        given=len(submit.begins),
        matcher=matcher,
        adapter=submit.adapter,
    )
