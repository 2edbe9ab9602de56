"""A real rank that contributes 2 to the sanity all-reduce unless it is the leader."""

from neuron_jax.workers import handshake
from neuron_jax.workers.engine_process import main
from neuron_jax.workers.frames import GroupMember


def lie(group: GroupMember) -> int:
    return 2 if group.rank else 1


if __name__ == "__main__":
    handshake.contribution = lie
    main()
