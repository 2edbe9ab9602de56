"""The commands against a live gateway: what they print, and the exit codes they end with."""

import asyncio
import concurrent.futures
import contextlib
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cortex_gateway.cli import app as cli
from cortex_gateway.placement.snapshot import ModelConfig
from tests.fakes.host_double import HostDouble
from tests.fakes.live_gateway import LiveGateway, in_thread, live_gateway, served
from tests.fakes.neuron_double import Answer

MODELS = (ModelConfig(id="broken"), ModelConfig(id="small", vram_mb=1000))


class Terminal(io.StringIO):
    """A standard input at which a person sits."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def host() -> HostDouble:
    failures = {"broken": {"error": {"kind": "bad_checkpoint", "message": "the file is cut short"}}}
    answer = Answer(deltas=({"reasoning_content": "Hmm. "}, {"content": "Par"}, {"content": "is"}))
    return HostDouble(sizes={"m": 2048, "small": 1024}, loaded=["m"], failures=failures, answers=[answer])


@pytest.fixture
def gateway(host: HostDouble) -> Iterator[LiveGateway]:
    with live_gateway({"beast": host}, models=MODELS, aliases={"nick": "m"}) as it:
        yield it


def run(gateway: LiveGateway, *words: str) -> int:
    return cli.run([*words, "--endpoint", gateway.url])


def test_status_shows_nodes_devices_and_models(gateway: LiveGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Wide and plain when piped: nothing is cut, nothing is coloured."""
    assert run(gateway, "status") == 0

    shown = capsys.readouterr().out
    for words in ("● beast", "healthy", "cuda:0", "9.8 GiB", "7.8 GiB", "50 %", "40 °C", "m ", "2.0 GiB", "0/4"):
        assert words in shown
    (line,) = (line for line in shown.splitlines() if line.split()[0] == "m")
    assert line.split()[:3] == ["m", "loaded", "cuda:0"]
    assert "1 more model could be loaded" in shown
    assert "\x1b" not in shown


def test_status_says_why_a_node_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of whoever tried."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"out of order"})

    with live_gateway({"attic": broken}) as it:
        assert run(it, "status") == 0

    shown = capsys.readouterr().out
    assert "○ attic" in shown
    assert "500: out of order" in shown


