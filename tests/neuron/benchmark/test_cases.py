"""The list of cases and their prompts: data that every run gets alike."""

from attrs import evolve

from neuron_jax.benchmark.cases import Decode, LongPrompt, Options, Prefill, cases, misfits, prompt

OPTIONS = Options(streams=(1, 4), prompt=64, generate=32, prefill=(512, 2048), long_prompt=4000, rounds=3)


def test_every_case_is_listed_once_in_order() -> None:
    assert cases(OPTIONS) == [
        Decode(1, 64, 32),
        Decode(4, 64, 32),
        Prefill(512),
        Prefill(2048),
        LongPrompt(4, 64, 4000),
    ]
    assert cases(evolve(OPTIONS, streams=(2, 2), prefill=(), long_prompt=0)) == [Decode(2, 64, 32)]


def test_a_case_has_a_name_for_people() -> None:
    assert [str(case) for case in cases(OPTIONS)] == [
        "1 stream",
        "4 streams",
        "prefill 512",
        "prefill 2,048",
        "4 streams + 4,000",
    ]


def test_what_an_engine_cannot_hold_is_told_before_anything_is_measured() -> None:
    """Both tokens of a request and requests at once; the long prompt is one more beside its streams."""
    assert misfits(cases(OPTIONS), max_context=4001, max_slots=5) == []
    assert misfits(cases(OPTIONS), max_context=2048, max_slots=4) == [
        "prefill 2,048: 2,049 tokens, the engine holds 2,048 of one request",
        "4 streams + 4,000: 4,001 tokens, the engine holds 2,048 of one request",
        "4 streams + 4,000: 5 requests at once, the engine runs 4",
    ]


def test_prompts_are_the_same_in_every_run_and_share_nothing() -> None:
    """Another attempt, stream or case begins with another token, or a prefix cache would answer."""
    case = Decode(4, 64, 32)
    first = prompt(case, 1, 0, length=64, vocab=50_000)

    assert first == prompt(case, 1, 0, length=64, vocab=50_000)
    assert len(first) == 64
    assert set(first) <= set(range(50_000))
    others = [(case, 2, 0), (case, 1, 1), (Prefill(64), 1, 0)]
    assert len({first[0], *(prompt(*other, length=64, vocab=50_000)[0] for other in others)}) == 4
