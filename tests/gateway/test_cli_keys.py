"""`cortex keys`, and the key that the other commands show a gateway."""

import contextlib
import json
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest

from cortex_gateway.auth import keys as form
from cortex_gateway.auth.principal import Key, Limits
from cortex_gateway.auth.store import KeyReader
from cortex_gateway.cli import app as cli
from cortex_gateway.cli.api import CommandError, UsageError, read_key
from cortex_gateway.cli.keys import expiry, moment
from cortex_gateway.config import Auth
from tests.fakes.host_double import HostDouble
from tests.fakes.keyring import kept, made
from tests.fakes.live_gateway import LiveGateway, live_gateway

NODE = '[[neurons]]\nname = "a"\nendpoint = "http://127.0.0.1:9"\n'
FIELDS = [
    *("name", "id", "status", "scopes", "models", "requests_per_minute", "tokens_per_minute", "max_concurrent"),
    *("created", "expires", "revoked"),
]


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "cortex.toml"
    path.write_text(f'[auth]\nstate = "keys/state.db"\n{NODE}')
    return path


def run(config: pathlib.Path, *words: str) -> int:
    return cli.run(["keys", *words, "--config", str(config)])


def known(config: pathlib.Path) -> tuple[Key, ...]:
    with contextlib.closing(KeyReader(config.parent / "keys" / "state.db")) as reader:
        return reader.changed() or ()


