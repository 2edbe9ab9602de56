"""The circuit of one replica with a clock in the test's hand: when it rests, for how long, and who tries it."""

from cortex_gateway.placement.circuit import FAILURES, MOST_REST_SECS, REST_SECS, Circuit
from cortex_gateway.placement.route import Candidate, least_wait
from cortex_gateway.placement.snapshot import ModelLoad


def failing(times: int = FAILURES, now: float = 100.0) -> Circuit:
    circuit = Circuit()
    for _ in range(times):
        circuit = circuit.failed(now, "500")
    return circuit


def test_failures_in_a_row_begin_a_rest() -> None:
    """Two do not, three do."""
    assert not Circuit().rests(100.0)
    assert failing(2).state(100.0) == "closed"
    assert failing(3).state(100.0) == "open"
    assert failing().rests(100.0 + REST_SECS - 0.01)
    assert failing().reason == "500"


def test_a_request_that_ends_well_in_between_makes_them_begin_anew() -> None:
    """In a row means in a row."""
    circuit = failing(FAILURES - 1).served(sent=100.5).failed(101.0, "500")

    assert (circuit.failures, circuit.state(101.0)) == (1, "closed")


def test_what_was_sent_before_the_last_failure_says_nothing() -> None:
    """Old streams may run to their end on a replica that takes no new request."""
    circuit = failing(FAILURES - 1).served(sent=99.0).failed(101.0, "503")

    assert circuit.state(101.0) == "open"
    assert failing().served(sent=100.0) == Circuit()


def test_what_fails_during_a_rest_does_not_make_it_longer() -> None:
    """Requests that were under way when it began."""
    assert failing().failed(101.0, "500").until == failing().until


def test_after_the_rest_one_request_tries_it() -> None:
    """While it does, the others still go elsewhere."""
    over = 100.0 + REST_SECS
    circuit = failing()
    assert circuit.state(over) == "half_open"
    assert not circuit.rests(over)

    tried = circuit.tried(over)

    assert tried.rests(over)
    assert tried.tried(over) == tried


def test_an_answer_that_begins_closes_it_and_one_more_failure_opens_it() -> None:
    """It need not end first, for that may take minutes; the rest after that is longer."""
    over = 100.0 + REST_SECS
    begun = failing().tried(over).begun()
    assert (begun.state(over), begun.rests(over), begun.failures) == ("closed", False, FAILURES - 1)

    again = begun.failed(over + 1, "500")

    assert (again.state(over + 1), again.rest_secs) == ("open", 2 * REST_SECS)
    assert begun.served(sent=over).rest_secs == 0


def test_a_trial_that_fails_doubles_the_rest_up_to_a_limit() -> None:
    """A replica that does not get well is tried once a minute."""
    now, circuit, rests = 100.0, failing(), []
    for _ in range(6):
        assert circuit.until is not None
        rests.append(circuit.until - now)
        now = circuit.until
        circuit = circuit.tried(now).failed(now, "500")

    assert rests == [5, 10, 20, 40, MOST_REST_SECS, MOST_REST_SECS]


def test_a_trial_without_a_verdict_leaves_the_next_one_to_try() -> None:
    """Its client went away, or had asked for nonsense."""
    over = 100.0 + REST_SECS

    assert not failing().tried(over).left().rests(over)


def test_failures_of_others_do_not_lengthen_a_rest_that_has_begun() -> None:
    """They were sent before it."""
    circuit = failing()

    assert circuit.failed(101.0, "500").until == circuit.until


def test_a_resting_replica_is_the_last_choice_and_not_a_forbidden_one() -> None:
    """However busy the others are; alone it is asked."""
    busy, resting = Candidate("a", 9, ModelLoad()), Candidate("b", 0, ModelLoad(), resting=True)

    assert least_wait([busy, resting]) == "a"
    assert least_wait([resting]) == "b"


def test_a_replica_whose_only_slot_is_taken_comes_after_a_busier_one_with_slots_left() -> None:
    """So does one of many slots; one that has not told how many it has is taken to have some left."""
    for slots in (1, 2):
        taken = Candidate("a", slots, ModelLoad(max_in_flight=slots))
        assert least_wait([taken, Candidate("b", 8, ModelLoad(max_in_flight=9))]) == "b"
        assert least_wait([taken, Candidate("b", 8, ModelLoad())]) == "b"


def test_a_measured_speed_counts_however_slow() -> None:
    """Four times the speed is worth more than one request fewer."""
    slow, fast = ModelLoad(tok_s_decode=0.25), ModelLoad(tok_s_decode=1.0)

    assert least_wait([Candidate("a", 0, slow), Candidate("b", 1, fast)]) == "b"
    assert least_wait([Candidate("a", 0, ModelLoad()), Candidate("b", 1, fast)]) == "a"
