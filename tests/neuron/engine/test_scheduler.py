"""The scheduler without a device: what it hands out, in which order, and how it books what comes back late."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field
from msgspec.structs import replace

from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.buckets import GUESSING_ROWS, Draws, Menu, StepKey, declare, one_size
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.requests import Request, from_submit
from neuron_jax.engine.room import GAP, Prompts, Streams, room
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.engines import submit

Cost = Callable[[int], float]


def taught(cost: Cost, sizes: list[int]) -> Pace:
    """A pace that has seen steps of these sizes take what `cost` says."""
    pace = Pace()
    for size in sizes:
        pace.saw(StepKey(size, size), cost(size), prompts=True)
    return pace


def scheduler(
    *,
    pages: int = 100,
    slots: int = 4,
    cost: Cost | None = None,
    guesses: int = 0,
    drafts: int = 0,
    chunk: int = 64,
    by_draws: bool = False,
) -> Scheduler:
    """With `cost`, steps of all sizes have been measured to take what it says."""
    menu = Menu()
    menu.add(declare(max_slots=slots, chunk_tokens=chunk, decode_steps=4, guesses=guesses, by_draws=by_draws).keys())
    pace = taught(cost, menu.tokens) if cost else Pace()
    return Scheduler(Cache([Pages(pages)], 16), max_slots=slots, menu=menu, pace=pace, guesses=guesses, drafts=drafts)


def by_token(seconds: float, each: float = 0.001) -> Cost:
    return lambda tokens: seconds + each * tokens


def add(to: Scheduler, request: int, prompt: int, **changes: object) -> Request:
    made = from_submit(submit(request, [1] * prompt, **changes), arrival=request, max_context=512)
    to.add(made)
    return made


def following(of: Scheduler) -> Step:
    step = of.next_batch()
    assert step is not None
    of.check_integrity()
    return step


def drawn(step: Step, token: int = 7) -> Drawn:
    return Drawn([[token] * row.draws for row in step.rows], None, [[token] * row.drafts for row in step.rows])


def run(of: Scheduler) -> Step:
    """The next step, computed at once."""
    step = following(of)
    of.absorb(step, drawn(step))
    return step


def run_with(of: Scheduler, tokens: list[list[int]]) -> Step:
    """The next step, in which `tokens` are drawn."""
    step = following(of)
    of.absorb(step, Drawn(tokens, None, drawn(step).drafts))
    return step


def shape(step: Step) -> list[tuple[int, int, int, int]]:
    """Whose rows, from where, how many tokens, and how many are drawn."""
    return [(row.request.id, row.start, row.count, row.draws) for row in step.rows]


def test_a_prompt_is_computed_and_then_decoded_before_its_token_is_known() -> None:
    busy = scheduler()
    request = add(busy, 1, 10, max_tokens=5)
    first, second = following(busy), following(busy)

    assert (first.key.tokens, shape(first)) == (16, [(1, 0, 10, 1)])
    assert (second.key, shape(second)) == (StepKey(1, 1), [(1, 10, 1, 1)])
    assert (len(request.tokens), request.length, request.computed) == (10, 12, 11)


def test_no_more_tokens_are_planned_than_the_limit_allows() -> None:
    """With everything under way that it may still say, a request waits for its end."""
    busy = scheduler()
    add(busy, 1, 10, max_tokens=2)
    steps = [following(busy), following(busy)]

    assert busy.next_batch() is None
    outputs = [output for step in steps for output in busy.absorb(step, drawn(step))]
    assert [output.finish for output in outputs] == [None, "length"]
    assert busy.idle


def test_what_ended_while_its_next_step_was_under_way_says_nothing_more() -> None:
    busy = scheduler()
    add(busy, 1, 10, stop=(7,))
    first, second = following(busy), following(busy)

    assert [output.finish for output in busy.absorb(first, drawn(first))] == ["stop"]
    assert busy.idle
    assert busy.absorb(second, drawn(second)) == []


def test_a_slot_given_away_while_its_step_was_under_way_keeps_the_two_apart() -> None:
    busy = scheduler(slots=1)
    first = add(busy, 1, 10)
    second = add(busy, 2, 10)
    late = following(busy)
    busy.cancel(1)
    step = following(busy)

    assert step.rows[0].request is second
    assert second.slot is not None
    assert busy.absorb(late, drawn(late)) == []
    assert [output.request for output in busy.absorb(step, drawn(step))] == [2]
    assert (len(first.tokens), len(second.tokens)) == (10, 11)


def test_tokens_under_way_of_a_preempted_request_are_drawn_again() -> None:
    """Two requests of up to 4 pages in 6: the younger one gives way while a token of its own is on its way."""
    busy = scheduler(pages=6)
    old, young = add(busy, 1, 30, max_tokens=30), add(busy, 2, 20, max_tokens=30)
    late = [following(busy)]
    while not busy.preemptions:
        late.append(following(busy))
        busy.absorb(late[-2], drawn(late[-2]))
    known = len(young.tokens)

    assert (young.slot, busy.preemptions) == (None, 1)
    assert (young.ahead, young.computed) == (0, 0)
    assert [output.request for output in busy.absorb(late[-1], drawn(late[-1]))] == [1]
    assert len(young.tokens) == known
    while old.tokens[30:] != [7] * 30:
        run(busy)
    again = following(busy)
    assert shape(again) == [(2, 0, known, 1)]


def test_a_stop_within_several_tokens_trims_them() -> None:
    busy = scheduler(cost=by_token(0.01))
    add(busy, 1, 10, stop=(9,))
    run(busy)
    step = following(busy)
    (output,) = busy.absorb(step, Drawn([[7, 9, 8, 8]], None))

    assert step.key == StepKey(1, 1, 4)
    assert (output.tokens, output.finish) == ([7, 9], "stop")


def test_rows_near_their_limit_draw_no_more_than_that() -> None:
    busy = scheduler(cost=by_token(0.01))
    add(busy, 1, 10, max_tokens=3)
    add(busy, 2, 6, max_tokens=12)
    first = run(busy)
    step = following(busy)
    outputs = busy.absorb(step, drawn(step))

    assert shape(first) == [(1, 0, 10, 1), (2, 0, 6, 1)]
    assert (step.key, shape(step)) == (StepKey(2, 2, 4), [(1, 10, 2, 2), (2, 6, 4, 4)])
    assert [(len(output.tokens), output.finish) for output in outputs] == [(2, "length"), (4, None)]


@pytest.mark.parametrize(
    ("why", "seconds", "pages", "waiting", "left"),
    [
        ("all is well", 0.01, 100, 0, 12),
        ("they would take too long", 0.030, 100, 0, 12),
        ("somebody waits", 0.01, 100, 1, 12),
        ("nobody has that much to say", 0.01, 100, 0, 4),
        ("pages are short", 0.01, 1, 0, 6),
    ],
)
def test_several_tokens_are_made_at_once_when(why: str, seconds: float, pages: int, waiting: int, left: int) -> None:
    busy = scheduler(cost=by_token(seconds), pages=pages, slots=1)
    add(busy, 1, 10 if pages > 1 else 9, max_tokens=left)
    run(busy)
    if pages == 1:
        run(busy)  # 11 of 16 tokens stored
        busy.cache.groups[0].take(busy.cache.groups[0].free)
    for i in range(waiting):
        add(busy, 2 + i, 10)
    step = busy.next_batch()

    assert step is not None
    assert step.key == StepKey(1, 1, 4 if why == "all is well" else 1)


@pytest.mark.parametrize(
    ("sampling", "kind", "steps"),
    [
        ({}, Draws.PLAIN, 4),
        ({"top_p": 0.5}, Draws.PLAIN, 4),  # greedy
        ({"temperature": 0.7, "top_p": 0.5}, Draws.CUT, 4),
        ({"temperature": 0.7, "presence_penalty": 0.5}, Draws.FULL, 1),
        ({"logprobs": 0}, Draws.FULL, 1),
    ],
)
def test_a_step_is_of_the_kind_that_its_rows_need(sampling: dict[str, Any], kind: Draws, steps: int) -> None:
    """Whatever a row wants that draws nothing yet."""
    busy = scheduler(cost=by_token(0.01), by_draws=True)
    busy.add(from_submit(submit(1, [7] * 70, **sampling), arrival=1, max_context=512))
    first, second, third = run(busy), run(busy), following(busy)

    assert (first.tokens, first.key.draws) == (64, Draws.PLAIN)
    assert second.key.draws >= kind
    assert (third.key.draws, third.key.steps) == (kind, steps)


def test_a_ban_needs_a_full_program_for_as_long_as_it_holds() -> None:
    busy = scheduler(cost=by_token(0.01), by_draws=True)
    banned = replace(submit(1, [7, 8], stop=(3,)), min_tokens=2)
    busy.add(from_submit(banned, arrival=1, max_context=512))

    keys = [run(busy).key for _ in range(3)]

    assert [(key.draws, key.steps) for key in keys] == [(Draws.FULL, 1), (Draws.FULL, 1), (Draws.PLAIN, 4)]


def test_several_tokens_are_not_made_at_once_before_it_is_known_how_long_they_take() -> None:
    busy = scheduler()
    add(busy, 1, 10)
    run(busy)

    assert following(busy).key == StepKey(1, 1)


@pytest.mark.parametrize(("seconds", "tokens"), [(0.0, 16), (0.01, 16), (0.02, 32), (0.04, 64)])
def test_beside_running_streams_a_prompt_gets_as_many_tokens_as_they_can_bear(seconds: float, tokens: int) -> None:
    """Streams go along; the step takes at most GAP times what it would without a prompt, but always brings it on."""
    busy = scheduler(cost=by_token(seconds))
    add(busy, 1, 8, max_tokens=100)
    run(busy)
    add(busy, 2, 400)
    steps = [run(busy) for _ in range(3)]

    assert [shape(step) for step in steps] == [
        [(1, 8 + i, 1, 1), (2, (tokens - 1) * i, tokens - 1, 0)] for i in range(3)
    ]
    cost, plain = by_token(seconds), by_token(seconds)(2)
    assert cost(2 * tokens) > GAP * plain or tokens == 64
    assert cost(tokens) <= GAP * plain or tokens == 16


def test_beside_many_streams_a_prompt_gets_eight_tokens_at_least() -> None:
    """However slow that makes them."""
    busy = scheduler(slots=16, cost=by_token(0.0))
    for i in range(8):
        add(busy, i, 1, max_tokens=100)
    while not all(request.decoding for request in busy._admitted):
        run(busy)
    add(busy, 9, 400)

    assert shape(run(busy))[8:] == [(9, 0, 8, 0)]


def test_who_runs_and_who_waits_is_counted() -> None:
    """And nothing that has not happened."""
    busy = scheduler(slots=2)
    assert (busy.running, busy.waiting, busy.idle) == (0, 0, True)
    for i in range(3):
        add(busy, i, 8, max_tokens=1)
    assert (busy.running, busy.waiting, busy.idle) == (0, 3, False)

    run(busy)
    assert busy.running + busy.waiting < 3
    while not busy.idle:
        run(busy)
    assert (busy.running, busy.waiting) == (0, 0)
    assert (busy.preemptions, busy.guessed_tokens, busy.right_guesses) == (0, 0, 0)


def test_short_prompts_share_a_step_with_the_streams() -> None:
    busy = scheduler(cost=by_token(0.03))
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    for i in (2, 3, 4):
        add(busy, i, 8)

    assert shape(run(busy)) == [(1, 10, 1, 1), (2, 0, 8, 1), (3, 0, 8, 1), (4, 0, 8, 1)]


def test_a_prompt_that_does_not_fit_into_the_rest_of_a_step_begins_in_it() -> None:
    busy = scheduler(cost=by_token(0.01, 0.0001), chunk=16)
    add(busy, 1, 10)
    add(busy, 2, 20)
    steps = [run(busy) for _ in range(2)]

    assert shape(steps[0]) == [(1, 0, 10, 1), (2, 0, 6, 0)]
    assert shape(steps[1]) == [(1, 10, 1, 1), (2, 6, 14, 1)]


def test_without_running_streams_steps_are_the_largest() -> None:
    busy = scheduler(cost=by_token(0.004))
    add(busy, 1, 200)

    assert [run(busy).key.tokens for _ in range(4)] == [64, 64, 64, 8]


def test_where_a_step_costs_by_the_token_the_first_prompt_waits_for_no_other() -> None:
    """It is computed by itself: with the others it would take as many times as long."""
    busy = scheduler(cost=by_token(0.0))
    for i in range(1, 5):
        add(busy, i, 32)

    assert shape(run(busy)) == [(1, 0, 32, 1)]


def test_prompts_that_come_together_are_cut_for_the_pace_of_all_their_streams() -> None:
    """Two streams run at 12 ms, four would at 24: pauses may be as long as those allow."""
    sizes = []
    for coming in (1, 3):
        busy = scheduler(cost=lambda tokens: {4: 0.024, 16: 0.04, 32: 0.06}.get(tokens, 0.007 * tokens))
        add(busy, 1, 1, max_tokens=100)
        run(busy)
        for i in range(coming):
            add(busy, 2 + i, 200)
        sizes.append(run(busy).key.tokens)

    assert sizes == [16, 32]


def test_one_size_of_a_step_is_filled_with_prompts() -> None:
    """Of 8 rows: a prompt of 10 in two steps, beside the rest of which another begins, and then both decode."""
    busy = scheduler()
    busy.menu = Menu()
    busy.menu.add(one_size(8).keys())
    add(busy, 1, 10, max_tokens=5)
    add(busy, 2, 9, max_tokens=5)
    steps = [run(busy) for _ in range(4)]

    assert {step.key for step in steps} == {StepKey(8, 8)}
    assert [shape(step) for step in steps] == [
        [(1, 0, 8, 0)],
        [(1, 8, 2, 1), (2, 0, 6, 0)],
        [(1, 10, 1, 1), (2, 6, 3, 1)],
        [(1, 11, 1, 1), (2, 9, 1, 1)],
    ]


def test_guesses_are_computed_ahead_and_what_was_wrong_again() -> None:
    """Prompts of this file are ones all through. Of three guesses two are right: with the correction three tokens."""
    busy = scheduler(guesses=3)
    request = add(busy, 1, 10, max_tokens=20)
    run_with(busy, [[1]])
    step = following(busy)

    assert step.key == StepKey(4, 4)
    assert step.open_ended
    assert (step.rows[0].start, step.rows[0].count, step.rows[0].guesses) == (10, 4, [1, 1, 1])
    (output,) = busy.absorb(step, Drawn([[1, 1, 5, -1]], None))
    assert output.tokens == [1, 1, 5]
    assert (request.length, request.computed, request.ahead) == (14, 13, 0)
    assert (busy.guessed_tokens, busy.right_guesses) == (3, 2)


def test_beside_a_prompt_nothing_is_guessed() -> None:
    """A guess would take the room of one of the prompt's tokens, which is sure to be wanted."""
    busy = scheduler(guesses=3, cost=by_token(0.03))
    add(busy, 1, 10, max_tokens=20)
    run_with(busy, [[1]])
    add(busy, 2, 9)

    assert shape(run_with(busy, [[1], [7]])) == [(1, 10, 1, 1), (2, 0, 9, 1)]
    assert following(busy).rows[0].guesses == [1, 1, 1]


