"""Both programs under systemd: what they tell it, as real processes, and what it says of their units."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.engine_double import ROOT
from tests.fakes.programs import program

UNITS = ROOT / "packaging" / "systemd"
CONFIGS = {
    "cortex_gateway": '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
    '[[neurons]]\nname = "a"\nendpoint = "http://127.0.0.1:9"\n',
    "neuron_jax": "[server]\nport = 0\n",
}


@pytest.mark.parametrize("package", CONFIGS)
def test_it_is_ready_alive_and_then_stopping(package: str, tmp_path: Path) -> None:
    """In this order, and it ends with zero."""
    config = tmp_path / "config.toml"
    config.write_text(CONFIGS[package])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(60)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        environ = {**os.environ, **told, "CORTEX_CACHE": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
        command = [sys.executable, "-m", package, "serve", "--config", str(config)]
        with program(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE) as process:
            assert [end.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            process.send_signal(signal.SIGTERM)
            while (word := end.recv(100)) == b"WATCHDOG=1":
                pass
            assert word == b"STOPPING=1"
            assert process.wait(timeout=60) == 0


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
@pytest.mark.parametrize(("unit", "most"), [("cortex", 2.0), ("neuron", 4.0)])
def test_a_unit_may_do_little(unit: str, most: float) -> None:
    """By systemd's own count of what it could do to the machine, from 0 to 10."""
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={most * 10:.0f}"]
    done = subprocess.run([*command, str(UNITS / f"{unit}.service")], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd-analyze here")
@pytest.mark.parametrize("unit", ["cortex", "neuron"])
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    """Without a warning, once its program is there."""
    text = (UNITS / f"{unit}.service").read_text().replace("ExecStart=/usr/bin/", f"ExecStart={sys.prefix}/bin/")
    path = tmp_path / f"{unit}.service"
    path.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
