"""The real Codex (npm: @openai/codex), where it is on the PATH, against a live gateway: its tools change a file on disk."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests.fakes.live_gateway import live_gateway
from tests.fakes.scripted_model import ScriptedModel

CODEX = shutil.which("codex")
CONFIG = """
model = "demo"
model_provider = "cortex"
[model_providers.cortex]
name = "cortex"
base_url = "{url}/v1"
wire_api = "responses"
"""


@pytest.mark.slow
@pytest.mark.skipif(CODEX is None, reason="there is no codex on the PATH")
def test_codex_writes_a_file(tmp_path: pathlib.Path) -> None:
    """Two requests: the call, and the end of the turn; the second begins with the first."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    model = ScriptedModel(command="echo by the model > made.txt")
    with live_gateway({"double": model}) as gateway:
        (home / "config.toml").write_text(CONFIG.format(url=gateway.url))
        command = [CODEX or "", "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "make a file"]
        ended = subprocess.run(
            command,
            cwd=work,
            env={**os.environ, "CODEX_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    assert ended.returncode == 0, ended.stderr
    assert (work / "made.txt").read_text() == "by the model\n"
    assert "The file is written." in ended.stdout
    first, second = (request.body["messages"] for request in model.asked)
    assert second[: len(first)] == first
