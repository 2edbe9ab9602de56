"""`neuron tp-smoke` and `neuron worker`: the real handshake of real processes, and how its failures read."""

import json
import os
import socket
import threading

import pytest

from neuron_jax.cli import run


def test_two_ranks_prove_that_they_can_compute(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["tp-smoke", "--world", "2", "--platform", "cpu", "--json"], os.environ)

    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["ok"]
    assert [(rank["rank"], rank["phase"], rank["value"]) for rank in report["ranks"]] == [
        (0, "ready", 2),
        (1, "ready", 2),
    ]


def test_cuda_without_cuda_is_no_silent_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without JAX's CUDA plugin; with one there are devices, or JAX says why not."""
    code = run(["tp-smoke", "--world", "2", "--platform", "cuda"], os.environ | {"CUDA_VISIBLE_DEVICES": ""})

    out = capsys.readouterr().out
    assert code == 1
    assert "cuda_feature_not_enabled" in out


def test_ranks_on_two_hosts_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command starts one rank; here both on this host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = f"127.0.0.1:{free.getsockname()[1]}"
    codes = {}

    def be(rank: int) -> None:
        words = ["worker", "--rank", str(rank), "--world", "2", "--coordinator", at, "--platform", "cpu", "--json"]
        codes[rank] = run(words, os.environ)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert codes == {0: 0, 1: 0}
    assert capsys.readouterr().out.count('"value": 2') == 2


def test_nobody_to_meet(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["worker", "--rank", "1", "--world", "2", "--coordinator", "127.0.0.1:9", "--deadline", "1"]

    assert run([*words, "--platform", "cpu"], os.environ) == 1
    assert "rendezvous_timeout" in capsys.readouterr().out


def test_a_rank_outside_of_the_world(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["worker", "--rank", "2", "--world", "2", "--coordinator", "127.0.0.1:9"], os.environ) == 2
    assert "of 2 ranks the last is 1" in capsys.readouterr().err
