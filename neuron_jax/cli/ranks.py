"""Commands of ranks: whether processes can compute together, and one rank by itself; must not know HTTP or JAX."""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from neuron_jax.cli.common import Degree, Environ, Json, check_host, fail, print_json
from neuron_jax.common.addresses import parse_address
from neuron_jax.tables import print_smoke
from neuron_jax.terminal import console
from neuron_jax.workers.frames import GroupMember


def _address(_: object, value: str) -> None:
    parse_address(value)


def tp_smoke(
    *,
    world: Degree,
    platform: Literal["cpu", "cuda"] | None = None,
    deadline: Annotated[float, Parameter(validator=Number(gt=0))] = 60.0,
    as_json: Json = False,
    environ: Environ,
) -> int:
    """Prove that processes on this host can compute together: they meet, join, and add up one number each.

    Parameters
    ----------
    world:
        How many ranks to start, one process and device each.
    platform:
        What they run on; by default what this host has.
    deadline:
        Seconds for all of them to meet.
    """
    from neuron_jax.workers.smoke import groups

    ranks = groups(world, deadline, secrets.token_hex(16))
    return _smoke(ranks, platform or _platform(environ), as_json, environ)


def worker(
    *,
    rank: Annotated[int, Parameter(validator=Number(gte=0))],
    world: Degree,
    coordinator: Annotated[str, Parameter(validator=_address)],
    host: Annotated[str, Parameter(validator=check_host)] = "127.0.0.1",
    secret: str = "",
    platform: Literal["cpu", "cuda"] | None = None,
    deadline: Annotated[float, Parameter(validator=Number(gt=0))] = 60.0,
    as_json: Json = False,
    fd: int | None = None,
    environ: Environ,
) -> int:
    """Run one rank of several: by hand of a test over hosts, started by a neuron of a model.

    Parameters
    ----------
    rank:
        Which of the ranks this is. Rank 0 leads, and the others connect to it.
    world:
        How many there are.
    coordinator:
        HOST:PORT where rank 0 listens.
    host:
        This host as the other ranks reach it.
    secret:
        The same word for all ranks. Better set NEURON_RANKS__SECRET: everybody can read arguments.
    platform:
        What it runs on; by default what this host has.
    deadline:
        Seconds for all of them to meet.
    fd:
        For neurons only: the socket to the one that started it.
    """
    if fd is not None:
        from neuron_jax.workers.engine_process import run as serve_rank

        serve_rank(fd)
    if rank >= world:
        return fail(f"--rank is {rank}, and of {world} ranks the last is {world - 1}", 2)
    known = secret or environ.get("NEURON_RANKS__SECRET", "")
    group = GroupMember(rank, world, host, coordinator, known, deadline)
    return _smoke([group], platform or _platform(environ), as_json, environ)


def _smoke(
    ranks: Sequence[GroupMember], platform: Literal["cpu", "cuda"], as_json: bool, environ: Mapping[str, str]
) -> int:
    from neuron_jax.workers.smoke import smoke

    report = asyncio.run(smoke(ranks, platform, environ)).json()
    print_json(report) if as_json else print_smoke(report, console())
    return 0 if report["ok"] else 1


def _platform(environ: Mapping[str, str]) -> Literal["cpu", "cuda"]:
    from neuron_jax.hardware.discover import discover as look

    devices = look(visible=environ.get("CUDA_VISIBLE_DEVICES")).devices
    return "cuda" if any(device.kind == "cuda" for device in devices) else "cpu"
