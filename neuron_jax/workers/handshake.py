"""Ranks become one JAX: join, and prove that their collectives work before anything relies on them; knows jax, no sockets.

    init ──join──▶ init_ok ──sanity──▶ ready

Collectives are NCCL's on GPUs and Gloo's on CPUs; jax.distributed introduces the ranks to each other.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.extend import backend
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from neuron_jax.workers.frames import GroupMember

HEARTBEAT_SECONDS = 100
"""After which jax.distributed itself gives a rank up, and ends all processes. The daemons notice within seconds."""

RANKS = "ranks"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Where gRPC looks for a proxy, which it would ask for other ranks as well: grpc/doc/environment_variables.md."""


def join(group: GroupMember, address: str, platform: str) -> list[Any]:
    """Joins the other ranks at `address`, HOST:PORT, and returns this rank's devices. JAX must not have been used before.

    From now on this process knows no proxy: ranks are reached directly, and nothing else is fetched here.
    Where a rank does not come, or the address is taken, jax.distributed aborts the process: let nobody be missing.
    """
    if platform == "cpu":
        _gloo_at(group.host)
    for name in PROXIES:
        os.environ.pop(name, None)
    jax.distributed.initialize(
        address,
        group.world,
        group.rank,
        initialization_timeout=max(1, int(group.deadline)),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        # Only the leader binds: to the address that the others were told, and to no other.
        coordinator_bind_address=address,
    )
    return list(jax.local_devices())


def sanity(group: GroupMember) -> int:
    """The sum of what all ranks contribute, 1 each, as this rank observes it on its own devices; uint32, one all-reduce.

    The world's size, if collectives work. Where this rank's devices disagree, the value that is furthest from it.
    """
    return _reduced(group, contribution(group), "sum")


def contribution(group: GroupMember) -> int:
    """What this rank adds to the sanity sum."""
    del group
    return 1


def least(group: GroupMember, value: int) -> int:
    """The least `value` of any rank; uint32."""
    return _reduced(group, value, "min")


def _reduced(group: GroupMember, value: int, how: str) -> int:
    """`value` of all ranks, reduced over one device of each: the others hold the neutral element."""
    devices = jax.devices()
    neutral = 0 if how == "sum" else np.iinfo(np.uint32).max
    mesh = Mesh(np.array(devices, dtype=object), (RANKS,))
    split, whole = NamedSharding(mesh, PartitionSpec(RANKS)), NamedSharding(mesh, PartitionSpec())
    first = jax.local_devices()[0]
    shards = [
        jax.device_put(np.array([value if device == first else neutral], np.uint32), device)
        for device in jax.local_devices()
    ]
    every = jax.make_array_from_single_device_arrays((len(devices),), split, shards)
    reduce = jax.jit(lambda x: x.sum(dtype=np.uint32) if how == "sum" else x.min(), out_shardings=whole)
    seen = [int(np.asarray(shard.data)) for shard in reduce(every).addressable_shards]
    return max(seen, key=lambda one: abs(one - group.world))


def _gloo_at(host: str) -> None:
    """Let Gloo tell the others to find this rank at `host`. By itself it tells them whatever this machine calls itself,
    which is often 127.0.1.1.
    """
    from jax._src import distributed, xla_bridge
    from jaxlib import _jax

    def make() -> Any:
        collectives = _jax.make_gloo_tcp_collectives(distributed.global_state.client, hostname=host)
        return xla_bridge.make_cpu_client(collectives)

    backend.register_backend_factory("cpu", make, priority=0, fail_quietly=False)