def test_beside_a_prompt_a_model_is_asked_for_no_guesses() -> None:
    """They would not be tried, and whoever asks waits for what they are."""
    busy = scheduler(guesses=3, drafts=2, cost=by_token(0.03))
    add(busy, 1, 10, max_tokens=20)
    run_with(busy, [[5]])
    add(busy, 2, 9)

    assert [row.drafts for row in run_with(busy, [[6], [7]]).rows] == [0, 0]
    assert following(busy).rows[0].drafts == 2


@pytest.mark.parametrize(("streams", "guessed"), [(GUESSING_ROWS, True), (GUESSING_ROWS + 1, False)])
def test_for_many_streams_nothing_is_guessed(streams: int, *, guessed: bool) -> None:
    """Programs with guesses are made for so many rows."""
    busy = scheduler(guesses=1, slots=streams)
    for number in range(streams):
        add(busy, number, 4, max_tokens=20)
    run_with(busy, [[1]] * streams)

    assert following(busy).open_ended == guessed


def test_no_more_is_guessed_than_the_limit_allows() -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 10, max_tokens=4)
    run_with(busy, [[1]])
    step = following(busy)
    outputs = busy.absorb(step, Drawn([[1, 1, 1, -1]], None))

    assert step.rows[0].guesses == [1, 1]
    assert outputs[0].finish == "length"
    assert busy.idle


