"""What the packages are built of, read and not built: names, versions, locks, configuration, the script for CUDA."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from cortex_gateway.config import load_config as load_cortex
from neuron_jax.config import load_config as load_neuron

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HASHED = re.compile(r"^\S+==\S+.*(\n    --hash=sha256:[0-9a-f]{64}.*)+$")


def script(name: str) -> ModuleType:
    """One of packaging's programs, as a module."""
    spec = importlib.util.spec_from_file_location(name, PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def locked(lock: str, *extra: str) -> list[str]:
    """The entries that lock.py takes of it."""
    command = [sys.executable, str(PACKAGING / "lock.py"), *extra]
    text = (ROOT / lock).read_text()
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return re.split(r"\n(?=\S)", done.stdout.strip())


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """As build.sh fills it in."""
    text = (PACKAGING / "rpm/cortex.spec.in").read_text()
    changelog = "* Sat Feb 01 2020 A <a@example.org> - 1:1-1\n- It."
    path = tmp_path / "cortex.spec"
    path.write_text(text.replace("@VERSION@", PROJECT["version"]).replace("@CHANGELOG@", changelog))
    return path


@pytest.mark.skipif(not shutil.which("rpmspec"), reason="there is no rpmspec here")
def test_the_spec_is_one(spec: Path) -> None:
    """Its packages and their version, as rpmbuild sees them."""
    query = "%{name} %{version} %{epoch}\n"
    command = ["rpmspec", "--query", "--queryformat", query, "--define", "_prefix /usr", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines() == [f"{name} {PROJECT['version']} 1" for name in packages()]


def packages() -> list[str]:
    return ["cortex", "cortex-neuron", *(f"cortex-neuron-{name}" for name in script("stage").GENERATIONS)]


def test_both_formats_have_the_same_packages(spec: Path) -> None:
    """One for each file of a generation."""
    control = re.findall(r"^Package: (.*)$", (PACKAGING / "debian/control").read_text(), re.MULTILINE)
    described = re.findall(r"^%files(?: -n (\S+))?", spec.read_text(), re.MULTILINE)
    generations = {f"cortex-neuron-{path.stem}" for path in (PACKAGING / "gpu").glob("*.conf")}

    assert control == packages()
    assert ["cortex", *described[1:]] == packages()
    assert {name for name in packages() if name.count("-") == 2} == generations


@pytest.mark.parametrize(("lock", "extra"), [("requirements.lock", ()), ("requirements.lock", ("neuron",))])
def test_a_package_has_what_runs_and_not_what_tests(lock: str, extra: tuple[str, ...]) -> None:
    """Every pin with its hashes."""
    entries = locked(lock, *extra)
    names = {entry.split("==")[0] for entry in entries}

    assert all(HASHED.match(entry) for entry in entries)
    assert {"litestar", "anyio", "click"} <= names  # what is asked for, and what that asks for
    assert not {"pytest", "mypy", "ruff"} & names
    assert ("jax" in names) == bool(extra)


def test_a_gpu_adds_cudas_wheels_alone() -> None:
    """So neuron-cuda leaves alone what a package brought."""
    names = {entry.split("==")[0] for entry in set(locked("requirements-cuda12.lock", "neuron"))}
    names -= {entry.split("==")[0] for entry in locked("requirements.lock", "neuron")}

    assert {"jax-cuda12-plugin", "nvidia-cudnn-cu12"} <= names
    assert all(re.fullmatch(r"jax-cuda12-\w+|nvidia-[\w-]+-cu12", name) for name in names)


def test_the_installed_configuration_is_one() -> None:
    """Its state is where the unit may write."""
    gateway = load_cortex(PACKAGING / "config/cortex.toml", {})
    neuron = load_neuron(PACKAGING / "config/neuron.toml", {})

    assert gateway.state == Path("/var/lib/cortex/cortex-state.db")
    assert [one.endpoint for one in gateway.neurons] == [f"http://{neuron.server.host}:{neuron.server.port}"]


def test_the_firewall_opens_their_ports() -> None:
    ports = {}
    for program in ("cortex", "neuron"):
        port = ET.parse(PACKAGING / f"firewalld/{program}.xml").find("port")
        assert port is not None
        ports[program] = port.attrib

    assert ports == {
        "cortex": {"protocol": "tcp", "port": "31313"},
        "neuron": {"protocol": "tcp", "port": str(load_neuron(None, {}).server.port)},
    }


def test_the_changelog_is_the_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And the version at hand, where it has none."""
    changelog = script("changelog")
    monkeypatch.setattr(changelog, "ROOT", tmp_path)
    for name in ("DEBFULLNAME", "DEBEMAIL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.3.0"\n')
    dated = {"GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z", "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z"}
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for words in (
        ["init"],
        ["commit", "--allow-empty", "-m", "x"],
        ["tag", "-a", "v0.2.0", "-m", "New\n\n- 100% of it"],
    ):
        subprocess.run(["git", *who, *words], cwd=tmp_path, env=os.environ | dated, capture_output=True, check=True)
    newest, tagged = changelog.entries()

    assert (newest.version, tagged.version, tagged.lines) == ("0.3.0", "0.2.0", ["New", "100% of it"])
    assert changelog.rpm(tagged) == "* Fri Jan 02 2026 T <t@example.org> - 1:0.2.0-1\n- New\n- 100%% of it\n"
    assert changelog.deb(tagged).startswith("cortex (0.2.0) unstable; urgency=medium\n\n  * New\n")


class Host:
    """One with `cards` in it, and with these generations installed; Python writes down what it was told."""

    def __init__(self, folder: Path, cards: str, generations: tuple[str, ...] = ("ampere", "hopper")) -> None:
        self.home, self.bin = folder / "home", folder / "bin"
        (self.home / "gpu").mkdir(parents=True)
        (self.home / "cuda").mkdir()
        for name in generations:
            shutil.copy(PACKAGING / f"gpu/{name}.conf", self.home / "gpu")
        if cards:
            self._program(self.bin / "nvidia-smi", f"cat <<END\n{cards}\nEND\n")
        self._program(self.home / "bin/python3", f'echo "$@" >{self.home}/told; mkdir -p {self.home}/cuda.new/jax\n')

    @staticmethod
    def _program(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": f"{self.bin}:/usr/bin:/bin", "NEURON_CUDA_HOME": str(self.home)}
        command = ["sh", str(PACKAGING / "gpu/neuron-cuda"), *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("nvidia-smi", path="/usr/bin:/bin") is not None, reason="there is a driver here")
@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ("9.0, 550.54.15, NVIDIA H100", "NVIDIA H100: hopper, driver 550.54.15\n"),
        ("9.0, 525.105.17, NVIDIA H100\n8.0, 525.105.17, NVIDIA A100", "NVIDIA A100: ampere, driver 525.105.17\n"),
        ("9.0, 470.57, NVIDIA H100", "neuron-cuda: hopper needs driver 525.60 or newer, and this is 470.57\n"),
        (
            "8.9, 550.1, NVIDIA L4",
            "neuron-cuda: NVIDIA L4 (compute capability 8.9) is of no generation that is installed here\n",
        ),
        ("", "neuron-cuda: there is no NVIDIA driver here (nvidia-smi is not on PATH)\n"),
    ],
)
def test_a_card_and_its_driver_are_checked_before_anything_is_fetched(tmp_path: Path, cards: str, said: str) -> None:
    host = Host(tmp_path, cards)
    done = host.run("install")

    assert said in done.stdout + done.stderr
    assert (done.returncode == 0) == (not said.startswith("neuron-cuda:"))
    assert (host.home / "told").exists() == (done.returncode == 0)


@pytest.mark.parametrize("words", [(), ("--from", "/media/wheels")])
def test_cudas_wheels_are_held_to_their_hashes_and_put_in_place_at_once(tmp_path: Path, words: tuple[str, ...]) -> None:
    host = Host(tmp_path, "9.0, 550.54.15, NVIDIA H100")
    done = host.run("install", *words)
    told = (host.home / "told").read_text()

    assert done.returncode == 0, done.stderr
    assert f"--require-hashes --only-binary :all: --no-warn-script-location --target {host.home}/cuda.new" in told
    assert told.strip().endswith(f"--requirement {host.home}/gpu/cuda12.lock")
    assert ("--no-index --find-links /media/wheels" in told) == bool(words)
    assert (host.home / "cuda/jax").is_dir()
    assert not (host.home / "cuda.new").exists()


def test_what_it_does_not_know_is_answered_with_what_it_does(tmp_path: Path) -> None:
    done = Host(tmp_path, "").run("upgrade")

    assert done.returncode == 2
    assert "neuron-cuda download DIR" in done.stderr
