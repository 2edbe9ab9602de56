"""The scheduler without a device: what it hands out, in which order, and how it books what comes back late."""

import pytest

from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.buckets import DecodeKey, ExtendKey, Menu, TogetherKey, VerifyKey, declare
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.requests import Request, from_submit
from neuron_jax.engine.scheduler import SHORT, STALL, Scheduler
from tests.fakes.engines import submit

CHUNK_SECONDS = {8: 0.010, 16: 0.015, 32: 0.025, 64: 0.045}


def scheduler(
    *, pages: int = 100, slots: int = 4, decode: float = 0.0, guesses: int = 0, verify: float = 0.0
) -> Scheduler:
    """With `decode` seconds for a decode step, `verify` for one that verifies guesses, and CHUNK_SECONDS for prompts."""
    menu, pace = Menu(), Pace()
    menu.add(declare(max_slots=slots, chunk_tokens=64, decode_steps=4, guesses=guesses).keys())
    if verify:
        pace.saw(VerifyKey(1, guesses), verify)
    if decode:
        for chunk, seconds in CHUNK_SECONDS.items():
            pace.saw(ExtendKey(chunk), seconds)
        for rows in (1, 2, 4):
            pace.saw(DecodeKey(rows, 1), decode)
    return Scheduler(Pages(pages), page_size=16, max_slots=slots, menu=menu, pace=pace, guessing=guesses > 0)


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
    return Drawn([[token] * row.count for row in step.rows], None)


def run(of: Scheduler) -> Step:
    """The next step, computed at once."""
    step = following(of)
    of.absorb(step, drawn(step))
    return step


def test_a_prompt_is_computed_and_then_decoded_before_its_token_is_known() -> None:
    busy = scheduler()
    request = add(busy, 1, 10, max_tokens=5)
    first, second = following(busy), following(busy)

    assert (first.key, first.rows[0].count, first.rows[0].draws) == (ExtendKey(16), 10, 1)
    assert (second.key, second.rows[0].start) == (DecodeKey(1, 1), 10)
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

    assert young.slot is None
    assert (young.ahead, young.computed) == (0, 0)
    assert [output.request for output in busy.absorb(late[-1], drawn(late[-1]))] == [1]
    assert len(young.tokens) == known
    while old.tokens[30:] != [7] * 30:
        run(busy)
    again = following(busy)
    assert again.rows[0].request is young
    assert again.rows[0].count == known


def test_a_stop_within_several_tokens_trims_them() -> None:
    busy = scheduler(decode=0.004)
    add(busy, 1, 10, stop=(9,))
    run(busy)
    step = following(busy)
    (output,) = busy.absorb(step, Drawn([[7, 9, 8, 8]], None))

    assert step.key == DecodeKey(1, 4)
    assert (output.tokens, output.finish) == ([7, 9], "stop")


def test_rows_near_their_limit_draw_no_more_than_that() -> None:
    busy = scheduler(decode=0.004)
    add(busy, 1, 10, max_tokens=3)
    add(busy, 2, 8, max_tokens=12)
    kinds = [run(busy).key for _ in range(2)]
    step = following(busy)
    outputs = busy.absorb(step, drawn(step))

    assert kinds == [ExtendKey(16), ExtendKey(8)]
    assert step.key == DecodeKey(2, 4)
    assert [(row.count, row.draws) for row in step.rows] == [(2, 2), (4, 4)]
    assert [(len(output.tokens), output.finish) for output in outputs] == [(2, "length"), (4, None)]


@pytest.mark.parametrize(
    ("why", "decode", "pages", "waiting", "left"),
    [
        ("all is well", 0.004, 100, 0, 12),
        ("nothing is known of how long they take", 0.0, 100, 0, 12),
        ("they would take too long", 0.030, 100, 0, 12),
        ("somebody waits", 0.004, 100, 1, 12),
        ("nobody has that much to say", 0.004, 100, 0, 4),
        ("pages are short", 0.004, 1, 0, 6),
    ],
)
def test_several_tokens_are_made_at_once_when(why: str, decode: float, pages: int, waiting: int, left: int) -> None:
    busy = scheduler(decode=decode, pages=pages, slots=1)
    add(busy, 1, 10 if pages > 1 else 9, max_tokens=left)
    run(busy)
    if pages == 1:
        run(busy)  # 11 of 16 tokens stored
        busy.pages.take(busy.pages.free)
    for i in range(waiting):
        add(busy, 2 + i, 10)
    step = busy.next_batch()

    assert step is not None
    assert step.key == DecodeKey(1, 4 if why == "all is well" else 1)