def test_models_lists_ids_and_aliases(gateway: LiveGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Where each is, and where it could be."""
    assert run(gateway, "models") == 0

    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "→ m" in lines["nick"]
    assert lines["m"].split()[1:3] == ["beast", "beast"]
    assert lines["small"].split()[1:3] == ["-", "beast"]


@pytest.mark.parametrize(("command", "key"), [("status", "nodes"), ("models", "data")])
def test_json_is_the_gateways_own(
    gateway: LiveGateway, capsys: pytest.CaptureFixture[str], command: str, key: str
) -> None:
    """For scripts."""
    assert run(gateway, command, "--json") == 0

    assert json.loads(capsys.readouterr().out)[key]


def test_load_tells_its_phases_and_unload_ends_it(
    gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line per phase when piped."""
    how = ("--quant", "none", "--kv-dtype", "int8", "--deterministic", "--node", "beast")
    more = ("--hosts", "beast", "--ranks", "device", "--adapters", "poet=/a, critic=/b", "--expert-parallel", "2")
    more += ("--context", "4096", "--speculate", "0")
    assert run(gateway, "load", "small", *how, *more) == 0
    assert capsys.readouterr().out.splitlines() == ["  Starting", "  Loading weights 0.0/0.0 MB", "small is loaded"]
    said = [host.specs[0][name] for name in ("quant", "kv_dtype", "deterministic", "ranks", "expert_parallel")]
    assert said == ["none", "int8", True, "device", 2]
    assert (host.specs[0]["max_context"], host.specs[0]["speculate"]) == (4096, 0)
    assert "hosts" not in host.specs[0]
    assert host.specs[0]["adapters"] == ["poet=/a", "critic=/b"]

    assert run(gateway, "unload", "small") == 0
    assert capsys.readouterr().out == "small is unloaded\n"
    assert host.done == ["load small", "unload small"]


def test_reload_says_which_weights_serve_where(
    gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is asked for arrives at the node."""
    assert run(gateway, "reload", "m", "tuned", "--in-place") == 0
    assert run(gateway, "reload", "m", "--json") == 0

    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "m serves tuned (0f) on beast"
    assert json.loads("".join(rest))["nodes"]["beast"]["reloads"] == 1
    asked = [seen.body for seen in host.seen if seen.path == "/models/reload"]
    assert asked[0] == {"model_id": "m", "source": "tuned", "in_place": True}


def test_a_plan_says_where_it_would_go_and_begins_nothing(
    gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, "plan", "small") == 0
    headline, _, row = capsys.readouterr().out.splitlines()
    assert headline == "small: would be loaded on beast"
    assert row.split()[:3] == ["beast", "has", "room"]
    assert host.done == []

    assert run(gateway, "plan", "small", "--tensor-parallel", "64", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["would"]["do"], found["nodes"][0]["state"]) == ("refuse", "none")
    assert "of the 64 devices" in found["nodes"][0]["reason"]


def test_a_model_that_is_loaded_otherwise_is_told_and_reloaded(
    gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with what differs; `--reload` does as asked."""
    assert run(gateway, "load", "small", "--quant", "int8") == 0
    assert run(gateway, "load", "small", "--quant", "none") == 1
    assert "small is loaded on beast with quant int8 (asked for: none)" in capsys.readouterr().err

    assert run(gateway, "load", "small", "--quant", "none", "--reload") == 0
    assert host.done == ["load small", "unload small", "load small"]


def test_load_and_unload_speak_json(gateway: LiveGateway, capsys: pytest.CaptureFixture[str]) -> None:
    """Without progress."""
    assert run(gateway, "load", "small", "--json") == 0
    assert run(gateway, "unload", "small", "--node", "beast", "--json") == 0

    out = capsys.readouterr().out
    assert '"loaded"' in out
    assert '"unloaded"' in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["load", "broken"], "the file is cut short"),
        (["unload", "small"], "is not loaded"),
        (["reload", "small"], "is not loaded"),
        (["reload", "m", "--node", "attic"], "there are beast"),
        (["load", "m", "--node", "attic"], "there are beast"),
        (["plan", "m", "--node", "attic"], "there are beast"),
        (["chat", "nik", "hello"], "Did you mean 'nick'"),
        (["chat", "claude-x", "hello"], '[aliases] "claude-x" = "m"'),
    ],
)
def test_what_the_gateway_refuses_is_one_line_and_code_1(
    gateway: LiveGateway, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    """On stderr, without a trace."""
    assert run(gateway, *words) == 1

    said = capsys.readouterr().err
    assert told in said
    assert (said.startswith("cortex: "), len(said.splitlines())) == (True, 1)


def test_chat_answers_one_question(gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]) -> None:
    """Streamed as it comes, reasoning included; the options are sent."""
    words = ("chat", "nick", "Capital of France?", "--system", "Be brief.", "--temperature", "0", "--max-tokens", "9")

    assert run(gateway, *words) == 0

    assert capsys.readouterr().out == "Hmm. Paris\n"
    sent = next(seen.body for seen in host.seen if seen.path == "/v1/chat/completions")
    assert [turn["role"] for turn in sent["messages"]] == ["system", "user"]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("m", 0.0, 9)


