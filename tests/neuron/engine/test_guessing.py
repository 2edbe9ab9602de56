"""When tokens are guessed, how many, by whom, and what is learnt of that, on a device of plain Python or on none."""

import pytest

from neuron_jax.constraints.thinking import ThinkingLimit
from neuron_jax.engine.batch import Drawn, Step
from neuron_jax.engine.buckets import GUESSING_ROWS
from neuron_jax.engine.guesses import HOPE, NEWEST
from neuron_jax.engine.pace import Pace
from neuron_jax.workers.frames import Constraint, Thoughts
from tests.fakes.engines import submit
from tests.fakes.plain_device import FORM, LETTERS, Kind, Loop, answer, form, new_loop

PROMPT = [1, 5, 2, 6, 3, 0, 4, 4, 1, 2]
A = Constraint("regex", "a" * 20 + "c")


@pytest.mark.parametrize("most", range(1, 12))
def test_a_bound_text_that_is_about_to_be_cut_keeps_its_form_beside_one_that_has_more_to_say(most: int) -> None:
    """Its last token may come in a step of several, in which nothing is masked."""
    it = new_loop(Kind(guesses=3, steps=4))
    bound = submit(1, [1, 1, 6, 3], max_tokens=most)
    it.add(bound, LETTERS.matcher(Constraint("regex", FORM)))
    it.submit(2, [5, 2], max_tokens=40)
    it.drain()

    assert it.said(1) == answer(bound.prompt, most, rule=form)
    assert it.outputs[1][-1].finish == "length"


def test_a_bound_text_that_disappoints_rests_longer_and_longer() -> None:
    """Between steps of several tokens, as long as what is drawn may not come, are 4, 8, 16 and 32 of one."""
    it = new_loop(Kind(guesses=3, steps=4))
    bound = submit(1, [1, 1, 6, 3], max_tokens=80)
    it.add(bound, LETTERS.matcher(Constraint("regex", "c+")))
    it.drain()
    sizes = "".join(str(step.key.steps) for step in it.steps)

    assert it.said(1) == [2] * 80
    assert [len(rest) for rest in sizes.split("4")][1:-1] == [4, 8, 16, 32]


@pytest.mark.parametrize("guesses", [0, 3])
def test_the_next_turn_finds_the_state_behind_an_answer(guesses: int) -> None:
    """At the last page boundary behind which a token was fed: of 25 tokens the last was not."""
    it = new_loop(Kind(guesses=guesses, recurs=True))
    prompt = [1, 5, 2, 6, 3, 0, 4, 4, 1, 2]
    said, _ = it.ask(1, prompt, max_tokens=15)

    assert it.ask(2, [*prompt, *said, 3, 1, 5], max_tokens=3)[1] == 20


@pytest.mark.parametrize(("slots", "streams", "forced"), [(4, 1, 12), (4, 2, 6), (4, 4, 3), (2, 1, 6), (6, 1, 12)])
def test_what_is_forced_is_guessed_as_far_as_there_are_rows(slots: int, streams: int, forced: int) -> None:
    """Those of three guesses for each of four streams, or of all where fewer may run, whoever needs them."""
    it = new_loop(Kind(guesses=3), slots=slots)
    for id_ in range(streams):
        it.add(submit(id_, [1], max_tokens=30), LETTERS.matcher(Constraint("regex", "a" * 20 + "c")))
    while not any(row.guesses for step in it.steps for row in step.rows):
        it.step()

    assert [len(row.guesses) for row in it.steps[-1].rows] == [forced] * streams


def planned(it: Loop) -> Step:
    step = it.scheduler.next_batch()
    assert step is not None
    return step


def told(it: Loop, step: Step, tokens: list[list[int]]) -> None:
    """What `step` draws; of the model's own guesses all are 3."""
    it.scheduler.absorb(step, Drawn(tokens, None, [[3] * row.drafts for row in step.rows]))


@pytest.mark.parametrize(
    ("prompt", "most", "drafts"),
    [(5, 20, 3), (6, 20, 2), (7, 20, 1), (8, 20, 3), (5, 6, 3), (5, 5, 2), (5, 4, 1), (5, 3, 0), (5, 2, 0)],
)
def test_a_model_is_asked_for_guesses_that_have_a_place_and_are_of_use(prompt: int, most: int, drafts: int) -> None:
    """Of three all but the first need a place in its pages of four, and the last one is no token more than its limit."""
    it = new_loop(Kind(guesses=3, drafts=3))
    it.submit(1, PROMPT[:prompt], max_tokens=most)
    told(it, planned(it), [[5]])

    assert [row.drafts for row in planned(it).rows] == [drafts]


