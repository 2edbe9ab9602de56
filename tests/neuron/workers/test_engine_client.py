"""The engine client against a real process: outputs, cancels, deaths and what is left behind."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.errors import EngineDied, LoadError
from neuron_jax.workers.engine_client import EngineClient
from neuron_jax.workers.frames import EngineSpec, Output, Progress, Sampling, Submit
from neuron_jax.workers.process import engine_environment
from tests.fakes.engine_double import COMMAND, environment
from tests.fakes.tiny_model import END, write_tiny_model
from tests.fakes.waiting import until


def prompt(text: str, max_tokens: int = 1000) -> Submit:
    return Submit(0, list(text.encode()), sampling=Sampling(), max_tokens=max_tokens, stop_ids=(END,))


def with_engine(folder: Path, use: Callable[[EngineClient], Awaitable[Any]], **script: Any) -> Any:
    """The result of `use` on a client of a double started on a tiny model; checks that its process is gone after."""
    write_tiny_model(folder, **script)

    async def run() -> Any:
        spec = EngineSpec(model_id="tiny", path=str(folder))
        client = await EngineClient.start(spec, inherited=environment(), command=COMMAND)
        try:
            return await use(client)
        finally:
            await client.close()
            with pytest.raises(ProcessLookupError):
                os.kill(client.pid, 0)

    return asyncio.run(run())


async def collect(client: EngineClient, *submits: Submit) -> list[Output]:
    with client.submit(*submits) as outputs:
        return [output async for output in outputs]


def text_of(outputs: list[Output]) -> str:
    return bytes(token for output in outputs for token in output.tokens if token < 256).decode()


def test_a_submission_is_answered_until_its_finish(tmp_path: Path) -> None:
    """Outputs arrive in order and the last one says why it ended."""
    outputs = with_engine(tmp_path, lambda client: collect(client, prompt("hello")))

    assert text_of(outputs) == "hello"
    assert [output.finish for output in outputs] == [None] * 5 + ["stop"]


def test_several_prompts_share_one_iterator(tmp_path: Path) -> None:
    """Outputs of side-by-side submissions carry the index of their prompt."""

    async def use(client: EngineClient) -> dict[int, list[int]]:
        tokens: dict[int, list[int]] = {0: [], 1: []}
        with client.submit(prompt("ab"), prompt("xyz")) as outputs:
            async for output in outputs:
                tokens[outputs.index(output)] += output.tokens
        return tokens

    assert with_engine(tmp_path, use) == {0: [*b"ab", END], 1: [*b"xyz", END]}


def test_a_cancelled_submission_is_not_seen_again(tmp_path: Path) -> None:
    """What it had in the queue when it was cancelled is dropped; the others go on."""

    async def use(client: EngineClient) -> list[int]:
        with client.submit(prompt("[[count 30]]"), prompt("[[count 60]]")) as outputs:
            first = await anext(outputs)
            await until(lambda: client.load.steps >= 20)
            outputs.cancel(first.request)
            waiting = await outputs.next(10)
            assert waiting is not None
            return [outputs.index(waiting), *[outputs.index(output) async for output in outputs]]

    assert set(with_engine(tmp_path, use)) == {1}


def test_progress_is_reported_while_loading(tmp_path: Path) -> None:
    """Every progress frame reaches the caller before the engine is ready."""
    seen: list[Progress] = []
    write_tiny_model(tmp_path)

    async def run() -> None:
        spec = EngineSpec(model_id="tiny", path=str(tmp_path))
        client = await EngineClient.start(spec, inherited=environment(), command=COMMAND, report=seen.append)
        await client.close()

    asyncio.run(run())

    assert [(p.phase, p.done, p.total, p.unit) for p in seen] == [("weights", n, 100, "bytes") for n in (0, 50, 100)]


def test_leaving_the_iterator_cancels_in_the_engine(tmp_path: Path) -> None:
    """After a break the engine runs nothing and the client remembers nothing."""

    async def use(client: EngineClient) -> tuple[int, int]:
        with client.submit(prompt("[[count 500]]")) as outputs:
            async for _ in outputs:
                break
        await settled(client)
        return client.open, client.load.running

    assert with_engine(tmp_path, use) == (0, 0)


def test_a_quiet_engine_gives_none_after_the_timeout(tmp_path: Path) -> None:
    """`next` returns None when nothing came, so that a heartbeat can be sent; the stream goes on afterwards."""

    async def use(client: EngineClient) -> list[bool]:
        with client.submit(prompt("[[stall 1]]")) as outputs:
            return [(await outputs.next(timeout=wait)) is None for wait in (5.0, 0.02, 0.02)]

    assert with_engine(tmp_path, use) == [False, True, True]


def test_a_death_raises_in_every_open_iterator(tmp_path: Path) -> None:
    """kill -9 under 8 streams: each raises EngineDied naming the signal, and so does a later submission."""

    async def use(client: EngineClient) -> list[str]:
        streams = [asyncio.create_task(collect(client, prompt("[[stall 1]]"))) for _ in range(8)]
        await asyncio.sleep(0.05)
        os.kill(client.pid, signal.SIGKILL)
        errors = await asyncio.gather(*streams, return_exceptions=True)
        with pytest.raises(EngineDied):
            client.submit(prompt("more"))
        return [str(error) for error in errors if isinstance(error, EngineDied)]

    errors = with_engine(tmp_path, use)

    assert len(errors) == 8
    assert "SIGKILL" in errors[0]


def test_last_words_are_kept(tmp_path: Path) -> None:
    """What an engine printed before it died while loading is in the error."""
    with pytest.raises(EngineDied, match=r"(?s)exit code 7.*told to die while loading"):
        with_engine(tmp_path, collect, die_loading=7)


def test_a_refused_load_is_a_load_error(tmp_path: Path) -> None:
    """An EngineFailed frame becomes LoadError with its kind and memory plan."""
    with pytest.raises(LoadError, match="too big") as raised:
        with_engine(tmp_path, collect, fail=["does_not_fit", "too big"])

    assert raised.value.kind == "does_not_fit"
    assert raised.value.extras == {"plan": [{"what": "weights", "bytes": 1000}]}


def test_a_cancelled_start_leaves_no_process(tmp_path: Path) -> None:
    """Cancelling while the engine loads ends the process."""
    write_tiny_model(tmp_path, load_seconds=30, stubborn=True)

    async def run() -> int:
        spec = EngineSpec(model_id="tiny", path=str(tmp_path))
        pids: list[Progress] = []
        start = asyncio.create_task(
            EngineClient.start(spec, inherited=environment(), command=COMMAND, report=pids.append)
        )
        await until(lambda: pids)
        start.cancel()
        return len(await asyncio.gather(start, return_exceptions=True))

    assert asyncio.run(run()) == 1
    assert not [entry for entry in Path("/proc").glob("[0-9]*/environ") if str(tmp_path) in readable(entry)]


def test_a_process_that_ignores_shutdown_is_killed(tmp_path: Path) -> None:
    """`close` ends an engine that does not listen."""
    assert with_engine(tmp_path, lambda client: collect(client, prompt("a")), stubborn=True)


def test_random_cancels_leave_nothing_open(tmp_path: Path) -> None:
    """100 requests cancelled at random moments: nothing runs in the engine and the client holds nothing."""
    rng = random.Random(7)

    async def one(client: EngineClient) -> None:
        with client.submit(prompt("[[count 200]]")) as outputs:
            async for _ in outputs:
                if rng.random() < 0.1:
                    return

    async def use(client: EngineClient) -> tuple[int, int, int]:
        tasks = [asyncio.create_task(one(client)) for _ in range(100)]
        for task in tasks[::3]:
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settled(client)
        return client.open, client.load.running, client.load.free_pages

    assert with_engine(tmp_path, use) == (0, 0, 1024)


async def settled(client: EngineClient) -> None:
    """Returns when the engine has seen everything sent so far: a later request was answered."""
    await collect(client, prompt("x"))
    await until(lambda: not client.load.running)


def readable(path: Path) -> str:
    try:
        return path.with_name("cmdline").read_text()
    except OSError:
        return ""


def test_a_cpu_engine_sees_fake_devices_only_when_split() -> None:
    """XLA_FLAGS keeps what the user set and asks for as many host devices as the model is split over."""
    split = engine_environment(EngineSpec("m", "p", tensor_parallel=2), {"XLA_FLAGS": "--xla_dump_to=x"})
    whole = engine_environment(EngineSpec("m", "p"), {})

    assert split["XLA_FLAGS"] == "--xla_dump_to=x --xla_force_host_platform_device_count=2"
    assert "XLA_FLAGS" not in whole
    assert (whole["JAX_PLATFORMS"], whole["CUDA_VISIBLE_DEVICES"]) == ("cpu", "")


def test_a_cuda_engine_sees_its_devices_by_bus_order() -> None:
    """The indices are NVML's, so CUDA must count in the same order."""
    env = engine_environment(EngineSpec("m", "p", platform="cuda", devices=(2, 3)), {"HOME": "/h"})

    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"], env["HOME"]) == ("2,3", "PCI_BUS_ID", "/h")


def test_a_library_that_gives_up_is_told_by_its_last_words() -> None:
    """jax.distributed aborts a process whose rendezvous failed; nothing can be caught, so only what it printed says why."""
    words = "print('DEADLINE_EXCEEDED: Deadline Exceeded', flush=True); import os; os.abort()"

    async def run() -> None:
        await EngineClient.start(EngineSpec("tiny", "p"), inherited=os.environ, command=(sys.executable, "-c", words))

    with pytest.raises(EngineDied, match="was killed by SIGABRT") as died:
        asyncio.run(run())

    assert died.value.kind == "rendezvous_timeout"
