"""`cortex up`: what a flag means, and the whole command as a real process in front of a do-nothing neuron."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import httpx
import pytest

from cortex_gateway.up import DIALECTS, Target, Up, UpError, config_of, log_path, target_of

PROGRAM = """
    import os, sys
    from cortex_gateway import child, up as module
    from cortex_gateway.cli import app, tables
    from neuron_jax.common.errors import UserError
    from cortex_gateway.up import Up, up

    if sys.argv[5] == "patient":
        child.STOP_SECS = module.DRAIN_SECS = 3600.0
    ports = dict(zip(("port", "metrics_port", "neuron_port"), map(int, sys.argv[1:4]), strict=True))
    asked = Up(**ports, once=sys.argv[4] == "once", host=os.environ["UP_HOST"])
    try:
        code = app._run(up(asked, tables.console(), os.environ, neuron=tuple(sys.argv[6:])))
    except UserError as error:
        print(error, file=sys.stderr)
        code = 1
    sys.exit(code)
"""
NEURON = (sys.executable, "-m", "tests.fakes.neuron_double", "--model", "smollm2-135m-instruct")
ROOT = pathlib.Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def started(
    tmp_path: pathlib.Path,
    *,
    once: bool = False,
    patient: bool = False,
    neuron: tuple[str, ...] = NEURON,
    ports: list[int] | None = None,
    host: str = "127.0.0.1",
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, its output piped. `patient`: it drains and waits for hours."""
    numbers = map(str, ports or free_ports(3))
    how = ("once" if once else "stay", "patient" if patient else "usual")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *numbers, *how, *neuron]
    folders = {"CORTEX_CACHE": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    env = {**os.environ, **folders, "UP_HOST": host, "PYTHONPATH": str(ROOT), **environ}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def until_ready(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """The URL, and what was printed up to it."""
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line.rstrip("\n"))
        if line.startswith("ready "):
            return line.split()[1], said
    raise AssertionError(f"never ready: {said}, {process.stderr and process.stderr.read()}")


def gone(port: int) -> bool:
    """Nobody listens there any more."""
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return False
    return True


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ("demo", Target(id="smollm2-135m-instruct")),
        ("smollm2-135m-instruct", Target(id="smollm2-135m-instruct")),
        ("org/name", Target(id="org/name")),
        ("hf:org/name@v2", Target(id="org/name", source="hf:org/name@v2")),
        ("hf:org/name:file.gguf", Target(id="org/name", source="hf:org/name:file.gguf")),
        ("org/name@v2", Target(id="org/name", source="hf:org/name@v2")),
    ],
)
def test_a_name_is_an_alias_an_id_or_a_repository(model: str, target: Target) -> None:
    """One form of --model."""
    assert target_of(model) == target