def test_a_model_is_asked_only_by_those_for_whom_a_guess_may_be_right() -> None:
    """Not by those that are bound, or that want more than a token of each draw."""
    it = new_loop(Kind(guesses=3, drafts=2))
    it.submit(1, [1], max_tokens=20)
    it.add(submit(2, [2], max_tokens=20), LETTERS.matcher(Constraint("regex", FORM)))
    it.submit(3, [3], max_tokens=20, logprobs=0)
    told(it, planned(it), [[5], [0], [5]])

    assert {row.request.id: row.drafts for row in planned(it).rows} == {1: 2, 2: 0, 3: 0}


@pytest.mark.parametrize("streams", [GUESSING_ROWS, GUESSING_ROWS + 1])
def test_for_many_streams_a_model_is_not_asked(streams: int) -> None:
    it = new_loop(Kind(guesses=3, drafts=1), slots=streams)
    for id_ in range(streams):
        it.submit(id_, [id_], max_tokens=20)
    told(it, planned(it), [[5]] * streams)

    assert any(row.drafts for row in planned(it).rows) == (streams == GUESSING_ROWS)


@pytest.mark.parametrize(("streams", "asked"), [(1, True), (4, False)])
def test_a_model_is_asked_where_trying_its_guesses_promises_more_tokens_a_second(streams: int, asked: bool) -> None:
    """Of which 70 % are taken to be right. Two rows cost little more than one here, eight nearly twice as much as four."""
    it = new_loop(Kind(guesses=1, drafts=1))
    it.scheduler.pace = Pace()
    for key in it.scheduler.menu._sizes[1]:
        it.scheduler.pace.saw(key, {1: 0.9, 2: 1.0, 4: 1.0, 8: 1.8}.get(key.tokens, 3.0), prompts=False)
    for id_ in range(streams):
        it.submit(id_, [id_], max_tokens=20)
    while sum(request.decoding for request in it.scheduler._admitted) < streams:
        step = planned(it)
        told(it, step, [[5] * row.draws for row in step.rows])

    assert any(row.drafts for row in planned(it).rows) == asked


def test_what_was_guessed_right_is_learnt_by_the_one_who_guessed() -> None:
    """And counted. First the text before guesses, of whose three tokens two are right; then the model, of whose two one is."""
    it = new_loop(Kind(guesses=3, drafts=2))
    it.submit(1, [1, 1, 1, 1, 1], max_tokens=20)
    (request,) = it.scheduler._waiting
    told(it, planned(it), [[1]])
    told(it, step := planned(it), [[1, 1, 5, -1]])
    assert request.guesser is not None
    assert request.drafter is not None

    assert (step.rows[0].guesses, step.rows[0].drafted) == ([1, 1, 1], False)
    assert request.guesser.trust == pytest.approx(HOPE + NEWEST * (2 / 3 - HOPE))
    assert request.drafter.trust == HOPE
    known = request.guesser.trust
    told(it, step := planned(it), [[3, 5, -1]])
    assert (list(step.rows[0].guesses), step.rows[0].drafted) == ([3, 3], True)
    assert request.drafter.trust == pytest.approx(HOPE + NEWEST * (1 / 2 - HOPE))
    assert request.guesser.trust == pytest.approx(known, abs=0.01)
    scheduler = it.scheduler
    assert (scheduler.guessed_tokens, scheduler.right_guesses) == (5, 3)
    assert (scheduler.drafted_tokens, scheduler.right_drafts) == (2, 1)


def test_of_what_a_grammar_forces_nothing_is_learnt() -> None:
    it = new_loop(Kind(guesses=3))
    it.add(submit(1, [1], max_tokens=20), LETTERS.matcher(A))
    (request,) = it.scheduler._waiting
    told(it, planned(it), [[0]])
    step = planned(it)
    told(it, step, [[0] * row.draws for row in step.rows])

    assert step.rows[0].guesses
    assert request.guesser is not None
    assert request.guesser.trust == HOPE


@pytest.mark.parametrize(("prompt", "guessed"), [(12, True), (13, False)])
def test_guesses_that_just_fit_into_the_pages_are_tried(prompt: int, guessed: bool) -> None:
    """Three and the token before them fill the 16 tokens that there are pages for; for more, nobody gives way."""
    it = new_loop(Kind(guesses=3), pages=5)
    it.submit(1, [1] * prompt, max_tokens=7)
    told(it, planned(it), [[1]])
    it.scheduler.cache.groups[0].take(1)

    assert bool(planned(it).rows[0].guesses) == guessed