def test_a_key_is_shown_once_and_kept_hashed(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone on stdout, for a script to take; nothing of its secret is in any file."""
    assert run(config, "add", "laptop") == 0

    said = capsys.readouterr()
    text = said.out.strip()
    (key,) = known(config)
    secret = text.rpartition(key.id)[2]
    assert form.identity(text) == key.id
    assert len(secret) > 20
    assert form.matches(text, key.digest)
    assert (key.scopes, key.models, key.limits, key.expires) == (frozenset({"infer"}), None, Limits(), None)
    assert "not shown again" in said.err
    assert text not in said.err
    assert not [file for file in (config.parent / "keys").iterdir() if secret.encode() in file.read_bytes()]


def test_everything_about_a_key_can_be_said(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And is shown again, but for the key."""
    words = ["--scope", "infer", "--scope", "admin", "--model", "org/m", "--model", "nick", "--expires", "30d"]
    limits = ["--requests-per-minute", "1", "--tokens-per-minute", "2", "--max-concurrent", "3"]
    assert run(config, "add", "ci", *words, *limits, "--json") == 0

    added = json.loads(capsys.readouterr().out)
    text = added.pop("key")
    assert list(added) == FIELDS
    assert (added["scopes"], added["models"], added["status"]) == (["infer", "admin"], ["org/m", "nick"], "active")
    assert [added[name] for name in FIELDS[5:8]] == [1, 2, 3]
    (key,) = known(config)
    assert key.expires == pytest.approx(key.created + 30 * 86400)

    for words in (["list"], ["list", "--json"], ["show", "ci"], ["show", added["id"], "--json"]):
        assert run(config, *words) == 0
        shown = capsys.readouterr()
        assert text.split("-", 3)[3] not in shown.out + shown.err
        assert key.digest.hex() not in shown.out
        assert added["id"] in shown.out
        if "--json" in words:
            assert json.loads(shown.out) in ([added], added)


def test_a_revoked_key_is_over_and_its_name_is_free(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`list` has it no more, `list --all` has."""
    run(config, "add", "laptop")
    assert run(config, "revoke", "laptop") == 0
    assert run(config, "revoke", "laptop") == 1
    run(config, "add", "laptop")
    capsys.readouterr()

    assert run(config, "list", "--json") == 0
    assert [one["status"] for one in json.loads(capsys.readouterr().out)] == ["active"]
    assert run(config, "list", "--all", "--json") == 0
    assert [one["status"] for one in json.loads(capsys.readouterr().out)] == ["revoked", "active"]
    assert run(config, "revoke", "laptop", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "revoked"
    assert all(key.revoked for key in known(config))


def test_an_expired_key_says_so(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the list, in red."""
    (config.parent / "keys").mkdir()
    kept(config.parent / "keys" / "state.db", [made("old", expires=1.0)])

    assert run(config, "list") == 0

    assert re.search(r"old\s+\w+\s+expired\s+infer\s+all\s+-\s+1970-01-01T00:00:01Z", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["add", "taken"], 1, "there is a key 'taken' already"),
        (["add", "two words"], 2, "'two words' cannot be a key's name"),
        (["add", ""], 2, "cannot be a key's name"),
        (["add", "x", "--scope", "root"], 2, "infer"),
        (["add", "x", "--requests-per-minute", "0"], 2, ">= 1"),
        (["add", "x", "--max-concurrent", "many"], 2, "many"),
        (["add", "x", "--expires", "6m"], 2, "a number with s, min, h, d or w"),
        (["add", "x", "--expires", "2001-01-01"], 2, "that day is over"),
        (["show", "takn"], 1, "there is no key 'takn' in .*; did you mean 'taken'"),
        (["revoke", "nobody"], 1, "there is no key 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_told(
    config: pathlib.Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, told: str
) -> None:
    """And changes nothing."""
    run(config, "add", "taken")
    before = known(config)
    capsys.readouterr()

    assert run(config, *words) == code

    assert re.search(told, capsys.readouterr().err)
    assert known(config) == before


def test_without_a_database_there_is_no_key(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And looking makes none."""
    assert run(config, "list") == 0
    assert "there is no key in" in capsys.readouterr().out
    assert run(config, "list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(config, "show", "x") == 1
    assert not (config.parent / "keys").exists()


def test_a_spoilt_database_is_one_line(config: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its path, for every command, and for `serve`."""
    (config.parent / "keys").mkdir()
    (config.parent / "keys" / "state.db").write_text("nonsense " * 1000)

    for words in (["keys", "list"], ["keys", "add", "x"], ["keys", "revoke", "x"], ["serve"]):
        free = ["--config", str(config)]
        if words == ["serve"]:
            config.write_text(
                config.read_text() + '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
            )
        assert cli.run([*words, *free]) == 1
        said = capsys.readouterr().err
        assert (len(said.splitlines()), "state.db: the keys cannot be read" in said) == (1, True)


@pytest.mark.parametrize(
    ("text", "seconds"), [("5s", 5), ("10min", 600), ("12h", 43_200), ("30d", 2_592_000), ("8w", 4_838_400)]
)
def test_a_span_counts_from_now(text: str, seconds: float) -> None:
    """Minutes are spelled `min`, so that nobody's 6m is six minutes instead of months."""
    assert expiry(text, 1000.0) == 1000.0 + seconds


def test_a_day_is_over_at_its_end() -> None:
    """In UTC, whatever the machine's clock shows."""
    assert moment(expiry("2030-12-31", 0.0)) == "2031-01-01T00:00:00Z"


@pytest.mark.parametrize(
    "text", ["", "0d", "-1d", "1.5h", "2030-13-01", "9999-12-31", "31.12.2030", "999999999d", "9999999999d", "1 d"]
)
def test_what_is_no_time_to_come_is_told(text: str) -> None:
    """Also what no calendar has."""
    with pytest.raises(UsageError, match="--expires"):
        expiry(text, 0.0)


@pytest.fixture
def gateway(tmp_path: pathlib.Path) -> Iterator[LiveGateway]:
    host = HostDouble(sizes={"m": 2048, "small": 1024}, loaded=["m"])
    state = kept(tmp_path / "state.db", [made("ops", "admin", "infer"), made("user")])
    with live_gateway({"beast": host}, state=state, auth=Auth(required=True)) as it:
        yield it


COMMANDS = (
    ["status"],
    ["status", "--json"],
    ["models"],
    ["load", "small"],
    ["load", "small", "--json"],
    ["unload", "small"],
    ["chat", "m", "hello"],
    ["chat", "m", "hello", "--json"],
)


@pytest.mark.parametrize("source", ["file", "environment"])
def test_every_command_shows_its_key(
    gateway: LiveGateway,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
) -> None:
    """From a file or from the environment; what it prints has nothing of it."""
    key, file = made("ops", "admin", "infer"), tmp_path / "key"
    file.write_text(f"{key.text}\n")
    how = ["--key-file", str(file)] if source == "file" else []
    monkeypatch.setenv("CORTEX_API_KEY", "wrong" if source == "file" else key.text)

    for words in COMMANDS:
        assert cli.run([*words, *how, "--endpoint", gateway.url]) == 0, words

    said = capsys.readouterr()
    assert key.text not in said.out + said.err


@pytest.mark.parametrize("words", COMMANDS)
def test_without_a_key_the_way_in_is_told(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """One line, code 1; a key that is wrong is not repeated."""
    for key in ("", made("nobody").text):
        monkeypatch.setenv("CORTEX_API_KEY", key)
        assert cli.run([*words, "--endpoint", gateway.url]) == 1
        said = capsys.readouterr().err
        assert "(the commands take one from --key-file or $CORTEX_API_KEY)" in said
        assert not key or key not in said


def test_a_key_without_the_scope_is_told(
    gateway: LiveGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it lacks."""
    monkeypatch.setenv("CORTEX_API_KEY", made("user").text)

    assert cli.run(["status", "--endpoint", gateway.url]) == 1

    assert "lacks the scope that is needed here: admin" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"sk-\xc3\xa9", b"\xff\xfe", b"a\nb", b"a\x00b"])
def test_a_file_without_a_key_is_told_and_not_shown(tmp_path: pathlib.Path, content: bytes) -> None:
    """A header with a line break in it would end in a message that says it."""
    file = tmp_path / "key"
    file.write_bytes(content)

    with pytest.raises(CommandError, match=f"--key-file {file}: holds no key") as told:
        read_key(file, {})
    assert "words" not in str(told.value)
    with pytest.raises(CommandError, match="cannot be read: No such file"):
        read_key(tmp_path / "none", {})
    with pytest.raises(CommandError, match="CORTEX_API_KEY: holds no key"):
        read_key(None, {"CORTEX_API_KEY": "a\nb"})
    assert read_key(None, {}) is None


def test_a_real_gateway_end_to_end(tmp_path: pathlib.Path) -> None:
    """Open to others it warns; a key made beside it counts; neither process shows it to other users."""
    config = tmp_path / "cortex.toml"
    config.write_text(f'[gateway]\nlisten = "0.0.0.0:0"\nmetrics_listen = "127.0.0.1:0"\ndrain_secs = 0\n{NODE}')
    cortex = [sys.executable, "-m", "cortex_gateway"]
    command = [*cortex, "serve", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = [process.stderr.readline() for _ in range(2)]
            url = lines[0].split(" cortex answers at ")[1].split(",")[0].replace("0.0.0.0", "127.0.0.1")
            add = [*cortex, "keys", "add", "ops", "--scope", "admin", "--config", str(config)]
            key = subprocess.run(add, capture_output=True, text=True, check=True).stdout.strip()
            far = {"x-forwarded-for": "192.0.2.1", "authorization": f"Bearer {key}"}
            statuses = [httpx.get(f"{url}/admin/fleet", headers=far, trust_env=False).status_code]
            end = time.monotonic() + 20
            while statuses[-1] != 200 and time.monotonic() < end:
                statuses.append(httpx.get(f"{url}/admin/fleet", headers=far, trust_env=False).status_code)
            arguments = pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.terminate()
        rest = process.stderr.read()

    assert "WARNING: whoever reaches 0.0.0.0:0 can use every model" in lines[1]
    assert set(statuses) <= {401, 200}
    assert statuses[-1] == 200
    assert key not in arguments.decode() + "".join(lines) + rest