def test_a_path_gives_its_stem_as_id(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without its ending, a folder with its name; relative ones become absolute."""
    (tmp_path / "tiny.Q4.gguf").touch()
    (tmp_path / "my-7b-v1.5").mkdir()
    monkeypatch.chdir(tmp_path)

    assert target_of("tiny.Q4.gguf") == Target(id="tiny.Q4", source=str(tmp_path / "tiny.Q4.gguf"))
    assert target_of(f"{tmp_path}/my-7b-v1.5/") == Target(id="my-7b-v1.5", source=str(tmp_path / "my-7b-v1.5"))


@pytest.mark.parametrize("model", ["./none", "/none", "~/none", "none.gguf"])
def test_a_path_that_is_not_there_is_told(model: str) -> None:
    """Before anything is started."""
    with pytest.raises(UpError, match="there is no such file or folder"):
        target_of(model)


@pytest.mark.parametrize(
    ("host", "listen", "endpoint"),
    [
        ("127.0.0.1", "127.0.0.1:1", "http://127.0.0.1:3"),
        ("0.0.0.0", "0.0.0.0:1", "http://127.0.0.1:3"),
        ("::", "[::]:1", "http://[::1]:3"),
    ],
)
def test_the_gateway_reaches_the_neuron_whatever_it_listens_on(host: str, listen: str, endpoint: str) -> None:
    """A wildcard is for listening, not for calling."""
    config = config_of(Up(host=host, port=1, metrics_port=2, neuron_port=3, quant="none"), Target(id="m", source="/m"))

    assert (config.gateway.listen, config.neurons[0].endpoint) == (listen, endpoint)
    assert (config.models[0].id, config.models[0].source, config.models[0].quant) == ("m", "/m", "none")


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"CORTEX_CACHE": "/c"}, "/c/neuron.log"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/cortex/neuron.log"),
        ({}, str(pathlib.Path.home() / ".cache/cortex/neuron.log")),
    ],
)
def test_the_neurons_log_is_in_the_cache(environ: dict[str, str], path: str) -> None:
    """Beside what the neuron keeps there."""
    assert str(log_path(environ)) == path


def test_once_answers_in_both_dialects_and_ends(tmp_path: pathlib.Path) -> None:
    """URLs, a curl line for each, both answers, the ready line; exit code 0 and no colours."""
    ports = free_ports(3)
    with started(tmp_path, once=True, ports=ports) as process:
        out, err = process.communicate()

    assert (process.returncode, err) == (0, "")
    assert out.count("What is the capital of France?") == 4, "two curl lines, two questions"
    assert out.count(" token token") >= 2
    assert out.count("64 tokens in ") == 2
    assert f"http://127.0.0.1:{ports[1]}/metrics" in out
    assert out.rstrip().endswith(f"ready http://127.0.0.1:{ports[0]}")
    assert "\x1b" not in out
    assert "WARNING" not in out
    assert all(map(gone, ports))


def test_a_secret_in_the_environment_is_shown_to_the_neuron_that_inherits_it(tmp_path: pathlib.Path) -> None:
    """And to nobody who looks at the processes or the output."""
    with started(tmp_path, NEURON_SECRET="hunter2") as process:
        _, said = until_ready(process)
        processes = subprocess.run(["ps", "-ww", "-e", "-o", "args"], capture_output=True, check=True, text=True).stdout

    assert "smollm2-135m-instruct" in processes
    assert "hunter2" not in processes
    assert "hunter2" not in "".join(said)


def test_open_to_others_it_says_so(tmp_path: pathlib.Path) -> None:
    """With the way to shut it."""
    with started(tmp_path, once=True, host="0.0.0.0") as process:
        out, err = process.communicate()

    assert (process.returncode, err) == (0, "")
    assert out.count("WARNING: whoever reaches 0.0.0.0:") == 1
    assert "cortex keys add" in out


def test_the_curl_lines_work_as_they_are_printed(tmp_path: pathlib.Path) -> None:
    """Copied into a shell, each gets an answer of its dialect."""
    with started(tmp_path) as process:
        _, said = until_ready(process)
        lines = [line for line in said if line.startswith("curl ")]
        answers = [subprocess.run(["sh", "-c", f"{line} -s"], capture_output=True, check=True).stdout for line in lines]

    assert len(answers) == len(DIALECTS) == 2
    assert b'"chat.completion"' in answers[0]
    assert b'"type":"message"' in answers[1].replace(b": ", b":")


@pytest.mark.parametrize(
    ("number", "group"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)],
)
def test_it_stays_up_until_it_is_stopped_and_leaves_nothing(
    tmp_path: pathlib.Path, number: signal.Signals, group: bool
) -> None:
    """Ctrl-C to us alone or to the whole terminal, or a polite kill: exit code 0, every port free."""
    ports = free_ports(3)
    with started(tmp_path, ports=ports) as process:
        url, _ = until_ready(process)
        assert httpx.get(f"{url}/health", trust_env=False).json()["status"] == "ok"
        (os.killpg if group else os.kill)(process.pid, number)
        process.wait()

    assert process.returncode == 0
    assert all(map(gone, ports))


def test_the_neuron_goes_when_the_command_is_killed(tmp_path: pathlib.Path) -> None:
    """Also by `kill -9`, which leaves the command no time to end it."""
    ports = free_ports(3)
    with started(tmp_path, ports=ports) as process:
        until_ready(process)
        process.kill()
        process.wait()

        while not gone(ports[2]):
            time.sleep(0.02)


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: pathlib.Path) -> None:
    """Neither for a client that does not read its answer nor for a neuron that does not listen; exit code 0."""
    ports = free_ports(3)
    deaf = ("sh", "-c", 'trap "" TERM; "$@"; exec sleep 1000', "sh", *NEURON)
    body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1_000_000, "stream": True}
    with started(tmp_path, patient=True, neuron=deaf, ports=ports) as process:
        url, _ = until_ready(process)
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, trust_env=False) as answer:
            assert answer.status_code == 200
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate()

    assert (process.returncode, err) == (0, "")
    assert all(map(gone, ports))


def test_a_neuron_that_dies_at_start_shows_its_last_words(tmp_path: pathlib.Path) -> None:
    """With its code and the place of its log; the exit code is 1."""
    dying = (sys.executable, "-c", "import sys; print('no such device'); sys.exit(7)")
    with started(tmp_path, neuron=dying) as process:
        _, err = process.communicate()

    assert process.returncode == 1
    assert "the neuron ended with code 7" in err
    assert "    no such device" in err
    assert str(tmp_path / "neuron.log") in err


def test_a_neuron_that_dies_later_ends_the_command(tmp_path: pathlib.Path) -> None:
    """Instead of a gateway in front of nothing."""
    with started(tmp_path) as process:
        until_ready(process)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        _, err = process.communicate()

    assert process.returncode == 1
    assert "the neuron ended with code -9" in err


@pytest.mark.parametrize(("index", "flag"), [(0, "--port"), (1, "--metrics-port"), (2, "--neuron-port")])
def test_a_taken_port_is_named_with_its_flag(tmp_path: pathlib.Path, index: int, flag: str) -> None:
    """Before a process is started."""
    ports = free_ports(3)
    with socket.create_server(("127.0.0.1", ports[index])), started(tmp_path, ports=ports) as process:
        _, err = process.communicate()

    assert process.returncode == 1
    assert err == f"port {ports[index]} on 127.0.0.1 is taken by another program; choose another with {flag}\n"
    assert not (tmp_path / "neuron.log").exists()
