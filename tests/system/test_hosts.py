"""One model over two hosts: real neurons in network namespaces, Gloo between them, and what can happen to any of it.

The tests go on where the one before left off. The model is a tiny one, so that a start is a matter of seconds; the tokens
are compared with those of one process.
"""

import json
import pathlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from attrs import define

from tests.fakes.hosts import PEERS, Host, Hosts, two_hosts, why_not
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until_sync

MODEL = "org/tiny"
SECRET = "of both"
SHOWN = {"Authorization": f"Bearer {SECRET}"}
REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

CONFIG = """
[server]
host = "0.0.0.0"
drain_secs = 5
[engine]
max_slots = 2
chunk_tokens = 8
decode_steps = 1
max_context = 512
[watchdog]
silent_secs = 3.0
[ranks]
address = "{address}"
deadline_secs = 30.0
[[models]]
model_id = "{model}"
source = "{folder}"
{peers}
"""
PEER = """
[[peers]]
name = "{name}"
endpoint = "http://{address}:13131"
"""


@define(eq=False)
class Rig:
    """Both hosts with their neurons; the first leads."""

    hosts: Hosts
    folder: pathlib.Path
    model: pathlib.Path
    text: str = ""

    def serve(self, host: Host) -> None:
        lends = host is self.hosts.other
        peers = "" if lends else PEER.format(name="other", address=self.hosts.other.address)
        config = self.folder / f"{host.name}.toml"
        config.write_text(CONFIG.format(address=host.address, folder=self.model, peers=peers, model=MODEL))
        host.serve(config, {"NEURON_SECRET": SECRET, "CORTEX_CACHE": str(self.folder / host.name)})

    def load(self, **spec: Any) -> httpx.Response:
        return httpx.post(
            f"{self.hosts.one.url}/models/load", json={"model_id": MODEL, **spec}, headers=SHOWN, timeout=120
        )

    def unload(self) -> None:
        body = {"model_id": MODEL}
        answer = httpx.post(f"{self.hosts.one.url}/models/unload", json=body, headers=SHOWN, timeout=30)
        assert answer.status_code == 200, answer.text

    def load_over_both(self) -> None:
        answer = self.load(tensor_parallel=2, hosts=["other"])
        assert answer.status_code == 200, answer.text

    def chat(self) -> str:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "once"}], "max_tokens": 60, "temperature": 0}
        answer = httpx.post(
            f"{self.hosts.one.url}/v1/chat/completions", json=body | {"ignore_eos": True}, headers=SHOWN, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])

    def info(self) -> dict[str, Any]:
        listed = httpx.get(f"{self.hosts.one.url}/models", headers=SHOWN, timeout=10).json()
        return next(model for model in listed if model["id"] == MODEL)

    def healed(self) -> bool:
        return bool(self.info()["status"] == "loaded")

    def ranks_on(self, host: Host) -> int:
        """Processes there besides the neuron and those that render its templates, which go with it."""
        if host.neuron is None:
            return len(host.processes())
        return sum(not renders_templates(pid) for pid in host.processes()) - 1

    def stream_until_it_ends(self, tokens: int = 450) -> "Ending":
        """A long answer that is being written; `Ending` tells how it ends."""
        ending = Ending(tokens)
        threading.Thread(target=ending.read, args=(self.hosts.one.url,), daemon=True).start()
        assert ending.begun.wait(30)
        return ending


def renders_templates(pid: int) -> bool:
    try:
        return b"neuron_jax.workers.render_process" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return True


class Ending:
    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.events: list[dict[str, Any]] = []

    def read(self, url: str) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "a long story"}],
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "stream": True,
        }
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, headers=SHOWN, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line.removeprefix("data: ")))
                    if len(self.events) > 3:
                        self.begun.set()
        self.ended.set()

    def error(self) -> str:
        """The words of the error event that it ended with."""
        assert self.ended.wait(25), "the stream hangs"
        assert "error" in self.events[-1], self.events[-1]
        return str(self.events[-1]["error"]["message"])


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("hosts")
    model = write_checkpoint(write_tiny_model(folder / "tiny"), vocab_size=261)
    with two_hosts(folder) as hosts:
        rig = Rig(hosts, folder, model)
        rig.serve(hosts.one)
        rig.serve(hosts.other)
        yield rig


def test_the_network_alone_can_be_tried(rig: Rig) -> None:
    """`neuron worker` on both hosts, by hand."""
    words = [
        "worker",
        "--world",
        "2",
        "--coordinator",
        f"{PEERS[0]}:5000",
        "--secret",
        "s",
        "--platform",
        "cpu",
        "--json",
    ]
    hosts = (rig.hosts.one, rig.hosts.other)
    running = [host.start(*words, "--rank", str(rank), "--host", host.address) for rank, host in enumerate(hosts)]
    told = [json.loads(process.communicate(timeout=60)[0]) for process in running]

    assert [process.returncode for process in running] == [0, 0]
    assert [report["ranks"][0]["value"] for report in told] == [2, 2]


