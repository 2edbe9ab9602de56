"""Groups of real processes, joined by Gloo on loopback: the same tokens as one process, one end for all, honest words."""

import asyncio
import os
import pathlib
import signal
import sys
from typing import Any

import pytest

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient, start_here
from neuron_jax.workers.frames import EngineSpec, GroupMember, Sampling, Submit
from tests.fakes.groups import INHERITED, alive, tokens, with_group
from tests.fakes.tiny_llama import write_checkpoint
from tests.fakes.waiting import until

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=0.8, seed=7, top_p=0.9, presence_penalty=0.5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), num_attention_heads=4, num_key_value_heads=2)


def spec(path: pathlib.Path, **changes: Any) -> EngineSpec:
    """As few programs as can serve: every rank compiles them for itself, on the same two cores."""
    told = {"max_slots": 2, "chunk_tokens": 8, "decode_steps": 1} | changes
    return EngineSpec("tiny", str(path), quant="none", **told)


def one_at_a_time(path: pathlib.Path, **changes: Any) -> EngineSpec:
    """Two ranks that serve one request, for tests that only end them."""
    return grouped(path, 2, max_slots=1, **changes)


def grouped(path: pathlib.Path, world: int, **changes: Any) -> EngineSpec:
    group = GroupMember(rank=0, world=world, secret="s", deadline=30.0)
    return spec(path, tensor_parallel=world, group=group, **changes)


async def conversation(client: EngineClient) -> list[list[int]]:
    """Some requests at once, some after another, with and without penalties."""
    prompts = [list(range(1, 60)), [5, 6, 7], list(range(100, 140))]
    first = await asyncio.gather(*(tokens(client, prompt, GREEDY) for prompt in prompts))
    return [*first, await tokens(client, prompts[0], WARM), await tokens(client, prompts[1], WARM)]


@pytest.fixture(scope="module")
def alone(checkpoint: pathlib.Path) -> list[list[int]]:
    """What one process with one device says."""
    told: list[list[int]] = asyncio.run(with_group(spec(checkpoint), conversation))
    return told


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_say_what_one_process_says(
    world: int, checkpoint: pathlib.Path, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kv heads: with four ranks each head is on two of them. They meet past a proxy, which is for the world outside:
    asked for another rank it answers nobody."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def use(client: EngineClient) -> list[list[int]]:
        assert [rank.phase for rank in client.ranks] == ["ready"] * world
        assert [rank.sane.result().value for rank in client.ranks] == [world] * world
        return await conversation(client)

    assert asyncio.run(with_group(grouped(checkpoint, world), use)) == alone


@pytest.mark.slow
def test_a_rank_may_have_several_devices(checkpoint: pathlib.Path, alone: list[list[int]]) -> None:
    group = GroupMember(rank=0, world=2, secret="s")
    told = spec(checkpoint, devices=(0, 1), tensor_parallel=3, group=group)

    assert asyncio.run(with_group(told, conversation)) == alone


@pytest.mark.slow
def test_the_death_of_a_rank_is_the_groups(checkpoint: pathlib.Path) -> None:
    """Noticed within a second, told with its name, and nobody else is left."""

    async def use(client: EngineClient) -> None:
        with client.submit(Submit(0, [1, 2, 3], GREEDY, 400)) as outputs:
            await anext(outputs)
            os.kill(client.ranks[1].pid, signal.SIGKILL)
            began = asyncio.get_running_loop().time()
            with pytest.raises(EngineDied, match=r"rank 1 of 2 of tiny was killed by SIGKILL") as died:
                async for _ in outputs:
                    pass
        assert died.value.kind == "rank_exited"
        assert asyncio.get_running_loop().time() - began < 5

    asyncio.run(with_group(one_at_a_time(checkpoint), use))


@pytest.mark.slow
def test_the_death_of_the_leader_is_the_groups(checkpoint: pathlib.Path) -> None:
    async def use(client: EngineClient) -> None:
        os.kill(client.pid, signal.SIGKILL)
        died = await client.died
        assert "rank 0 of 2 of tiny was killed by SIGKILL" in str(died)
        await until(lambda: not alive(client.ranks[1].pid))

    asyncio.run(with_group(one_at_a_time(checkpoint), use))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_found_by_its_silence(rank: int, checkpoint: pathlib.Path) -> None:
    async def use(client: EngineClient) -> None:
        await tokens(client, [1, 2, 3], GREEDY)
        os.kill(client.ranks[rank].pid, signal.SIGSTOP)
        died = await asyncio.wait_for(client.died, 20)
        assert died.kind == "rank_silent"
        assert f"rank {rank} of 2 of tiny said nothing for " in str(died)

    asyncio.run(with_group(one_at_a_time(checkpoint, silent_seconds=2.0), use))


def test_a_rank_that_lies_is_found_out_before_anything_is_loaded(checkpoint: pathlib.Path) -> None:
    """The double adds 2 to the sum as rank 1, and is the real thing otherwise."""
    liar = (sys.executable, "-m", "tests.fakes.lying_rank")

    with pytest.raises(
        LoadError, match=r"3 where 2 ranks contribute 1 each|rank 0 observed 3, rank 1 observed 3"
    ) as failed:
        asyncio.run(with_group(one_at_a_time(checkpoint), conversation, liar))

    assert failed.value.kind == "sanity_mismatch"


@pytest.mark.slow
def test_a_program_that_one_rank_cannot_compile_is_used_by_none(checkpoint: pathlib.Path) -> None:
    """The group serves on without it, and its load says so."""
    weak = (sys.executable, "-m", "tests.fakes.weak_rank")

    async def use(client: EngineClient) -> list[int]:
        await until(lambda: client.load.dropped, 60)
        assert client.load.dropped == ("step 1x2",)
        assert client.load.programs == client.load.programs_planned > 0
        return await tokens(client, [1, 2, 3], GREEDY)

    assert len(asyncio.run(with_group(one_at_a_time(checkpoint, decode_steps=2), use, weak))) == 24


def test_who_does_not_come_is_named(checkpoint: pathlib.Path) -> None:
    """The other rank does not know the secret, which is as good as not coming."""
    told = EngineSpec(
        "tiny", str(checkpoint), tensor_parallel=2, group=GroupMember(rank=0, world=2, secret="s", deadline=3.0)
    )

    async def stranger(spec: EngineSpec) -> Any:
        assert spec.group is not None
        group = GroupMember(1, 2, coordinator=spec.group.coordinator, secret="another", deadline=3.0)
        return await start_here((0,), INHERITED)(EngineSpec("tiny", str(checkpoint), tensor_parallel=2, group=group))

    async def run() -> None:
        await EngineClient.start(told, inherited=INHERITED, others=[stranger])

    with pytest.raises(LoadError) as failed:
        asyncio.run(run())

    assert failed.value.kind == "rendezvous_timeout"


def test_ranks_that_would_serve_different_things_are_refused(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = write_checkpoint(tmp_path, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)

    async def elsewhere(spec: EngineSpec) -> Any:
        return await start_here((0,), INHERITED)(EngineSpec("tiny", str(other), tensor_parallel=2, group=spec.group))

    async def run() -> None:
        await EngineClient.start(one_at_a_time(checkpoint), inherited=INHERITED, others=[elsewhere])

    with pytest.raises(LoadError, match="rank 1 would serve something else") as failed:
        asyncio.run(run())

    assert failed.value.kind == "rank_mismatch"
