"""Trials in a process of their own: what they find, what is remembered, and what becomes of a process that ends badly."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attrs import asdict, evolve

from models.matrices import Shape
from models.sharding import make_mesh
from models.spec import PagedLayer
from neuron_jax.engine import trials
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, case_of, told
from neuron_jax.engine.trials import Trial, Verdict, tried

LAYER = PagedLayer(kv_heads=4, group=2, k_width=16, v_width=16, window=20, soft_cap=2.0, sinks=True)
CARD: Any = SimpleNamespace(platform="gpu", device_kind="a card", compute_capability="8.6", local_hardware_id=1)
ONE, OTHER, THIRD = (Trial("products", {"shape": number}, {"pages": 3}) for number in (1, 2, 3))
WRONG = Verdict("differs by 0.5 of the largest value")


def case(devices: int = 1) -> Case:
    return Case(make_mesh(jax.devices("cpu")[:devices]), jnp.bfloat16, KVFormat("int8"), 40, 16, (LAYER,))


class Says:
    """A stand-in for the process, which does what a program does with `asked` in it; counts how often it was begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
        self._monkeypatch = monkeypatch
        self._log = log

    def __call__(self, program: str) -> None:
        begin = f"import json, os, sys, time; asked = json.load(sys.stdin); print(asked, file=open({str(self._log)!r}, 'a'))"
        command = (sys.executable, "-c", f"{begin}\n{program}")
        self._monkeypatch.setattr(trials, "COMMAND", command)

    @property
    def asked(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Says:
    return Says(monkeypatch, tmp_path / "asked")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "compiled"))
    yield tmp_path / "compiled" / "trials"
    jax.config.update("jax_compilation_cache_dir", before)


def answering(*verdicts: Verdict, then: str = "") -> str:
    lines = ["ready", *(json.dumps(asdict(verdict)) for verdict in verdicts)]
    return f"print({chr(10).join(lines)!r}, flush=True)\n{then}"


def test_a_case_goes_over_and_is_tried_for_the_heads_of_one_device() -> None:
    there = case_of(json.loads(json.dumps(told(case(devices=2)) | {"pages": 40})), jax.devices("cpu")[0])

    assert there == evolve(case(), layers=(evolve(LAYER, kv_heads=2),), dtype=there.dtype)
    assert there.dtype == jnp.bfloat16


def test_the_process_tries_what_it_is_asked() -> None:
    """A CPU has no kernel of a GPU's: JAX says so over there, of each of the three."""
    pytest.importorskip("neuron_jax.engine.attention.store", reason="this JAX has no Triton", exc_type=ImportError)
    plain = told(evolve(case(), kv=KVFormat("bfloat16")))
    asked = [
        Trial("attention", {"rung": "pallas", **told(case())}, {"pages": 40}),
        Trial("storing", plain, {"pages": 40}),
        Trial("products", {"dtype": "bfloat16", "shape": asdict(Shape("int8", 64, 256))}),
    ]

    for verdict in tried(asked, jax.devices("cpu")[0]):
        assert "Only interpret mode is supported on CPU backend" in str(verdict.why)
        assert (verdict.final, verdict.rows) == (False, 0)


def test_attention_on_a_gpu_is_tried_apart(says: Says) -> None:
    says(answering(WRONG))
    card: Any = SimpleNamespace(size=1, devices=np.array([CARD], object))

    assert choose(evolve(case(), mesh=card)).reason == "pallas: differs by 0.5 of the largest value"
    (asked,) = says.asked
    assert "'platform': 'cuda', 'device': 1" in asked
    assert "'pages': 40" in asked


def test_a_kernel_that_ends_the_process_costs_itself_alone(says: Says, folder: Path) -> None:
    """Those behind it are tried in the next process, and it is not held against it the next time."""
    dies = "print('CUDA_ERROR_ILLEGAL_ADDRESS', file=sys.stderr, flush=True); os.abort()"
    first, second = (indent(one, " ") for one in (answering(Verdict(rows=64), then=dies), answering(WRONG)))
    says(f"if len(asked['trials']) == 3:\n{first}\nelse:\n{second}")

    found = tried([ONE, OTHER, THIRD], CARD)

    assert found[0] == Verdict(rows=64)
    assert found[1].why == "the process that tried it ended with -6: CUDA_ERROR_ILLEGAL_ADDRESS"
    assert found[2] == WRONG
    assert len(says.asked) == 2
    assert len(list(folder.iterdir())) == 2
    assert tried([ONE, THIRD], CARD) == [found[0], found[2]]
    assert len(says.asked) == 2