@pytest.mark.parametrize(("snapshots", "guessed"), [(4, True), (3, False)])
def test_guesses_are_tried_where_their_states_have_a_place(snapshots: int, guessed: bool) -> None:
    """One behind each, and one for the page that the text may fill meanwhile."""
    it = new_loop(Kind(guesses=3, recurs=True), snapshots=snapshots)
    it.submit(1, [1, 1, 1], max_tokens=7)
    told(it, planned(it), [[1]])

    assert bool(planned(it).rows[0].guesses) == guessed


@pytest.mark.parametrize(("left", "steps"), [(3, 1), (4, 4)])
def test_several_tokens_are_made_at_once_where_somebody_may_have_them_all(left: int, steps: int) -> None:
    it = new_loop(Kind(steps=4))
    it.submit(1, [1], max_tokens=1 + left)
    told(it, planned(it), [[5]])

    assert planned(it).key.steps == steps


@pytest.mark.parametrize(("budget", "guessed"), [(5, True), (4, False)])
def test_within_a_budget_of_thoughts_as_much_is_guessed_as_is_left_of_it(budget: int, guessed: bool) -> None:
    """One token has come: the next and three guesses must not use up more than the rest."""
    it = new_loop(Kind(guesses=3))
    it.add(submit(1, [1, 1, 1, 1], max_tokens=20), ThinkingLimit(Thoughts(budget, 6, (5, 6)), 1))
    told(it, planned(it), [[1]])

    assert bool(planned(it).rows[0].guesses) == guessed


@pytest.mark.parametrize(("beside", "guessed"), [({}, True), ({"logprobs": 0}, False)])
def test_nothing_is_expected_of_whom_nothing_is_guessed_for(beside: dict[str, int], guessed: bool) -> None:
    """Steps of eight take twice as long as those of two: three guesses for one of two streams are not worth that, as 1.5 of
    them are right on average."""
    it = new_loop(Kind(guesses=3))
    it.scheduler.pace = Pace()
    for key in it.scheduler.menu._sizes[1]:
        it.scheduler.pace.saw(key, {1: 1.0, 2: 1.0, 4: 1.9, 8: 2.0}.get(key.tokens, 4.0), prompts=False)
    it.submit(1, [1, 1, 1, 1], max_tokens=20)
    it.submit(2, [1, 1, 1, 1], max_tokens=20, **beside)
    while sum(request.decoding for request in it.scheduler._admitted) < 2:
        step = planned(it)
        told(it, step, [[1] * row.draws for row in step.rows])

    assert any(row.guesses for row in planned(it).rows) == guessed


def test_where_both_guess_the_same_what_stood_there_before_is_taken() -> None:
    """It goes on for longer than the model's two."""
    it = new_loop(Kind(guesses=3, drafts=2))
    it.submit(1, [3] * 5, max_tokens=20)
    told(it, planned(it), [[3]])
    told(it, planned(it), [[3] * 4])
    (row,) = planned(it).rows

    assert row.request.drafted[1] == [3, 3]
    assert (list(row.guesses), row.drafted) == ([3, 3, 3], False)


@pytest.mark.parametrize(
    ("sampling", "hopes"), [({}, True), ({"temperature": 1.0, "top_p": 0.9}, False), ({"logprobs": 0}, False)]
)
def test_several_tokens_of_a_bound_text_are_drawn_only_as_they_would_be_one_by_one(
    sampling: dict[str, float], hopes: bool
) -> None:
    """Not where what is drawn depends on what else may be."""
    it = new_loop(Kind(guesses=3, steps=4))
    bound = submit(1, [1, 1, 6, 3], max_tokens=20, **sampling)
    it.add(bound, LETTERS.matcher(Constraint("regex", FORM, after=6)))
    it.drain()

    assert any(step.key.steps > 1 for step in it.steps) == hopes


def test_a_text_near_its_limit_needs_no_pages_beyond_it() -> None:
    """Two tokens are left of it, and pages for them; the other one takes the last free page, and makes four."""
    it = new_loop(Kind(steps=4), pages=8)
    it.submit(1, [1] * 6, max_tokens=3)
    it.submit(2, [2], max_tokens=30)
    told(it, planned(it), [[5], [5]])
    it.scheduler.cache.groups[0].take(it.scheduler.cache.free - 1)
    step = planned(it)

    assert (step.key.steps, [row.count for row in step.rows]) == (4, [2, 4])
