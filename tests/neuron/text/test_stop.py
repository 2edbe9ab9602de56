"""Stop strings: nothing of them leaks, wherever the chunks end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron_jax.text.stop import Matched, StopMatcher
from tests.fakes.codec import cuts, pieces_of


def run(stops: list[str], chunks: list[str]) -> tuple[str, str | None]:
    """Everything shown, and the stop string that ended it."""
    matcher, shown = StopMatcher(stops), ""
    for chunk in chunks:
        matched = matcher.feed(chunk)
        shown += matched.text
        if matched.stop is not None:
            return shown, matched.stop
    return shown + matcher.close(), None


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["END"], "one END two", ("one ", "END")),
        (["END"], "one EN two", ("one EN two", None)),
        (["END"], "one EN", ("one EN", None)),
        (["END", "one"], "one END", ("", "one")),
        (["END", "\nEND"], "one\nEND", ("one", "\nEND")),
        (["abcd", "bc"], "xabcd", ("xa", "bc")),
        (["aab"], "aaab", ("a", "aab")),
        (["aab"], "aaaab", ("aa", "aab")),
        (["abab!"], "ababab!", ("ab", "abab!")),
        (["日本"], "今日本", ("今", "日本")),
        (["\n\n"], "a\nb\n\nc", ("a\nb", "\n\n")),
        (["x", "x"], "axb", ("a", "x")),
        ([], "anything", ("anything", None)),
    ],
)
def test_every_cut_gives_the_same_text_and_match(stops: list[str], text: str, expected: tuple[str, str | None]) -> None:
    """The match that is complete first wins, the longest among equals, and text before it is whole."""
    assert all(run(stops, chunks) == expected for chunks in cuts(text))


def test_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    """Only the longest possible beginning of a stop string waits."""
    matcher = StopMatcher(["</s>"])

    assert matcher.feed("a < b, a <").text == "a < b, a "
    assert matcher.feed("= b").text == "<= b"


def test_what_was_given_out_at_the_end_begins_nothing() -> None:
    matcher = StopMatcher(["ab"])
    matcher.feed("a")

    assert matcher.close() == "a"
    assert matcher.feed("b") == Matched("b")


def test_what_followed_the_match_is_told_apart() -> None:
    """The parsers go on after a tag; the server throws the rest away."""
    assert StopMatcher(["|"]).feed("a|b") == Matched("a", "|", "b")


def test_a_long_stop_string_costs_the_same_per_character() -> None:
    """100,000 characters against sixteen repetitive strings of 5,000 each end in a match at the right place."""
    stops = ["a" * 5000 + chr(ord("b") + at) for at in range(16)]

    assert run(stops, ["a" * 20_000 + "q"]) == ("a" * 15_000, stops[15])


@pytest.mark.parametrize(
    ("stops", "early", "late", "expected"),
    [
        (["X"], "aXb", "cXd", Matched("c", "X", "d")),
        (["Xc"], "abX", "cd", Matched("", "Xc", "d")),
        (["aa"], "aa", "ab", Matched("", "aa", "b")),
        (["abab"], "abab", "ab", Matched("", "abab", "")),
        (["abc", "bcd"], "abc", "d", Matched("", "bcd", "")),
    ],
)
def test_a_match_passed_over_is_text_that_may_begin_another(
    stops: list[str], early: str, late: str, expected: Matched
) -> None:
    """Nothing of it is lost, and a match that begins there counts when it is completed later."""
    matcher = StopMatcher(stops)
    shown = matcher.feed(early, armed=False)
    last = matcher.feed(late)

    assert shown.stop is None
    assert last == expected
    assert shown.text + last.text + (last.stop or "") + last.rest == early + late


def searched(stops: list[str], text: str) -> tuple[str, str | None]:
    """By looking at every end in turn: the first one at which a stop string ends, the longest that does."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.text("abc", max_size=20), st.data())
def test_any_stops_in_any_text_cut_anywhere(stops: list[str], text: str, data: st.DataObject) -> None:
    """Two letters make stop strings that overlap each other and themselves."""
    assert run(stops, data.draw(pieces_of(text))) == searched(stops, text)


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.text("abc", max_size=20), st.data())
def test_whatever_the_cuts_nothing_is_lost_or_said_twice(stops: list[str], text: str, data: st.DataObject) -> None:
    """Shown, stop string and rest together are what was fed, up to the end of the chunk that held the match."""
    matcher, shown, fed = StopMatcher(stops), "", ""
    for chunk in data.draw(pieces_of(text)):
        fed += chunk
        matched = matcher.feed(chunk)
        shown += matched.text
        if matched.stop is not None:
            assert shown + matched.stop + matched.rest == fed
            return
    assert shown + matcher.close() == text
