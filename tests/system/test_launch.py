"""Real agents, where they are on the PATH, set up by `cortex launch` against a live gateway: their tools change a file.

npm has them: @openai/codex, @anthropic-ai/claude-code, opencode-ai, cline, @continuedev/cli; PyPI has aider-chat, which reads
edits in what is said. Each gets an empty home.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from cortex_gateway.placement.snapshot import Limit, ModelConfig
from tests.fakes.live_gateway import live_gateway
from tests.fakes.scripted_model import ScriptedModel

ROOT = pathlib.Path(__file__).parents[2]
AGENTS: dict[str, Sequence[str]] = {
    "claude": ("-p", "make a file", "--allowedTools", "Bash"),
    "codex": ("exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", "make a file"),
    "opencode": ("run", "make a file"),
    "cline": ("--json", "make a file"),
    "continue": ("-p", "make a file", "--auto"),
    "aider": ("--message", "make a file", "--yes-always", "--no-git", "--no-check-update", "made.txt"),
}
SAID = "made.txt\n```\nby the model\n```\nThe file is written.\n"


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_writes_a_file(agent: str, tmp_path: pathlib.Path) -> None:
    """With the model that it was told of; and what was written can be undone."""
    program = "cn" if agent == "continue" else agent
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} on the PATH")
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    model = ScriptedModel(command="echo by the model > made.txt", text=SAID)
    models = (ModelConfig(id="demo", limit=Limit(context=131_072)),)
    with live_gateway({"double": model}, models=models) as gateway:
        environment = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "CORTEX_ENDPOINT": gateway.url,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "cortex_gateway", "launch", agent]
        ended = subprocess.run(
            [*command, "--", *AGENTS[agent]],
            cwd=work,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    if agent != "claude":  # which has no files
        undone = subprocess.run([*command, "--undo"], cwd=work, env=environment, timeout=60, check=False)
        assert undone.returncode == 0

    assert ended.returncode == 0, ended.stderr
    assert (work / "made.txt").read_text() == "by the model\n"
    assert "The file is written." in ended.stdout
    assert {request.body["model"] for request in model.asked} == {"demo"}