def test_a_stop_among_right_guesses_ends_it_there() -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 10, max_tokens=20, stop=(9,))
    run_with(busy, [[1]])
    (output,) = busy.absorb(following(busy), Drawn([[1, 9, 1, 1]], None))

    assert (output.tokens, output.finish) == ([1, 9], "stop")
    assert busy.idle


def test_what_is_on_its_way_is_guessed_too() -> None:
    """The token of the prompt is not known yet: the guesses begin behind it."""
    busy = scheduler(guesses=3)
    request = add(busy, 1, 8, max_tokens=20)
    request.tokens[:] = [4, 5, 6, 7, 8, 4, 5, 6]
    following(busy)
    step = following(busy)

    assert step.open_ended
    assert step.rows[0].guesses == [8, 4, 5]


@pytest.mark.parametrize(
    ("why", "changes"), [("penalties", {"presence_penalty": 1.0}), ("log-probabilities", {"logprobs": 0})]
)
def test_nothing_is_guessed_for_requests_with(why: str, changes: dict) -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 10, max_tokens=20, **changes)
    run_with(busy, [[1]])

    assert not following(busy).open_ended


def test_one_that_nothing_is_guessed_for_goes_along_with_its_next_token() -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 8, max_tokens=20)
    add(busy, 2, 8, max_tokens=20, logprobs=0)
    run_with(busy, [[1], [1]])
    step = following(busy)

    assert step.key == StepKey(8, 8)
    assert [(row.count, len(row.guesses)) for row in step.rows] == [(4, 3), (1, 0)]


