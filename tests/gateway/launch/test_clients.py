"""What each client is told, byte for byte, and what must hold of it whatever the model."""

import json
import pathlib
import tomllib

import attrs
import pytest
import yaml

from cortex_gateway.cli.launch.clients import CLIENTS
from cortex_gateway.cli.launch.command import shown
from cortex_gateway.cli.launch.setup import Asked, OwnFile, ServedModel, SharedFile

GOLDEN = pathlib.Path(__file__).parent / "golden"
CODER = ServedModel(id="org/coder-30b", context=131_072, output=131_072, tools=True, reasoning=True)
SMALL = ServedModel(id="demo", context=8192)
ASKED = Asked(
    url="http://127.0.0.1:31313",
    model=CODER,
    models=(CODER, SMALL),
    home="/home/me",
    config="/home/me/.config",
    codex="/home/me/.codex",
    key="cx-secret",
)


@pytest.mark.parametrize("client", CLIENTS)
def test_it_is_told_this(client: str) -> None:
    """The whole of it, as `cortex launch CLIENT --print` shows it. The files in golden/ were tried with the clients."""
    assert shown(client, ASKED) == (GOLDEN / f"{client}.txt").read_text()


@pytest.mark.parametrize("client", CLIENTS)
def test_a_key_is_given_and_never_printed(client: str) -> None:
    """Without one the client shows `none`, and nothing is asked of the shell."""
    setup = CLIENTS[client](ASKED)

    assert "cx-secret" in str(attrs.asdict(setup))
    assert "cx-secret" not in shown(client, ASKED) + repr(setup) + repr(ASKED)
    assert "{CORTEX_API_KEY}" not in shown(client, attrs.evolve(ASKED, key=None)).replace("{env:CORTEX_API_KEY}", "")


@pytest.mark.parametrize("client", CLIENTS)
def test_the_default_of_the_user_stays(client: str) -> None:
    """Beside the provider of our own name, whatever a shared file gets yields to what is there, or is refused."""
    for file in CLIENTS[client](ASKED).files:
        if isinstance(file, SharedFile):
            assert all(member.yields or member.taken or member.path[-1] == "cortex" for member in file.members)


def test_claude_has_the_window_and_one_model() -> None:
    """All slots are the model's own id; an answer leaves room for the prompt. It complains of a small window to compact by."""
    told = CLIENTS["claude"](attrs.evolve(ASKED, model=SMALL)).environment

    assert {value for name, value in told.items() if "MODEL" in name} == {"demo"}
    assert (told["CLAUDE_CODE_MAX_CONTEXT_TOKENS"], told["CLAUDE_CODE_MAX_OUTPUT_TOKENS"]) == ("8192", "2048")
    assert "CLAUDE_CODE_AUTO_COMPACT_WINDOW" not in told
    assert "claude-" in CLIENTS["claude"](attrs.evolve(ASKED, model=attrs.evolve(SMALL, id="claude-x"))).notes[0]


def test_a_strange_id_is_quoted_everywhere() -> None:
    """In TOML, YAML, JSON and the shell."""
    odd = attrs.evolve(CODER, id="a \"b\" 'c' $(d) \\ # : é")
    asked = attrs.evolve(ASKED, model=odd, models=(odd,))
    profile, catalogue = CLIENTS["codex"](asked).files
    (assistant,) = CLIENTS["continue"](asked).files
    assert isinstance(profile, OwnFile)
    assert isinstance(catalogue, OwnFile)
    assert isinstance(assistant, OwnFile)

    assert tomllib.loads(profile.text)["model"] == odd.id
    assert json.loads(catalogue.text)["models"][0]["slug"] == odd.id
    assert yaml.safe_load(assistant.text)["models"][0]["model"] == odd.id
    assert "$(d)" not in shown("claude", asked).replace("'a \"b\" '\"'\"'c'\"'\"' $(d) \\ # : é'", "")


@pytest.mark.parametrize(("context", "output", "answer"), [(8192, None, 2048), (8192, 100, 100), (1, None, 1)])
def test_an_answer_is_a_quarter_of_the_window_at_most(context: int, output: int | None, answer: int) -> None:
    assert ServedModel(id="m", context=context, output=output).answer == answer
