"""`serve` as a real process, and the official SDK against a live daemon."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import httpx
import openai
import pytest

from neuron_jax.cli import run
from neuron_jax.config import ServerConfig
from neuron_jax.daemon.app import listen
from neuron_jax.errors import ListenError
from tests.fakes.engine_double import ROOT, environment
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.programs import program
from tests.fakes.tiny_model import write_tiny_model

PROGRAM = """
import os, sys
from pathlib import Path
from neuron_jax.config import load_config
from neuron_jax.daemon.app import serve
from tests.fakes.engine_double import COMMAND
serve(load_config(Path(sys.argv[1]), os.environ), command=COMMAND)
"""


def first_match(stream: IO[str], pattern: str) -> str:
    for line in stream:
        found = re.search(pattern, line)
        if found:
            return found[1]
    raise AssertionError(f"no line with {pattern}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_and_ends_with_zero(tmp_path: Path, number: signal.Signals) -> None:
    """It prints its address, serves, and a signal drains it: exit code 0, the stream whole, no engine left."""
    folder = write_tiny_model(tmp_path / "tiny", pace=0.01)
    config = tmp_path / "neuron.toml"
    config.write_text(f'[server]\nport = 0\n[[default_models]]\nmodel_id = "{MODEL}"\nsource = "{folder}"\n')
    command = [sys.executable, "-c", PROGRAM, str(config)]
    with program(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = first_match(process.stdout, r"^neuron ready (http://127\.0\.0\.1:\d+)$")
        with httpx.Client(base_url=url, timeout=20) as http:
            while http.get("/health").json()["activation"]["state"] != "ready":
                pass
            assert run(["health", "--endpoint", url, "--ready"], {}) == 0
            engine = http.get("/models").json()[0]["pid"]
            body = {"model": MODEL, "prompt": "[[count 50]]", "stream": True}
            with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = (line for line in answer.iter_lines() if line.startswith("data: "))
                next(lines)
                process.send_signal(number)
                rest = list(lines)
        assert rest[-1] == "data: [DONE]"
        assert process.wait(timeout=20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


@pytest.mark.timeout(60)
def test_a_test_that_fails_ends_its_program() -> None:
    """At once: none waits until the run's limit for a program that nobody will end."""
    sleeper = program([sys.executable, "-c", "import time; time.sleep(300)"])
    process = sleeper.__enter__()
    error = AssertionError("of a test")

    assert not sleeper.__exit__(AssertionError, error, None)
    assert process.returncode == -signal.SIGKILL


def test_a_port_in_use_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line names the port and what moves it, and the exit code is 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = run(["serve", "--port", str(port)], {"HOME": str(tmp_path)})

    assert code == 1
    said = (
        f"neuron: port {port} on 127.0.0.1 is taken by another program; choose another with --port or port in [server]"
    )
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize("host", ["192.0.2.1", "fe80::1:2:3"])
def test_an_address_that_is_not_ours_is_told(host: str) -> None:
    """Of either family."""
    with pytest.raises(ListenError, match=f"port 0 on {host} cannot be used: "):
        listen(ServerConfig(host=host, port=0))


def test_the_openai_sdk(tmp_path: Path) -> None:
    """Chat and completions through the official client, streaming and not, and its own error classes."""

    async def use(neuron: LiveNeuron) -> None:
        async with openai.AsyncOpenAI(base_url=neuron.url + "/v1", api_key="none", max_retries=0) as sdk:
            chat = await sdk.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=1
            )
            assert chat.choices[0].message.content == "hi"
            assert chat.choices[0].logprobs is not None
            assert chat.usage is not None
            assert chat.usage.total_tokens == 8
            stream = await sdk.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hey"}],
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "hey"
            assert chunks[-1].usage is not None
            text = await sdk.completions.create(model=MODEL, prompt="ab", logprobs=1)
            assert text.choices[0].text == "ab"
            with pytest.raises(openai.NotFoundError, match="not loaded here"):
                await sdk.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "hi"}])
            with pytest.raises(openai.BadRequestError, match="maximum context length"):
                await sdk.completions.create(model=MODEL, prompt="x" * 5000)
            broken = await sdk.completions.create(model=MODEL, prompt="[[die 2]]", stream=True)
            with pytest.raises(openai.APIError, match="exit code 41"):
                assert [chunk async for chunk in broken]

    with_neuron(tmp_path, use)


def test_leaving_the_sdk_stream_frees_the_engine(tmp_path: Path) -> None:
    """Closing the SDK's stream is a disconnect like any other."""

    async def use(neuron: LiveNeuron) -> None:
        async with openai.AsyncOpenAI(base_url=neuron.url + "/v1", api_key="none") as sdk:
            stream = await sdk.completions.create(model=MODEL, prompt="[[count 4000]]", stream=True)
            async with stream:
                await anext(aiter(stream))
        client = neuron.lifecycle.residents[0].client
        assert client is not None
        async with asyncio.timeout(20):
            await client.idle()

    with_neuron(tmp_path, use)
