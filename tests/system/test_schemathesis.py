"""Whatever its OpenAPI document lets a client send, and much that it does not: the gateway before a real daemon answers.

Schemathesis (PyPI) is not among the project's packages: the test runs where `schemathesis` is on the PATH.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes.live_gateway import in_thread, live_gateway
from tests.fakes.live_neuron import live_neuron

# 503: there is no such model that could be loaded here, which is what is to be said then.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
"""
CHECKS = "not_a_server_error,content_type_conformance,status_code_conformance"
PROGRAM = shutil.which("schemathesis")


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="schemathesis is not on the PATH")
def test_no_request_makes_the_gateway_fail(tmp_path: Path) -> None:
    """Some three thousand of them, the same each time."""
    settings = tmp_path / "schemathesis.toml"
    settings.write_text(CONFIG)
    with in_thread(live_neuron(tmp_path)) as neuron, live_gateway({"neuron": neuron.url}) as gateway:
        command = [str(PROGRAM), "--config-file", str(settings), "run", f"{gateway.url}/openapi.json"]
        command += ["--url", gateway.url, "--checks", CHECKS, "--max-examples", "8", "--seed", "1"]
        command += ["--request-timeout", "20", "--generation-database", "none", "--exclude-path-regex", "/admin/"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.returncode == 0, done.stdout[-20_000:]