@pytest.mark.parametrize(("decode", "chunk"), [(0.004, 8), (0.0085, 16), (0.015, 32), (0.03, 64)])
def test_beside_running_streams_a_chunk_is_as_long_as_they_can_bear(decode: float, chunk: int) -> None:
    """At most STALL times a decode step, but always something."""
    busy = scheduler(decode=decode)
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    add(busy, 2, 400)
    kinds = [run(busy).key for _ in range(4)]

    assert kinds == [ExtendKey(chunk), DecodeKey(1, 1)] * 2
    assert chunk == 8 or CHUNK_SECONDS[chunk] <= STALL * decode


def test_short_prompts_share_the_pause_between_two_decode_steps() -> None:
    busy = scheduler(decode=0.015)
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    for i in (2, 3, 4):
        add(busy, i, 8)

    kinds = [run(busy).key for _ in range(5)]

    assert kinds == [ExtendKey(8), ExtendKey(8), DecodeKey(4, 1), ExtendKey(8), DecodeKey(4, 4)]


def test_without_running_streams_chunks_are_the_longest() -> None:
    busy = scheduler(decode=0.004)
    add(busy, 1, 200)

    assert [run(busy).key for _ in range(4)] == [*[ExtendKey(64)] * 3, ExtendKey(8)]


def test_before_anything_is_measured_streams_are_spared() -> None:
    busy = scheduler()
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    add(busy, 2, SHORT + 20)

    assert [run(busy).key for _ in range(4)] == [ExtendKey(8), DecodeKey(1, 1)] * 2


def test_a_short_prompt_is_not_cut_for_the_sake_of_running_streams() -> None:
    busy = scheduler(decode=0.0001)
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    for i in (2, 3):
        add(busy, i, SHORT)

    kinds = [run(busy).key for _ in range(4)]

    assert kinds == [ExtendKey(64), DecodeKey(2, 1), ExtendKey(64), DecodeKey(4, 4)]


def test_the_rest_of_a_long_prompt_is_cut_like_the_rest_of_it() -> None:
    busy = scheduler(decode=0.004)
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    add(busy, 2, SHORT + 8)

    assert [run(busy).key for _ in range(4)] == [ExtendKey(8), DecodeKey(1, 1)] * 2


def test_prompts_that_come_together_are_cut_for_the_pace_of_all_their_streams() -> None:
    """One stream runs at 4 ms, four would run at 15: pauses may be as long as those allow."""
    busy = scheduler(decode=0.004)
    for _ in range(5):
        busy.pace.saw(DecodeKey(4, 1), 0.015)
    add(busy, 1, 10, max_tokens=100)
    run(busy)
    for i in (2, 3, 4, 5):
        add(busy, i, SHORT + 8)

    assert run(busy).key == ExtendKey(32)


def test_guesses_are_computed_ahead_and_what_was_wrong_again() -> None:
    """Prompts of this file are ones all through. Of three guesses two are right: with the correction three tokens."""
    busy = scheduler(guesses=3)
    request = add(busy, 1, 10, max_tokens=20)
    run_with(busy, [[1]])
    step = following(busy)

    assert step.key == VerifyKey(1, 3)
    assert step.open_ended
    assert (step.rows[0].start, step.rows[0].count, step.rows[0].guesses) == (10, 4, [1, 1, 1])
    (output,) = busy.absorb(step, Drawn([[1, 1, 5, -1]], None))
    assert output.tokens == [1, 1, 5]
    assert (request.length, request.computed, request.ahead) == (14, 13, 0)
    assert (busy.guessed_tokens, busy.right_guesses) == (3, 2)


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

    assert step.key == VerifyKey(1, 3)
    assert step.rows[0].guesses == [8, 4, 5]