@pytest.mark.parametrize(("each", "worth"), [(0.0, True), (0.0025, True), (0.02, False)])
def test_guesses_are_verified_where_that_is_the_faster_way(each: float, worth: bool) -> None:
    """Three guesses of which 70 % are right each after the other bring 1.5 tokens: worth 2.5 decode steps."""
    busy = scheduler(guesses=3, cost=by_token(0.004, each))
    add(busy, 1, 8, max_tokens=20)
    run_with(busy, [[1]])

    assert following(busy).open_ended == worth


def test_guesses_push_nobody_out() -> None:
    busy = scheduler(guesses=20, pages=1)
    add(busy, 1, 9, max_tokens=6)
    run_with(busy, [[1]])

    assert following(busy).open_ended
    busy = scheduler(guesses=20, pages=2)
    add(busy, 1, 9, max_tokens=20)
    run_with(busy, [[1]])
    busy.cache.groups[0].take(1)
    step = busy.next_batch()

    assert step is not None
    assert step.key == StepKey(1, 1)


def simulated(cost: Cost, prompts: list[int], *, slots: int, chunk: int) -> tuple[list[float], list[float]]:
    """Seconds to the first token of prompts that come together, and between the tokens of all, on a device of this cost."""
    menu, pace = Menu(), Pace()
    menu.add(declare(max_slots=slots, chunk_tokens=chunk, decode_steps=4).keys())
    busy = Scheduler(Cache([Pages(4000)], 16), max_slots=slots, menu=menu, pace=pace)
    for number, length in enumerate(prompts):
        add(busy, number, length, max_tokens=32)
    now, came = 0.0, {number: [] for number in range(len(prompts))}
    while not busy.idle:
        step = following(busy)
        seconds = cost(step.key.tokens) * step.key.steps
        now += seconds
        pace.saw(step.key, seconds, at=step.depth, prompts=step.prompt_tokens > 0)
        for output in busy.absorb(step, drawn(step)):
            came[output.request].append(now)
    gaps = [after - before for times in came.values() for before, after in pairwise(times)]
    return [times[0] for times in came.values()], gaps