def test_chat_reads_a_pipe(
    gateway: LiveGateway, host: HostDouble, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`echo question | cortex chat m`."""
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))

    assert run(gateway, "chat", "m") == 0

    assert capsys.readouterr().out == "Hmm. Paris\n"
    assert any(b"piped" in seen.raw for seen in host.seen)


def test_chat_answers_a_script(gateway: LiveGateway, host: HostDouble, capsys: pytest.CaptureFixture[str]) -> None:
    """One object with the whole answer, how it ended and what it took."""
    assert run(gateway, "chat", "nick", "Capital of France?", "--json", "--max-tokens", "9") == 0

    told = json.loads(capsys.readouterr().out)
    seconds = told.pop("seconds")
    usage = told.pop("usage")
    assert told == {"text": "Paris", "reasoning": "Hmm. ", "finish_reason": "stop", "model": "nick"}
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 3)
    assert isinstance(seconds, float)
    sent = next(seen.body for seen in host.seen if seen.path == "/v1/chat/completions")
    assert (sent["max_tokens"], sent.get("stream")) == (9, None)


def test_requests_are_listed_and_cancelled(capsys: pytest.CaptureFixture[str]) -> None:
    """Seen by one command, ended by the other; whoever asked is told so."""
    slow = HostDouble(sizes={"m": 2048}, loaded=["m"], answers=[Answer(pause=0.05, deltas=({"content": "on "},) * 400)])
    with live_gateway({"beast": slow}) as it, concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert run(it, "requests") == 0
        assert "no request is under way" in capsys.readouterr().out
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        asked = {"json": body, "headers": {"x-request-id": "mine"}, "timeout": 60}
        answer = pool.submit(lambda: httpx.post(f"{it.url}/v1/chat/completions", **asked))
        shown = ""
        while "decode" not in shown:
            run(it, "requests")
            shown = capsys.readouterr().out
        (line,) = (line for line in shown.splitlines() if line.startswith("mine"))
        assert line.split()[:4] == ["mine", "m", "beast", "decode"]

        assert run(it, "cancel", "mine") == 0
        assert "request_cancelled" in answer.result().text
    assert capsys.readouterr().out == "mine is cancelled\n"


def test_a_request_that_is_not_there_cannot_be_cancelled(
    gateway: LiveGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(gateway, "cancel", "a/b c") == 1

    assert "No request 'a/b c' is under way" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["chat", "m"], ["chat", "m", "--json"]])
def test_chat_without_a_prompt_is_code_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing is piped in; and the line says what to write."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    assert cli.run(words) == 2

    assert 'cortex chat MODEL "prompt"' in capsys.readouterr().err


def test_chat_does_not_wait_at_a_terminal_for_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A conversation has no one object."""
    monkeypatch.setattr("sys.stdin", Terminal())

    assert cli.run(["chat", "m", "--json"]) == 2

    assert "a prompt is needed" in capsys.readouterr().err


def test_without_a_gateway_the_way_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """How to start one."""
    assert cli.run(["status", "--endpoint", "http://127.0.0.1:9"]) == 1

    assert "cortex up" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["status", "-e", "not a url"], "must be a URL, as http://host:port"),
        (["status", "-e", "http://::1:31313"], 'stands in brackets, as "[::1]:31313"'),
        (["up", "--host", "[::1]"], 'without brackets, as "::1"'),
        (["up", "--neuron-port", "0"], "Must be >= 1"),
    ],
)
def test_an_address_that_cannot_be_is_told_with_the_right_form(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is tried."""
    assert cli.run(words) == 2

    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "words", [["stats"], ["status", "--frobnicate"], ["up", "--port", "x"], ["load"], ["up", "--quant", "int3"]]
)
def test_bad_usage_is_code_2(words: list[str]) -> None:
    """As everywhere."""
    assert cli.run(words) == 2


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is in the help."""
    assert cli.run(["--version"]) == 0
    assert re.fullmatch(r"cortex \d\S+\n  commit: .+\n  prebuilt kernels: .+\n", capsys.readouterr().out)
    assert cli.run(["--help"]) == 0

    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("serve", "up", "status", "models", "load", "unload", "chat"))


