"""One process of a model: frames on one side, the engine on the other. The only module that joins JAX to a socket.

Started by the daemon with one end of a socket pair as `--fd N`: `python -m neuron_jax.workers.engine_process` serves a
model by itself or leads the ranks of its group, `neuron worker` is one of the others. The main thread owns every JAX call;
other threads read commands, and tell that the process lives. When the daemon or the leader goes away the process ends,
whatever it does.
"""

import argparse
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from functools import partial
from typing import Any, NoReturn

import numpy as np
from attrs import define, field

from neuron_jax.common.log_output import log_to_stderr
from neuron_jax.errors import LoadError
from neuron_jax.workers import embed, watchdog
from neuron_jax.workers.follow import LeaderLinks, follow
from neuron_jax.workers.frames import (
    Cancel,
    Command,
    CommandReader,
    DropWeights,
    Embed,
    EngineFailed,
    EngineSpec,
    Event,
    Joined,
    Listening,
    LoadEngine,
    LoadReport,
    PromptsRead,
    ReadWeights,
    Ready,
    Sane,
    Shutdown,
    StepOutputs,
    Submit,
    SwapWeights,
    Vocabulary,
    WeightsSwapped,
    encode,
)
from neuron_jax.workers.heart import Heart
from neuron_jax.workers.new_weights import NewWeights
from neuron_jax.workers.rendezvous import Leader, Member, Rendezvous
from neuron_jax.workers.start import StartedEngine, configure, failure, forget_tracing, require, start

log = logging.getLogger("neuron.engine")

PR_SET_PDEATHSIG = 1

SWITCH_SECONDS = 0.0005
"""How long a thread may keep the interpreter to itself. By default it is 5 ms, which a step would wait for whenever it comes
back from the device while another thread traces a program."""
LOOK_SECONDS = 0.5
PROMPTS_SECONDS = 0.5
"""The least time between two words of how far prompts are."""
"""How often an idle engine looks for programs that were compiled in the background."""
POLL_SECONDS = 0.02
"""How often a leader looks whether the other ranks have compiled what is essential, too."""
GRACE_SECONDS = 0.5
"""How long a rank's own daemon has to say first, and with its last words, that it is gone."""


@define(eq=False)
class DaemonLink:
    """The socket to the daemon, for several threads."""

    link: socket.socket
    inbox: "queue.SimpleQueue[Command]" = field(factory=queue.SimpleQueue)
    _lock: threading.Lock = field(factory=threading.Lock)

    def tell(self, event: Event) -> None:
        frame = encode(event)
        with self._lock:
            self.link.sendall(frame)

    def read(self) -> None:
        """Commands into the inbox, until the daemon closes its end: then nobody is left to work for."""
        try:
            self._read_all()
        except ConnectionError:
            log.info("the daemon went away with words of ours unread")
        except Exception:
            log.exception("what the daemon sent could not be understood")
            _end(1)
        _end(0)

    def _read_all(self) -> None:
        reader = CommandReader()
        while chunk := self.link.recv(1 << 20):
            for command in reader.feed(chunk):
                self.inbox.put(command)


def main(arguments: list[str] | None = None) -> None:
    """Serve the model that the first frame names, until told to stop or left alone."""
    parser = argparse.ArgumentParser(prog="neuron-engine")
    parser.add_argument("--fd", type=int, required=True, help="the connected socket to the daemon")
    run(parser.parse_args(arguments).fd)