@pytest.mark.parametrize(
    ("why", "changes"), [("penalties", {"presence_penalty": 1.0}), ("log-probabilities", {"logprobs": 0})]
)
def test_nothing_is_guessed_for_requests_with(why: str, changes: dict) -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 10, max_tokens=20, **changes)
    run_with(busy, [[1]])

    assert following(busy).key == DecodeKey(1, 1)


def test_one_that_nothing_is_guessed_for_goes_along_with_its_next_token() -> None:
    busy = scheduler(guesses=3)
    add(busy, 1, 8, max_tokens=20)
    add(busy, 2, 8, max_tokens=20, logprobs=0)
    run_with(busy, [[1]])
    while run_with(busy, [[1], [1]]).key != ExtendKey(8):
        pass
    step = following(busy)

    assert step.key == VerifyKey(2, 3)
    assert [(row.count, len(row.guesses)) for row in step.rows] == [(4, 3), (1, 0)]


@pytest.mark.parametrize(("verify", "worth"), [(0.004, True), (0.007, True), (0.012, False)])
def test_guesses_are_verified_where_that_is_the_faster_way(verify: float, worth: bool) -> None:
    """Three guesses of which 70 % are right each after the other bring 1.5 tokens: worth 2.5 decode steps."""
    busy = scheduler(guesses=3, decode=0.004, verify=verify)
    add(busy, 1, 10, max_tokens=20)
    run_with(busy, [[1]])

    assert following(busy).open_ended == worth


def test_guesses_push_nobody_out() -> None:
    busy = scheduler(guesses=20, pages=1)
    add(busy, 1, 9, max_tokens=6)
    run_with(busy, [[1]])

    assert following(busy).key == VerifyKey(1, 20)
    busy = scheduler(guesses=20, pages=2)
    add(busy, 1, 9, max_tokens=20)
    run_with(busy, [[1]])
    busy.pages.take(1)
    step = busy.next_batch()

    assert step is not None
    assert step.key == DecodeKey(1, 1)


def run_with(of: Scheduler, tokens: list[list[int]]) -> Step:
    """The next step, in which `tokens` are drawn."""
    step = following(of)
    of.absorb(step, Drawn(tokens, None))
    return step


def test_together_prompts_fill_the_rows_that_decoding_leaves() -> None:
    """Of 8 rows: a prompt of 10 in two steps, beside the rest of which another begins, and then both decode."""
    busy = scheduler()
    busy.together = 8
    add(busy, 1, 10, max_tokens=5)
    add(busy, 2, 9, max_tokens=5)
    steps = [run(busy) for _ in range(4)]

    assert {step.key for step in steps} == {TogetherKey(8)}
    assert [[(row.request.id, row.start, row.count, row.draws) for row in step.rows] for step in steps] == [
        [(1, 0, 8, 0)],
        [(1, 8, 2, 1), (2, 0, 6, 0)],
        [(1, 10, 1, 1), (2, 6, 3, 1)],
        [(1, 11, 1, 1), (2, 9, 1, 1)],
    ]


@pytest.mark.parametrize("lost", ["page", "slot", "page given back twice"])
def test_an_idle_scheduler_notices_what_is_lost_by_counting(lost: str) -> None:
    """Without a look at any single page: the next request waits for this."""

    class Unread(list[int]):
        def __iter__(self) -> "Unread":
            raise AssertionError("every page was looked at")

    idle = scheduler()
    idle.pages._owners = Unread(idle.pages._owners)
    idle.pages._blank = Unread(idle.pages._blank)
    idle.check_idle()
    if lost == "page":
        idle.pages._blank.pop()
    elif lost == "slot":
        idle._slots.pop()
    else:
        idle.pages._blank.append(1)

    with pytest.raises(AssertionError, match="slots free" if lost == "slot" else "pages free"):
        idle.check_idle()


def test_a_scheduler_that_serves_somebody_is_not_idle() -> None:
    busy = scheduler()
    add(busy, 1, 10)

    with pytest.raises(AssertionError, match="somebody is being served"):
        busy.check_idle()