def test_a_wrong_config_stops_serve_with_its_problems(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything listens."""
    path = tmp_path / "cortex.toml"
    path.write_text("[gateway]\nlistn = 1\n")

    assert cli.run(["serve", "--config", str(path)]) == 1

    assert "gateway.listn: is not a key here" in capsys.readouterr().err


@contextlib.contextmanager
def serve(tmp_path: pathlib.Path, neuron: str, drain_secs: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`cortex serve` as a real process on free ports, and its URL."""
    path = tmp_path / "cortex.toml"
    path.write_text(
        f'[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\ndrain_secs = {drain_secs}\n'
        f'[[neurons]]\nname = "a"\nendpoint = "{neuron}"\n'
    )
    command = [sys.executable, "-m", "cortex_gateway", "serve", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            while " cortex answers at " not in line:
                assert line, "it ended at start"
                line = process.stderr.readline()
            yield process, line.split(" cortex answers at ")[1].split(",")[0]
        finally:
            process.kill()


def test_serve_answers_logs_and_ends_on_sigterm(tmp_path: pathlib.Path) -> None:
    """A real process: one line per request on stderr, exit code 0."""
    with serve(tmp_path, "http://127.0.0.1:9", drain_secs=1) as (process, url):
        health = httpx.get(f"{url}/health", trust_env=False).json()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate()

    assert health == {"status": "degraded", "nodes": {"healthy": 0, "total": 1}}
    assert "GET /health 200" in said
    assert process.returncode == 0


def test_a_running_gateway_reads_its_files_again(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process follows a new models.toml, says what needs a restart, and goes by the old one where it must."""
    with serve(tmp_path, "http://127.0.0.1:9", drain_secs=1) as (process, url):
        assert cli.run(["config", "reload", "--endpoint", url]) == 0
        (tmp_path / "models.toml").write_text('[[models]]\nid = "org/new"\n[aliases]\nnick = "org/new"\n')
        text = (tmp_path / "cortex.toml").read_text().replace("drain_secs = 1", "drain_secs = 2")
        (tmp_path / "cortex.toml").write_text(f'models_config = "models.toml"\n{text}[eviction]\nidle_secs = 600\n')
        assert cli.run(["config", "reload", "--endpoint", url]) == 0
        (tmp_path / "models.toml").write_text('[[models]]\nid = ""\n')
        assert cli.run(["config", "reload", "--endpoint", url]) == 1
        listed = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]
        process.send_signal(signal.SIGTERM)
        process.communicate()

    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "the files say what they said before",
        "models: org/new",
        "aliases: nick",
        "eviction: idle_secs",
        "needs a restart: gateway",
    ]
    assert "models.toml: models[0].id" in said.err
    assert [model["id"] for model in listed] == ["nick", "org/new"]


def test_a_second_ctrl_c_hurries_serve(host: HostDouble, tmp_path: pathlib.Path) -> None:
    """A request that would get an hour is told that the gateway goes down, and the log keeps to one line for it."""
    host.answers = [Answer(gate=asyncio.Event())]
    question = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with (
        in_thread(served(host)) as neuron,
        serve(tmp_path, neuron, drain_secs=3600) as (process, url),
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        asked = pool.submit(
            httpx.post, f"{url}/v1/chat/completions", json=question, timeout=httpx.Timeout(60), trust_env=False
        )
        while not any(seen.path == "/v1/chat/completions" for seen in host.seen):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        answer = asked.result()
        _, said = process.communicate()

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert "on a 503 error" in said
    assert "Traceback" not in said
    assert process.returncode == 0


def test_a_taken_port_is_named_with_its_setting(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command ends with 1. A variable that sets nothing is told before."""
    monkeypatch.setenv("CORTEX_NURONS", "[]")
    with live_gateway({}) as it:
        port = it.url.rpartition(":")[2]
        path = tmp_path / "cortex.toml"
        path.write_text(f'[gateway]\nlisten = "127.0.0.1:{port}"\n[[neurons]]\nname = "a"\nendpoint = "http://a"\n')

        assert cli.run(["serve", "--config", str(path)]) == 1

    assert capsys.readouterr().err.splitlines() == [
        "cortex: environment: CORTEX_NURONS is not used; did you mean CORTEX_NEURONS?",
        f"cortex: port {port} on 127.0.0.1 is taken by another program; choose another with [gateway] listen",
    ]


def test_health_is_for_checks_of_containers(capsys: pytest.CaptureFixture[str]) -> None:
    """A gateway without a node answers, and is not ready; where nobody answers that is one line."""
    with live_gateway({}) as it:
        assert cli.run(["health", "--endpoint", it.url]) == 0
        assert cli.run(["health", "--endpoint", it.url, "--ready"]) == 1
    assert capsys.readouterr().out == "degraded\ndegraded\n"

    assert cli.run(["health", "--endpoint", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("cortex: no gateway answers at http://127.0.0.1:9")
