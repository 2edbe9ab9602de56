"""`cortex launch` against a live gateway, in a process and a home of its own: what a client is started with."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_gateway.cli.api import CommandError
from cortex_gateway.cli.launch.command import pick, served
from cortex_gateway.placement.snapshot import Limit, ModelConfig
from tests.fakes.host_double import HostDouble
from tests.fakes.live_gateway import LiveGateway, live_gateway

ROOT = pathlib.Path(__file__).parents[3]
CLIENT = """#!{python}
import json, os, sys
print(json.dumps({{"words": sys.argv[1:], "environment": dict(os.environ)}}))
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[LiveGateway]:
    host = HostDouble(sizes={"m": 2048, "small": 1024}, loaded=["m"])
    models = (ModelConfig(id="m", limit=Limit(context=8192)), ModelConfig(id="small"))
    with live_gateway({"beast": host}, models=models, aliases={"nick": "m"}) as it:
        yield it


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    """A home with programs in `bin`, each of which tells how it was started."""
    (tmp_path / "bin").mkdir()
    for name in ("claude", "codex", "opencode"):
        program = tmp_path / "bin" / name
        program.write_text(CLIENT.format(python=sys.executable))
        program.chmod(0o755)
    return tmp_path


def launch(gateway: LiveGateway, home: pathlib.Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": str(home / "bin"), "CORTEX_ENDPOINT": gateway.url, **more}
    command = [sys.executable, "-m", "cortex_gateway", "launch", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_claude_is_started_with_its_environment(gateway: LiveGateway, home: pathlib.Path) -> None:
    """And the words behind --. The id is the model's own, also where an alias was named; no file is written."""
    ended = launch(gateway, home, "claude", "--model", "nick", "--", "-p", "hi", CORTEX_API_KEY="cx-1", KEPT="yes")

    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["words"] == ["-p", "hi"]
    environment = told["environment"]
    assert (environment["ANTHROPIC_BASE_URL"], environment["ANTHROPIC_AUTH_TOKEN"]) == (gateway.url, "cx-1")
    assert (environment["ANTHROPIC_MODEL"], environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) == ("m", "8192")
    assert environment["KEPT"] == "yes"
    assert [path.name for path in home.iterdir()] == ["bin"]


def test_printed_lines_give_a_shell_the_same_environment(gateway: LiveGateway, home: pathlib.Path) -> None:
    """The key comes from the shell's own variable; nothing is written."""
    started = json.loads(launch(gateway, home, "codex", CORTEX_API_KEY="cx-1").stdout)["environment"]
    launch(gateway, home, "codex", "--undo")
    printed = launch(gateway, home, "codex", "--print", CORTEX_API_KEY="cx-1").stdout
    script = f'{printed}\nexec "{home}/bin/codex"'
    shell = {"HOME": str(home), "PATH": str(home / "bin"), "CORTEX_ENDPOINT": gateway.url, "CORTEX_API_KEY": "cx-1"}
    ended = subprocess.run(
        ["/bin/sh", "-c", script], env=shell, capture_output=True, text=True, timeout=120, check=True
    )

    assert "cx-1" not in printed
    own = {"PWD", "_", "SHLVL", "OLDPWD", "LC_CTYPE"}
    assert {**json.loads(ended.stdout)["environment"], **dict.fromkeys(own)} == {**started, **dict.fromkeys(own)}
    assert not (home / ".codex").exists()


def test_a_configuration_is_merged_and_undone(gateway: LiveGateway, home: pathlib.Path) -> None:
    path = home / ".config" / "opencode" / "opencode.jsonc"
    path.parent.mkdir(parents=True)
    path.write_text('{\n  // mine\n  "model": "x/y",\n}\n')
    before = path.read_bytes()

    ended = launch(gateway, home, "opencode")
    assert json.loads(ended.stdout)["words"] == ["--model", "cortex/m"]
    assert "// mine" in path.read_text()
    assert '"x/y"' in path.read_text()
    assert f"{gateway.url}/v1" in path.read_text()
    assert "opencode.jsonc is written" in ended.stderr

    assert launch(gateway, home, "opencode", "--undo").returncode == 0
    assert path.read_bytes() == before


def test_a_client_that_is_not_installed(gateway: LiveGateway, home: pathlib.Path) -> None:
    """What lives by files is set up; what lives by its environment cannot be."""
    zed, webui = launch(gateway, home, "zed"), launch(gateway, home, "open-webui")

    assert (zed.returncode, webui.returncode) == (0, 1)
    assert "zed is not on the PATH: start it yourself" in zed.stderr
    assert json.loads((home / ".config/zed/settings.json").read_text())["language_models"]
    assert "open-webui is not on the PATH" in webui.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["emacs"], 2, "claude, codex, opencode"),
        (["claude", "--model", "nik"], 1, "did you mean 'nick'?"),
        (["claude", "--model", "small"], 1, "`cortex load small` first"),
        (["zed", "--undo"], 1, "nothing to undo"),
    ],
)
def test_what_cannot_be_is_told(
    gateway: LiveGateway, home: pathlib.Path, words: list[str], code: int, told: str
) -> None:
    ended = launch(gateway, home, *words)

    assert (ended.returncode, ended.stdout) == (code, "")
    assert told in " ".join(ended.stderr.replace("│", " ").split())


def entry(name: str, *, loaded: bool = True, **more: Any) -> dict[str, Any]:
    return {"id": name, "loaded": loaded, "limit": {"context": 10}, **more}


def test_the_first_that_is_loaded_is_picked() -> None:
    """Not an alias, and not one that would have to be loaded."""
    listing = [entry("nick", alias_of="b"), entry("a", loaded=False), entry("b")]

    assert pick(listing, None)["id"] == "b"
    assert pick(listing, "a")["id"] == "a"
    assert pick(listing, "nick")["id"] == "b"
    with pytest.raises(CommandError, match="no model is loaded"):
        pick(listing[:2], None)


def test_features_are_read() -> None:
    assert served(entry("m", tool_call=True, reasoning=True, capabilities=["text", "image"])).images
    assert not served(entry("m")).tools