def test_a_process_that_does_not_get_as_far_as_a_kernel_is_begun_once(says: Says) -> None:
    says("sys.exit('no CUDA device')")

    found = tried([ONE, OTHER], CARD)

    assert [verdict.why for verdict in found] == ["the process that tried it ended with 1: no CUDA device"] * 2
    assert len(says.asked) == 1


@pytest.mark.parametrize(
    "program",
    [
        answering(then="import signal; signal.alarm(asked['seconds']); time.sleep(60)"),
        "time.sleep(60)",
    ],
)
def test_a_trial_that_hangs_is_a_reason(program: str, says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "SECONDS", 1)
    says(program)

    assert tried([ONE], CARD) == [Verdict("its trial took more than 1 s", final=False)]


def test_what_is_tried_together_starts_one_process(says: Says, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Verdicts that are not to be remembered hold for what asked, and what is wanted since another failed is tried apart."""
    rounds: list[list[Verdict]] = []

    def choose() -> list[Verdict]:
        found = [*tried([ONE], CARD), *tried([OTHER], CARD)]
        if found[1].why is not None:
            found += tried([THIRD], CARD)
        rounds.append(found)
        trials.say("chosen by %d verdicts", len(found))
        return found

    def remembered() -> list[Verdict]:
        trials.say("chosen by what is known")
        return tried([ONE, THIRD], CARD)

    caplog.set_level("INFO", "neuron.engine")

    tomorrow = Verdict("RESOURCE_EXHAUSTED", final=False)
    one, two = (indent(part, " ") for part in (answering(Verdict(rows=64), tomorrow), answering(Verdict(rows=16))))
    says(f"if len(asked['trials']) == 2:\n{one}\nelse:\n{two}")

    assert trials.together(choose, CARD) == [Verdict(rows=64), tomorrow, Verdict(rows=16)]
    assert rounds[0] == [Verdict(), Verdict()]
    assert len(says.asked) == 2
    assert trials.together(remembered, CARD) == [Verdict(rows=64), Verdict(rows=16)]
    assert len(says.asked) == 2
    assert caplog.messages == ["chosen by 3 verdicts", "chosen by what is known"]


@pytest.mark.parametrize("verdict", [Verdict(), WRONG, Verdict(rows=16)])
def test_a_verdict_is_remembered(verdict: Verdict, says: Says, folder: Path) -> None:
    """For the same question, driver, card, JAX and code, whatever else the process has to know."""
    says(answering(verdict))
    assert tried([ONE], CARD) == [verdict]
    says("sys.exit(3)")

    assert tried([evolve(ONE, aside={"pages": 80})], CARD) == [verdict]
    assert len(list(folder.iterdir())) == 1
    assert "ended with 3" in str(tried([OTHER], CARD)[0].why)
    newer = SimpleNamespace(**{**vars(CARD), "device_kind": "another card"})
    assert "ended with 3" in str(tried([ONE], newer)[0].why)


def test_other_code_is_tried_again(says: Says, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(answering(WRONG))
    tried([ONE], CARD)
    says(answering(Verdict()))
    monkeypatch.setattr(trials, "_sources", lambda: "mended")

    assert tried([ONE], CARD) == [Verdict()]


def test_what_may_be_otherwise_tomorrow_is_not_remembered(says: Says, folder: Path) -> None:
    says(answering(Verdict("RESOURCE_EXHAUSTED", final=False)))

    assert tried([ONE], CARD)[0].why == "RESOURCE_EXHAUSTED"
    assert not folder.exists()


def test_a_verdict_that_cannot_be_kept_is_good_all_the_same(says: Says, folder: Path) -> None:
    folder.parent.write_text("a file in the folder's place")
    says(answering(Verdict(rows=16)))

    assert tried([ONE], CARD) == [Verdict(rows=16)]