def run(fd: int) -> None:
    """The whole life of an engine or rank process whose daemon is at the other end of the socket `fd`."""
    log_to_stderr("%(levelname)s %(name)s: %(message)s")
    _die_with_parent()
    sys.setswitchinterval(SWITCH_SECONDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to handle
    daemon = DaemonLink(socket.socket(fileno=fd))
    heart = Heart(daemon.tell)
    threading.Thread(target=daemon.read, name="commands", daemon=True).start()
    first = daemon.inbox.get()
    assert isinstance(first, LoadEngine), first
    spec = first.spec
    try:
        require(spec.platform)
        if spec.path and embed.reads_whole_texts(spec):
            embed.serve(embed.start(spec, daemon.tell), spec, heart, daemon.inbox, daemon.tell)
            _end(0)
        ranks = _join_ranks(spec, daemon)
        if not spec.path:
            _smoke(spec, ranks, daemon, heart)
        started = _start(spec, daemon, heart, ranks)
        if isinstance(ranks, Member):
            daemon.tell(_ready(started))
            follow(ranks, started.runner, started.made.buckets.keys(), heart)
        engine = _lead(started, spec, heart, ranks)
        daemon.tell(_ready(started))
        _serve(engine, daemon, NewWeights(spec, started, daemon.tell, heart))
    except Exception as error:
        log.exception("%s cannot be served", spec.model_id)
        daemon.tell(failure(error))
        _end(1)
    _end(0)


def _end(code: int) -> NoReturn:
    """End at once: a compilation in a background thread cannot be interrupted, and nobody is left to wait for it."""
    logging.shutdown()
    os._exit(code)


def _join_ranks(spec: EngineSpec, daemon: DaemonLink) -> Rendezvous | None:
    """The other ranks, all of them here; None where there are none to be."""
    if spec.group is None:
        return None
    if spec.group.rank:
        return Member.attend(spec.group)
    leader = Leader.listen(spec.group)
    daemon.tell(Listening(leader.address))
    leader.gather()
    return leader


def _start(spec: EngineSpec, daemon: DaemonLink, heart: Heart, ranks: Rendezvous | None) -> StartedEngine:
    """The model, loaded; of a group by every rank alike."""

    def join() -> None:
        if ranks is not None:
            _shake_hands(spec, ranks, daemon, heart)

    def agree(digest: str) -> None:
        if ranks is not None:
            ranks.agree(digest)
            ranks.watch(partial(_lost, spec, daemon))

    started = start(spec, daemon.tell, join, agree)
    rows = "; ".join(f"{row.what} {row.bytes / 2**20:,.0f} MiB" for row in started.made.plan.rows)
    spent = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in started.seconds.items())
    log.info("%s: %s; ready in %.1f s: %s", spec.model_id, rows, sum(started.seconds.values()), spent)
    return started


def _smoke(spec: EngineSpec, ranks: Rendezvous | None, daemon: DaemonLink, heart: Heart) -> NoReturn:
    """Without a model there is only the handshake to be tried."""
    assert ranks is not None, "a process by itself has nobody to shake hands with"
    configure(spec)
    _shake_hands(spec, ranks, daemon, heart)
    ranks.agree("")
    # Who leaves while others still reduce takes them along.
    ranks.watch(lambda _: _end(0))
    while True:
        if daemon.inbox.get() == Shutdown():
            _end(0)


def _shake_hands(spec: EngineSpec, ranks: Rendezvous, daemon: DaemonLink, heart: Heart) -> None:
    """Become one JAX with the other ranks, and see that collectives work. Raises LoadError sanity_mismatch."""
    from neuron_jax.workers.handshake import join, sanity

    group = ranks.group
    address = ranks.meet()
    with heart.work("joining the other ranks", 2 * group.deadline):
        devices = join(group, address, spec.platform)
    daemon.tell(Joined(group.rank, tuple(str(device) for device in devices)))
    with heart.work("the sanity all-reduce", group.deadline):
        value = sanity(group)
    daemon.tell(Sane(group.rank, value))
    if value != group.world:
        raise LoadError(
            "sanity_mismatch",
            f"rank {group.rank} observed a sum of {value} where {group.world} ranks contribute 1 each: their collectives "
            "do not work",
        )


def _lost(spec: EngineSpec, daemon: DaemonLink, rank: int) -> None:
    """Another rank is gone. Its own daemon knows its last words, and ends the group; where it cannot, we do."""
    if rank == 0:
        _end(0)
    time.sleep(GRACE_SECONDS)
    assert spec.group is not None
    daemon.tell(EngineFailed("rank_exited", f"rank {rank} of {spec.group.world} has left"))
    _end(1)


