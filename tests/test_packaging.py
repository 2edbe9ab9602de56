"""What a user gets from `pip install cortex-jax`: the wheel's contents, and the gateway where JAX is not installed."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator

import httpx
import pytest
from attrs import frozen

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {"cortex_gateway", "neuron_jax", "models"}
PIN = re.compile(r"^([\w.-]+==[^ \\]+)( ;[^\\]*)?", re.MULTILINE)


@frozen
class Installed:
    """The wheel and its base dependencies in an environment of their own, away from the checkout."""

    folder: pathlib.Path
    bin: pathlib.Path

    def command(self, *words: str) -> list[str]:
        return [str(self.bin / words[0]), *words[1:]]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.folder, env=environment(), capture_output=True, text=True, check=False
        )


def environment() -> dict[str, str]:
    """This one, without what would lead Python or an installer back to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Built as a release is, by the backend that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With the versions of the lock, from the package index of this machine, by the installer that `make` uses."""
    folder = tmp_path_factory.mktemp("installed")
    pins = folder / "constraints.txt"
    pins.write_text("\n".join("".join(pin) for pin in PIN.findall((ROOT / "requirements.lock").read_text())))
    venv = folder / "venv"
    python = str(venv / "bin/python")
    if shutil.which("uv"):
        make = ["uv", "venv", "--quiet", "--python", sys.executable, str(venv)]
        install = ["uv", "pip", "install", "--quiet", "--python", python]
    else:
        make = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
        install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
        install += ["--disable-pip-version-check"]
    for command in (make, [*install, "--constraint", str(pins), str(wheel)]):
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return Installed(folder, venv / "bin")


def test_the_wheel_holds_the_packages_and_the_licence(wheel: pathlib.Path) -> None:
    """Every module of the three packages, and neither tests nor anything else of the repository."""
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}

    assert {name.split("/")[0] for name in names - metadata} == PACKAGES
    assert {name for name in names if name.endswith(".py")} == modules
    assert [name for name in metadata if name.endswith("licenses/LICENSE")]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["jax", "flax", "numpy", "tokenizers", "models.llama"])
def test_what_computes_is_not_there(installed: Installed, module: str) -> None:
    """The bare install is the gateway."""
    done = installed.run("python", "-c", f"import {module}")

    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stderr


@pytest.mark.slow
def test_the_commands_say_who_they_are(installed: Installed) -> None:
    """The version is the wheel's, and the help names every command."""
    version, described = installed.run("cortex", "--version"), installed.run("cortex", "--help")

    assert (version.returncode, version.stderr) == (0, "")
    assert re.fullmatch(
        r"cortex \d+\.\d+\.\d+\S*\n  commit: [0-9a-f]{12}.*\n  prebuilt kernels: none\n", version.stdout
    )
    assert (described.returncode, described.stderr) == (0, "")
    assert " serve " in described.stdout
    assert " up " in described.stdout


@pytest.mark.slow
def test_up_says_in_one_line_what_is_missing(installed: Installed) -> None:
    """Before it starts anything."""
    done = installed.run("cortex", "up")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "cortex: the neuron needs JAX, which is not installed here: pip install 'cortex-jax[neuron]'\n"
    )


def test_serve_answers_and_ends_on_sigterm(installed: Installed) -> None:
    """In front of a neuron elsewhere: health, metrics and a whole answer; then exit code 0."""
    question = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    with do_nothing_neuron("m") as neuron, served(installed, neuron) as (process, url, metrics_url):
        with httpx.Client(trust_env=False) as http:
            health = http.get(f"{url}/health").json()
            answer = http.post(f"{url}/v1/chat/completions", json=question)
            counted = 'cortex_requests_total{model="m",node="a"} 1.0'
            while counted not in http.get(f"{metrics_url}/metrics").text:  # a request is counted after its last byte
                time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0

    assert health["nodes"]["total"] == 1
    assert (answer.status_code, answer.json()["object"]) == (200, "chat.completion")


@contextlib.contextmanager
def do_nothing_neuron(model: str) -> Iterator[str]:
    """Its URL; it is started from the checkout, as the environment under test has no tests."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.fakes.neuron_double", "--port", str(port), "--model", model]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            while not answers(port):
                assert process.poll() is None, "it ended at start"
                time.sleep(0.02)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def answers(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@contextlib.contextmanager
def served(installed: Installed, neuron: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`cortex serve` on free ports: the process, the API's URL, the metrics' URL."""
    path = installed.folder / "cortex.toml"
    path.write_text(
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\ndrain_secs = 1\n'
        f'[[neurons]]\nname = "a"\nendpoint = "{neuron}"\n'
    )
    command = installed.command("cortex", "serve", "--config", str(path))
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=installed.folder, env=environment()
    ) as process:
        try:
            assert process.stderr is not None
            said: list[str] = []
            while not (found := re.search(r"answers at (\S+), metrics at (\S+)/metrics", "".join(said))):
                said.append(process.stderr.readline())
                assert said[-1], f"it ended at start: {said}"
            yield process, found[1], found[2]
        finally:
            process.kill()