def test_many_short_prompts_on_a_device_with_a_floor_share_its_steps() -> None:
    """A GPU's step takes 6 ms for one token, and not much more for hundreds: 64 prompts of 100 tokens."""
    firsts, gaps = simulated(lambda tokens: max(0.006, 0.00001 * tokens), [100] * 64, slots=128, chunk=1024)

    assert max(firsts) <= 0.2
    assert max(gaps) <= 4 * 0.006 * 1.01, "of the steps of four tokens at the end"


def test_many_short_prompts_on_a_device_without_one_come_in_their_order() -> None:
    """Where a token costs the same in any step, all take as long as all tokens, and the first waits for itself alone."""
    cost = by_token(0.002, 0.001)
    firsts, _ = simulated(cost, [100] * 16, slots=32, chunk=512)

    assert firsts == sorted(firsts)
    assert firsts[0] <= 2 * cost(128)
    assert max(firsts) <= 2.2 * cost(1600)


def test_a_long_prompt_beside_streams_is_hardly_slower_than_alone_and_hardly_felt() -> None:
    """2,850 tokens beside four streams, where weights cost a step 3 ms, a token 1 ms and each before it some more."""
    menu, pace = Menu(), Pace(padded=False)
    buckets = declare(max_slots=32, chunk_tokens=512, exact=True)
    menu.add(buckets.sizes(buckets.keys()))
    busy = Scheduler(Cache([Pages(1000)], 16), max_slots=32, menu=menu, pace=pace)

    def seconds(step: Step) -> float:
        return 0.003 + sum(row.count * (0.001 + 2e-7 * (row.start + row.count / 2)) for row in step.rows)

    def first_token(request: int) -> tuple[float, list[float]]:
        """Of a long prompt sent now; and how long each step took meanwhile."""
        made = from_submit(submit(request, [1] * 2850, max_tokens=1), arrival=request, max_context=4000)
        busy.add(made)
        took: list[float] = []
        while not made.tokens[2850:]:
            took.append(seconds(step := following(busy)))
            pace.saw(step.key, took[-1], at=step.depth, prompts=step.prompt_tokens > 0)
            busy.absorb(step, drawn(step))
        return sum(took), took

    alone, _ = first_token(1)
    for request in range(2, 6):
        add(busy, request, 64, max_tokens=400)
    plain = []
    for _ in range(30):
        plain.append(seconds(step := following(busy)))
        pace.saw(step.key, plain[-1], at=step.depth, prompts=step.prompt_tokens > 0)
        busy.absorb(step, drawn(step))
    beside, gaps = first_token(9)

    assert max(gaps) <= 3 * sorted(plain)[len(plain) // 2]
    assert beside <= 1.8 * alone, beside / alone


@pytest.mark.parametrize(("gap", "tokens"), [(0.0, 16), (0.014, 16), (0.04, 24)])
def test_a_prompt_gets_its_share_of_a_step_where_streams_are_used_to_longer_gaps(gap: float, tokens: int) -> None:
    """At most five tokens to each of theirs, and no more than makes a pause of 2.6 of those gaps."""
    pace, menu = taught({4: 0.01, 16: 0.025, 24: 0.0375, 28: 0.044, 32: 0.05}.__getitem__, [4, 16, 24, 28, 32]), Menu()
    menu.add(StepKey(size, size) for size in (4, 16, 24, 28, 32))
    if gap:
        pace.saw(StepKey(4, 4), gap, prompts=False)

    assert room(Streams(4, at=0, coming=4), Prompts(100, 100, at=0), menu, pace) == tokens - 4


@pytest.mark.parametrize("lost", ["page", "slot", "page given back twice"])
def test_an_idle_scheduler_notices_what_is_lost_by_counting(lost: str) -> None:
    """Without a look at any single page: the next request waits for this."""

    class Unread(list[int]):
        def __iter__(self) -> "Unread":
            raise AssertionError("every page was looked at")

    idle = scheduler()
    idle.cache.groups[0]._owners = Unread(idle.cache.groups[0]._owners)
    idle.cache.groups[0]._blank = Unread(idle.cache.groups[0]._blank)
    idle.check_idle()
    if lost == "page":
        idle.cache.groups[0]._blank.pop()
    elif lost == "slot":
        idle._slots.pop()
    else:
        idle.cache.groups[0]._blank.append(1)

    with pytest.raises(AssertionError, match="slots free" if lost == "slot" else "pages free"):
        idle.check_idle()


def test_a_scheduler_that_serves_somebody_is_not_idle() -> None:
    busy = scheduler()
    add(busy, 1, 10)

    with pytest.raises(AssertionError, match="somebody is being served"):
        busy.check_idle()


def test_how_far_a_prompt_is_is_known_until_it_is_whole() -> None:
    """By what is computed or planned; nothing is told of who decodes or waits."""
    it = scheduler(slots=1)
    add(it, 7, 150)
    add(it, 8, 10)

    assert it.prompts == []
    following(it)
    assert it.prompts == [(7, 64, 0)]
    following(it)
    following(it)
    assert it.prompts == []


@define(eq=False)
class Asked(Pace):
    """A pace that notes what it was asked for the seconds of: tokens, and at which position."""

    asked: list[tuple[int, float]] = field(factory=list)

    def seconds(self, tokens: int, *, at: float = 0) -> float:
        self.asked.append((tokens, at))
        return super().seconds(tokens, at=at)


@pytest.mark.parametrize(
    ("streams", "slots", "prompts", "coming"), [([10], 8, 1, 1), ([10, 30], 8, 1, 2), ([10], 3, 4, 3), ([10], 8, 3, 3)]
)
def test_prompts_are_measured_by_the_streams_that_there_will_be(
    streams: list[int], slots: int, prompts: int, coming: int
) -> None:
    """As many as run once all that have come are through, where there are slots for them; standing where those do that run."""
    busy = scheduler(slots=slots)
    busy.pace = Asked()
    for size in busy.menu.tokens:
        busy.pace.saw(StepKey(size, size), 0.01 + 0.001 * size, prompts=True)
    for id_, length in enumerate(streams):
        add(busy, id_, length, max_tokens=100)
    while sum(request.decoding for request in busy._admitted) < len(streams):
        run(busy)
    for id_ in range(prompts):
        add(busy, 10 + id_, 70)
    busy.pace.asked.clear()
    step = following(busy)
    starts = [row.start for row in step.rows[: len(streams)]]

    assert busy.pace.asked[0] == (busy.menu.fit(coming).tokens, sum(starts) / len(starts))


def test_before_a_step_of_streams_alone_was_measured_prompts_wait_for_it() -> None:
    """It tells what the streams are used to."""
    menu = Menu()
    menu.add(StepKey(size, size) for size in (4, 16))

    assert room(Streams(4, at=0, coming=4), Prompts(100, 100, at=0), menu, taught(by_token(0.01), [16])) == 0
    assert room(Streams(4, at=0, coming=4), Prompts(100, 100, at=0), menu, taught(by_token(0.01), [4, 16])) > 0


@pytest.mark.parametrize(
    ("streams", "sizes"),
    [(Streams(2, at=100, coming=2), [(2, 100), (16, 21.25)]), (Streams(0, at=0, coming=0), [(1, 10), (16, 10)])],
)
def test_a_step_is_taken_to_stand_where_its_tokens_do(streams: Streams, sizes: list[tuple[int, float]]) -> None:
    """Streams alone stand at theirs; of 16 tokens 14 are a prompt's, from position 10 on. Or a prompt is alone."""
    menu, pace = Menu(), Asked()
    menu.add(StepKey(size, size) for size in (1, 2, 16))
    for size in menu.tokens:
        pace.saw(StepKey(size, size), 0.01, prompts=True)
    room(streams, Prompts(100, 100, at=10), menu, pace)

    assert pace.asked[0] == sizes[0]
    assert sizes[1] in pace.asked