def _lead(started: StartedEngine, spec: EngineSpec, heart: Heart, ranks: Rendezvous | None) -> Any:
    """The engine, once every rank can run its essential programs."""
    if isinstance(ranks, Leader):
        started.runner.lead(LeaderLinks(ranks, started.made.buckets.keys()))
        essential = set(started.made.buckets.essential())
        while not essential <= started.runner.usable:
            started.runner.collect()
            time.sleep(POLL_SECONDS)

    engine = started.lead()
    engine.watch = lambda what, usual: heart.work(what, watchdog.allowed(spec, usual))
    return engine


def _serve(engine: Any, daemon: DaemonLink, weights: NewWeights) -> None:
    """The loop: take what came in, make a step, send what came out. Sleeps only when there is nothing to do."""
    settled, prompts = False, _Prompts(daemon)
    while True:
        if engine.idle:
            engine.check_idle()
            daemon.tell(LoadReport(engine.load))
            if not (settled or engine.compiling):
                forget_tracing()
                settled = True
            command = _wait(engine, daemon.inbox)
            if command is None:
                continue
            if not _apply(engine, daemon, weights, command):
                return
        while not daemon.inbox.empty():
            if not _apply(engine, daemon, weights, daemon.inbox.get()):
                return
        outputs = engine.step()
        if outputs:
            daemon.tell(StepOutputs(outputs, engine.load))
        prompts.tell(engine)


class _Prompts:
    """Tells the daemon now and then how far prompts are: some take minutes, and somebody waits."""

    def __init__(self, daemon: DaemonLink) -> None:
        self._daemon = daemon
        self._next = 0.0

    def tell(self, engine: Any) -> None:
        """After a step."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROMPTS_SECONDS
        if prompts := engine.scheduler.prompts:
            self._daemon.tell(PromptsRead(prompts))


def _wait(engine: Any, inbox: "queue.SimpleQueue[Command]") -> Command | None:
    """The next command; None after a look at the programs that are still being compiled."""
    if not engine.compiling:
        return inbox.get()
    try:
        return inbox.get(timeout=LOOK_SECONDS)
    except queue.Empty:
        engine.collect()
        return None


def _apply(engine: Any, daemon: DaemonLink, weights: NewWeights, command: Command) -> bool:
    """Carry out one command; False when it was the last."""
    match command:
        case Submit():
            engine.submit(command)
        case Vocabulary():
            engine.matchers.learn(command)
        case Cancel(request):
            engine.cancel(request)
        case ReadWeights() | SwapWeights() | DropWeights():
            _change(engine, daemon, weights, command)
        case Shutdown():
            return False
        case LoadEngine():
            raise AssertionError("an engine process loads one model, once")
        case Embed():
            raise AssertionError("a model that generates makes no vectors")
    return True


def _change(
    engine: Any, daemon: DaemonLink, weights: NewWeights, command: ReadWeights | SwapWeights | DropWeights
) -> None:
    """Other weights: a part of their way into the place of those that serve."""
    match command:
        case ReadWeights():
            weights.read(command)
        case SwapWeights():
            outputs = weights.swap(engine)
            if outputs:
                daemon.tell(StepOutputs(outputs, engine.load))
            daemon.tell(WeightsSwapped())
        case DropWeights():
            weights.drop()


def _ready(started: StartedEngine) -> Ready:
    made, attention = started.made, started.runner.program.attention
    return Ready(
        max_context=made.plan.max_context,
        max_slots=made.shapes.max_slots,
        page_size=made.shapes.page_size,
        pages=made.plan.pages,
        quant=made.quant,
        quant_reason=made.quant_reason,
        kv_dtype=made.kv.name,
        kv_reason=made.kv_reason,
        attention=attention.name,
        attention_reason=attention.reason,
        compute_dtype=np.dtype(made.dtype).name,
        devices=tuple(str(device) for device in started.devices),
        plan=made.plan.rows,
        load_seconds=sum(started.seconds.values()),
        deterministic=made.deterministic,
        deterministic_reason=made.deterministic_reason,
        threads=int(os.environ["PJRT_NPROC"]),
    )


def _die_with_parent() -> None:
    """Ask Linux to kill this process with the daemon, should that be killed without a chance to close its socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
