"""Two hosts on one machine: network namespaces with a cable between them that can be cut, each reached from outside by
another one; needs root, and says so where that is missing.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import httpx
from attrs import define, field

from tests.fakes.waiting import until_sync

PEERS = ("10.77.31.1", "10.77.31.2")
"""On the cable between the two."""
OUTSIDE = (("10.78.31.1", "10.78.31.2"), ("10.78.32.1", "10.78.32.2"))
"""Ours and theirs on the cable to each."""


def why_not() -> str | None:
    """Why there can be no network namespaces here; None when there can."""
    if shutil.which("ip") is None:
        return "iproute2 is not installed"
    tried = subprocess.run(["ip", "netns", "add", _name("try")], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"network namespaces: {tried.stderr.strip()}"
    _ip("netns", "del", _name("try"))
    return None


@define(eq=False)
class Host:
    """One of the two. `address` is how the other reaches it, `url` how we reach the neuron on it."""

    name: str
    address: str
    url: str
    log: pathlib.Path
    neuron: "subprocess.Popen[bytes] | None" = None

    def serve(self, config: pathlib.Path, environ: dict[str, str]) -> None:
        """Starts a neuron, and returns when it answers."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "neuron_jax", "serve", "-c", str(config)]
        with self.log.open("ab") as log:
            self.neuron = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environ)
        until_sync(self.answers, 60)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Starts `neuron` with these words here."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "neuron_jax", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            assert self.neuron is None or self.neuron.poll() is None, self.log.read_text()
            return False

    def end(self, number: signal.Signals) -> int:
        """Ends the neuron with a signal; its exit code."""
        assert self.neuron is not None
        self.neuron.send_signal(number)
        code = self.neuron.wait(60)
        self.neuron = None
        return code

    def processes(self) -> list[int]:
        """Everything that runs here."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]


@define(eq=False)
class Hosts:
    one: Host
    other: Host
    _closing: ExitStack = field(factory=ExitStack)

    def cut(self) -> None:
        """Pulls the cable between the two."""
        _ip("-n", self.one.name, "link", "set", "peer", "down")

    def mend(self) -> None:
        _ip("-n", self.one.name, "link", "set", "peer", "up")


@contextmanager
def two_hosts(folder: pathlib.Path) -> Iterator[Hosts]:
    """Both hosts, without a neuron; nothing of them is left after."""
    names = (_name("a"), _name("b"))
    with ExitStack() as undo:
        for name in names:
            _ip("netns", "add", name)
            undo.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "peer", "netns", names[0], "type", "veth", "peer", "name", "peer", "netns", names[1])
        hosts = []
        for place, (name, address) in enumerate(zip(names, PEERS, strict=True)):
            ours, theirs = OUTSIDE[place]
            outside = f"v{place}-{os.getpid() % 10**6}"
            _ip("link", "add", outside, "type", "veth", "peer", "name", "out", "netns", name)
            undo.callback(_ip, "link", "del", outside, check=False)
            _ip("addr", "add", f"{ours}/30", "dev", outside)
            _ip("link", "set", outside, "up")
            for device, its in (("peer", f"{address}/24"), ("out", f"{theirs}/30")):
                _ip("-n", name, "addr", "add", its, "dev", device)
                _ip("-n", name, "link", "set", device, "up")
            hosts.append(Host(name, address, f"http://{theirs}:13131", folder / f"{name}.log"))
        undo.callback(_end_all, hosts)
        yield Hosts(*hosts)


def _end_all(hosts: Sequence[Host]) -> None:
    for host in hosts:
        for pid in host.processes():
            os.kill(pid, signal.SIGKILL)
        if host.neuron is not None:
            host.neuron.wait(10)


def _name(what: str) -> str:
    return f"cortex-{os.getpid()}-{what}"


def _ip(*words: str, check: bool = True) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, f"ip {' '.join(words)}: {done.stderr}"