@pytest.mark.slow
def test_two_hosts_say_what_one_says(rig: Rig) -> None:
    """The leader alone lists the model; both tell who is in the group."""
    assert rig.load().status_code == 200
    rig.text = rig.chat()
    rig.unload()
    rig.load_over_both()

    assert rig.chat() == rig.text
    led, lent = (
        httpx.get(f"{host.url}/discovery", headers=SHOWN, timeout=10).json()["groups"]
        for host in (rig.hosts.one, rig.hosts.other)
    )
    assert [(group["role"], [rank["rank"] for rank in group["ranks"]]) for group in (*led, *lent)] == [
        ("leader", [0, 1]),
        ("member", [1]),
    ]
    assert [rank["host"] for rank in led[0]["ranks"]] == [rig.hosts.one.address, rig.hosts.other.address]
    assert lent[0]["leader"] == rig.hosts.one.address
    there = httpx.get(f"{rig.hosts.other.url}/models", headers=SHOWN, timeout=10).json()
    assert {model["status"] for model in there} == {"unloaded"}


@pytest.mark.slow
def test_a_cut_cable_ends_the_group_on_both_sides_and_heals(rig: Rig) -> None:
    """Bounded, told honestly, no rank left behind; back by itself when the cable is."""
    story = rig.stream_until_it_ends()
    rig.hosts.cut()

    assert "rank 1 of 2" in story.error() or "out of reach" in story.error()
    until_sync(lambda: rig.ranks_on(rig.hosts.other) == 0, 20)
    assert rig.info()["status"] == "recovering"
    rig.hosts.mend()
    until_sync(rig.healed, 90)
    assert rig.chat() == rig.text
    assert rig.info()["restarts"] >= 1


@pytest.mark.slow
def test_a_host_that_goes_ends_the_group_and_a_host_that_comes_back_heals_it(rig: Rig) -> None:
    story = rig.stream_until_it_ends()
    rig.hosts.other.end(signal.SIGKILL)

    assert "rank 1 of 2" in story.error() or "out of reach" in story.error()
    until_sync(lambda: rig.ranks_on(rig.hosts.other) == 0, 10)
    rig.serve(rig.hosts.other)
    until_sync(rig.healed, 90)
    assert rig.chat() == rig.text


@pytest.mark.slow
def test_a_lender_that_is_told_to_end_says_so(rig: Rig) -> None:
    story = rig.stream_until_it_ends()

    assert rig.hosts.other.end(signal.SIGTERM) == 0
    assert "shuts down" in story.error()
    assert rig.ranks_on(rig.hosts.other) == 0
    rig.serve(rig.hosts.other)
    until_sync(rig.healed, 90)


@pytest.mark.slow
def test_without_its_leader_nothing_is_left(rig: Rig) -> None:
    rig.hosts.one.end(signal.SIGKILL)

    until_sync(lambda: rig.ranks_on(rig.hosts.one) == 0 and rig.ranks_on(rig.hosts.other) == 0, 15)
    until_sync(
        lambda: httpx.get(f"{rig.hosts.other.url}/discovery", headers=SHOWN, timeout=10).json()["groups"] == [], 10
    )
    rig.serve(rig.hosts.one)
    rig.load_over_both()
    assert rig.chat() == rig.text


@pytest.mark.slow
def test_what_cannot_be_borrowed_is_told(rig: Rig) -> None:
    """After an unload both hosts are as before; three devices are more than both have."""
    rig.unload()
    until_sync(lambda: rig.ranks_on(rig.hosts.one) == rig.ranks_on(rig.hosts.other) == 0, 10)
    refused = rig.load(tensor_parallel=3, hosts=["other"])

    assert refused.status_code == 422
    assert refused.json()["error"]["kind"] == "rendezvous_timeout"
    assert "other lends 1" in refused.json()["error"]["message"]
    assert rig.load(tensor_parallel=2, hosts=["nobody"]).json()["error"]["kind"] == "bad_devices"


@pytest.mark.slow
def test_a_leader_that_is_told_to_end_finishes_what_it_has_begun(rig: Rig) -> None:
    """As systemd ends a service: the answer is whole, the exit code 0, and nothing is left on either host."""
    rig.load_over_both()
    story = rig.stream_until_it_ends(tokens=100)

    assert rig.hosts.one.end(signal.SIGTERM) == 0
    assert story.ended.wait(5)
    assert story.events[-1]["choices"][0]["finish_reason"] == "length"
    until_sync(lambda: rig.ranks_on(rig.hosts.one) == rig.ranks_on(rig.hosts.other) == 0, 10)
