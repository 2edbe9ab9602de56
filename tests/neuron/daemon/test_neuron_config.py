"""The neuron's configuration: file, variables, and every complaint about them."""

import re
from pathlib import Path

import attrs
import pytest

from neuron_jax.common.errors import ConfigError
from neuron_jax.common.kinds import bare, entry_of
from neuron_jax.config import CacheConfig, ModelSpec, NeuronConfig, PeerConfig, load_config, unused_variables

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "neuron.example.toml"


def loaded(tmp_path: Path, text: str, **environ: str) -> NeuronConfig:
    path = tmp_path / "neuron.toml"
    path.write_text(text)
    return load_config(path, {"HOME": "/home/u", **environ})


def test_without_anything_the_defaults_hold() -> None:
    """A neuron listens on loopback, port 13131, and caches under the user's cache folder."""
    config = load_config(None, {"HOME": "/home/u"})

    assert (config.server.host, config.server.port) == ("127.0.0.1", 13131)
    assert config.cache.models_dir == Path("/home/u/.cache/cortex/models")
    assert config.cache.compile_dir == Path("/home/u/.cache/cortex/compiled")


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"CORTEX_CACHE": "/big", "XDG_CACHE_HOME": "/x"}, "/big"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/cortex"),
        ({"CORTEX_CACHE": "", "HOME": "/h"}, "/h/.cache/cortex"),
    ],
)
def test_the_cache_follows_the_users_variables(environ: dict[str, str], root: str) -> None:
    """CORTEX_CACHE, then XDG_CACHE_HOME, then ~/.cache."""
    assert load_config(None, environ).cache.models_dir == Path(root) / "models"


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    """NEURON_A__B replaces the file's value, numbers included."""
    config = loaded(tmp_path, "[server]\nport = 1\nhost = 'a'\n", NEURON_SERVER__PORT="2", NEURON_ENGINE__KV_MB="64")

    assert (config.server.host, config.server.port, config.engine.kv_mb) == ("a", 2, 64)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False)])
def test_a_switch_is_a_word(tmp_path: Path, text: str, value: bool) -> None:
    """In the file, TOML's own."""
    other = "false" if value else "true"

    config = loaded(tmp_path, f"[engine]\nprefix_cache = {other}", NEURON_ENGINE__PREFIX_CACHE=text)
    assert config.engine.prefix_cache is value


def test_lists_of_tables_can_be_set_by_variables(tmp_path: Path) -> None:
    """NEURON_DEFAULT_MODELS__0__MODEL_ID makes or changes an entry."""
    config = loaded(tmp_path, "", NEURON_DEFAULT_MODELS__0__MODEL_ID="demo", NEURON_DEFAULT_MODELS__0__DEVICES="1,2")

    assert config.default_models == (ModelSpec(model_id="demo", devices=(1, 2)),)


def test_a_whole_table_or_list_can_be_set_by_a_variable(tmp_path: Path) -> None:
    """In TOML, as at the gateway; single values go over it."""
    config = loaded(
        tmp_path,
        "[[peers]]\nname = 'x'\nendpoint = 'http://x'\n[server]\nport = 5\ndrain_secs = 9",
        NEURON_PEERS='[{name = "a", endpoint = "http://a:1"}, {name = "b", endpoint = "http://b:1"}]',
        NEURON_PEERS__1__NAME="c",
        NEURON_SERVER="{port = 7}",
        NEURON_MODELS='[{model_id = "m", devices = [0, 1], deterministic = true}]',
    )

    assert config.peers == (PeerConfig(name="a", endpoint="http://a:1"), PeerConfig(name="c", endpoint="http://b:1"))
    assert (config.server.port, config.server.drain_secs) == (7, 30.0)
    assert config.models == (ModelSpec(model_id="m", devices=(0, 1), deterministic=True),)


def test_a_variable_that_sets_nothing_is_told() -> None:
    """With the nearest that would; not what somebody else sets with reason."""
    environ = {
        "NEURON_PEER": "[]",
        "NEURON_ENGINE_KV_MB": "1",
        "NEURON_PORT": "9",
        "NEURON_WHATEVER": "",
        "NEURON_ENGINE__KV_MB": "1",
        "NEURON_PEERS": "[]",
        "NEURON_RT_LOG": "x",
        "NEURON_SERVICE_HOST": "10.0.0.1",
        "NEURON_GPU_PORT": "tcp://10.0.0.1:13131",
        "NEURON_PORT_13131_TCP": "tcp://10.0.0.1:13131",
        "CORTEX_WHATEVER": "",
    }

    assert unused_variables(environ) == [
        "environment: NEURON_ENGINE_KV_MB is not used; did you mean NEURON_ENGINE__KV_MB?",
        "environment: NEURON_PEER is not used; did you mean NEURON_PEERS?",
        "environment: NEURON_PORT is not used",
        "environment: NEURON_WHATEVER is not used",
    ]


def test_foreign_variables_with_our_prefix_are_left_alone() -> None:
    """NEURON_PORT is what an orchestrator sets for a service of that name, NEURON_RT_… another vendor's."""
    assert (
        load_config(None, {"NEURON_PORT": "tcp://10.0.0.1:1", "NEURON_RT_LOG": "x", "HOME": "/h"}).server.port == 13131
    )


def test_a_predecessors_file_is_understood(tmp_path: Path) -> None:
    """Top-level `port` and `[[harnesses]]` keep working."""
    config = loaded(
        tmp_path, 'port = 9\n[[harnesses]]\nname = "candle"\n[[default_models]]\nmodel_id = "a/b"\nharness="candle"\n'
    )

    assert config.server.port == 9
    assert config.default_models[0].model_id == "a/b"


WRONG = [
    ("[server]\nprot = 1", ['server.prot: is not a key here; allowed: "host"', '"drain_secs"', 'did you mean "port"?']),
    ("[servr]\nport = 1", ["servr: is not a key here", 'did you mean "server"?']),
    ("[server]\nport = 'x'", ['server.port: found "x"; allowed: a whole number from 0 to 65535']),
    ("[server]\nport = 70000", ["server.port: found 70000; allowed: a whole number from 0 to 65535"]),
    ("[server]\nport = true", ["server.port: found True; allowed: a whole number"]),
    ("[server]\nhost = '[::1]'", ['server.host: found "[::1]"; an address without a port', 'as "::1"']),
    ("[server]\nhost = 'a:1'", ['server.host: found "a:1"; must be a name or an IP address, without a port']),
    ("[server]\nhost = true", ["server.host: found True; allowed: a string, a name or an IP address"]),
    ("[ranks]\naddress = ''", ['ranks.address: found ""; must be a name or an IP address']),
    ("[[peers]]\nname = 'a'\nendpoint = 'http://::1:5'", ['peers[0].endpoint: found "http://::1:5"', 'as "[::1]:5"']),
    ("[engine]\npage_size = 24", ["engine.page_size: found 24; allowed: a whole number, a power of two up to 128"]),
    ("[engine]\npage_size = 256", ["engine.page_size: found 256", "a power of two"]),
    ("[engine]\nprefix_cache = 1", ["engine.prefix_cache: found 1; allowed: true or false"]),
    ("[admission]\nmax_wait_secs = -1", ["max_wait_secs: found -1; allowed: a number from 0 to 86400"]),
    ("models = 3", ["models: found 3; allowed: a list of tables [[models]]"]),
    ("server = 3", ["server: found 3; allowed: a table [server]"]),
    ("[models]\nmodel_id = 'a'", ["models: found a table; allowed: a list of tables [[models]]"]),
    ("[[models]]\nquant = 'int8'", ["models[0].model_id: is missing; allowed: a string of 1 to 512 characters"]),
    ("[[models]]\nmodel_id = ' '", ['models[0].model_id: found " "; allowed: a string of 1 to 512 characters']),
    (
        "[[models]]\nmodel_id = 'a'\nquant = 'int9'",
        [
            'models[0].quant: found "int9"; allowed: "auto", "none", "stored", "int8", "int4", "fp8"; did you mean "int8"?'
        ],
    ),
    ("[[models]]\nmodel_id = 'a'\ndevices = [0, 0]", ["models[0].devices: found [0, 0]", "different device indices"]),
    ("[[models]]\nmodel_id = 'a'\ndevices = [0, 'x']", ['models[0].devices[1]: found "x"; allowed: a whole number']),
    ("[[models]]\nmodel_id = 'a'\naliases = ['']", ["models[0].aliases: found", "of strings that are not empty"]),
    ("[[models]]\nmodel_id = 'a'\naliases = ['x']\n[[models]]\nmodel_id = 'x'", ['models: found "x" 2 times']),
    ("[[harnesses]]\nname = 'vllm'", ['harnesses[0].name: found "vllm"; allowed: "jax", "candle"']),
    ("port = 1\n[server]\nport = 2", ["port: found 1, and server.port is 2; give one of them"]),
    ("port = 1\n[server]\nport = 13131", ["port: found 1, and server.port is 13131"]),
    ("[cache]\nmodels_dir = ''", ['cache.models_dir: found ""; allowed: a path']),
    ("nonsense", ["not valid TOML"]),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_a_wrong_file_is_named_with_key_found_and_allowed(tmp_path: Path, text: str, words: list[str]) -> None:
    """Every mistake in a file gives one ConfigError that says where, what and what instead."""
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)

    assert str(raised.value).startswith(str(tmp_path / "neuron.toml"))
    assert not [word for word in words if word not in str(raised.value)], str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("NEURON_SERVER__PORT", "x", 'found "x"; allowed: a whole number from 0 to 65535'),
        ("NEURON_SERVER__PROT", "1", 'found "prot"; allowed: "host", "port", '),
        ("NEURON_SERVR__PORT", "1", 'found "servr"; allowed: "server", "cache", '),
        ("NEURON_MODELS__3__MODEL_ID", "a", 'found "3"; there are 0 models; the next is 0'),
        ("NEURON_SERVER__PORT__X", "a", 'found "x"; allowed: nothing'),
        ("NEURON_SERVER__", "a", 'found ""; allowed: "host"'),
        ("NEURON_ENGINE__PREFIX_CACHE", "maybe", 'found "maybe"; allowed: true or false'),
        ("NEURON_MODELS__0__DEVICES", "0", "models[0].model_id: is missing; allowed: a string of 1 to 512 characters"),
        (
            "NEURON_DEFAULT_MODELS__0__DEVICES",
            "0,x",
            'default_models[0].devices[1]: found "x"; allowed: a whole number',
        ),
        ("NEURON_PEERS", "[{", "not TOML"),
        ("NEURON_PEERS", "3", "found 3; allowed: a list of tables [[peers]]"),
        ("NEURON_PEERS", '{name = "a"}', "found a table; allowed: a list of tables [[peers]]"),
        ("NEURON_PEERS", '[{name = "a", endpoint = "a:1"}]', 'peers[0].endpoint: found "a:1"; must be a URL'),
        ("NEURON_PEERS", '[{name = "a"}]', "peers[0].endpoint: is missing; allowed: a string, a URL"),
        ("NEURON_PEERS", '[{nam = "a", name = "a", endpoint = "http://a"}]', "peers[0].nam: is not a key here"),
        ("NEURON_ENGINE", "{cpu_devices = 0}", "engine.cpu_devices: found 0; allowed: a whole number from 1 to 64"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, words: str) -> None:
    """A mistake in the environment names the variable, not the file."""
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, "[server]\nport = 1", **{name: value})

    assert all(problem.startswith(f"environment: {name}: ") for problem in raised.value.problems)
    assert words in str(raised.value)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    """Of the file and of the environment, so that one edit mends them all."""
    text = "x = 1\n[server]\nport = -1\nhost = 3\n[engine]\nkv = 1\n[[models]]\nquant = 'int9'\n"
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text, NEURON_RANKS__SECRET="", NEURON_ENGIN__KV_MB="1")

    told = ["NEURON_ENGIN__KV_MB", "server.host", "server.port", "engine.kv", "NEURON_RANKS__SECRET"]
    told += ["models[0].model_id", "models[0].quant", "x"]
    assert [problem.split(": ")[1] for problem in raised.value.problems] == told


def test_what_a_variable_leaves_out_of_a_table_has_its_default(tmp_path: Path) -> None:
    """The folders of the cache, too, which only the program knows."""
    config = loaded(tmp_path, "port = 5", NEURON_CACHE="{models_dir = '/m'}", NEURON_SERVER="{drain_secs = 1}")

    assert config.cache == CacheConfig(models_dir=Path("/m"), compile_dir=Path("/home/u/.cache/cortex/compiled"))
    assert (config.server.port, config.server.drain_secs) == (5, 1.0)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """A path that was given must exist."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml", {})


def test_the_environment_is_not_shown(tmp_path: Path) -> None:
    """The inherited environment may hold secrets, so it is in no printed config."""
    assert "hunter2" not in repr(loaded(tmp_path, "", PASSWORD="hunter2"))


@pytest.mark.parametrize(
    ("text", "environ", "secret"),
    [
        ("secret = 'a'", {}, "a"),
        ("secret_file = 'word'", {}, "of the file"),
        ("", {"NEURON_SECRET": "of the environment"}, "of the environment"),
        ("secret = 'a'", {"NEURON_SECRET": "b"}, "b"),
        ("secret_file = 'word'", {"NEURON_SECRET": "b"}, "b"),
        ("secret = 'a'", {"NEURON_SECRET_FILE": "word"}, "of the file"),
    ],
)
def test_where_the_secret_comes_from(tmp_path: Path, text: str, environ: dict[str, str], secret: str) -> None:
    """A key or a file beside the configuration, and the environment before both. Peers are shown it by default."""
    (tmp_path / "word").write_text("of the file\n")
    config = loaded(tmp_path, text, **environ)

    assert (config.access.secret, config.ranks.secret) == (secret, secret)
    assert loaded(tmp_path, text + "\n[ranks]\nsecret = 'r'", **environ).ranks.secret == "r"


@pytest.mark.parametrize(
    ("text", "environ", "words"),
    [
        (
            "secret = 'a'\nsecret_file = 'word'",
            {},
            "neuron.toml: secret: is there besides secret_file; give one of them",
        ),
        ("secret_file = 'none'", {}, "none cannot be read: No such file"),
        ("secret_file = 'empty'", {}, "secret_file: allowed: a word of visible ASCII characters in "),
        ("secret_file = 'binary'", {}, "secret_file: allowed: a word of visible ASCII characters in "),
        ("secret = 'hunter2\u00e9'", {}, "neuron.toml: secret: allowed: a word of visible ASCII characters"),
        ("secret = ['hunter2']", {}, "neuron.toml: secret: allowed: a word"),
        ("[ranks]\nsecret = '\thunter2'", {}, "neuron.toml: ranks.secret: allowed: a word"),
        ("[peers]\nname = 'a'\nsecret = 'hunter2'", {}, "peers: found a table; allowed: a list of tables [[peers]]"),
        ("", {"NEURON_SECRET": "hunter2\n"}, "environment: NEURON_SECRET: allowed: a word"),
        ("", {"NEURON_PEERS": '[{name = "a", secret = "hunter2"'}, "NEURON_PEERS: not TOML"),
        ("", {"NEURON_PEERS": '{name = "a", secret = "hunter2"}'}, "NEURON_PEERS: found a table"),
        ("trust_network = 1", {}, "trust_network: found 1; allowed: true or false"),
    ],
)
def test_a_wrong_secret_is_told_and_not_shown(tmp_path: Path, text: str, environ: dict[str, str], words: str) -> None:
    (tmp_path / "word").write_text("of the file")
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xffhunter2")
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text, **environ)

    assert words in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_secrets_are_neither_shown_nor_inherited(tmp_path: Path) -> None:
    """Nobody who computes needs them."""
    secrets = {
        "NEURON_SECRET": "hunter2",
        "NEURON_RANKS__SECRET": "hunter2",
        "NEURON_PEERS": '[{name = "a", endpoint = "http://a", secret = "hunter2"}]',
        "CORTEX_API_KEY": "hunter2",
        "CORTEX_GATEWAY__NEURON_SECRET": "hunter2",
    }
    config = loaded(tmp_path, "", **secrets, NEURON_ENGINE__KV_MB="1")

    assert "hunter2" not in repr(config)
    assert config.environ == {"HOME": "/home/u", "NEURON_ENGINE__KV_MB": "1"}


@pytest.mark.parametrize(
    "name",
    sorted(
        {
            item.name
            for table in attrs.fields(NeuronConfig)
            for item in attrs.fields(
                bare(table.type) if attrs.has(table.type) else entry_of(table.type) or NeuronConfig
            )
        }
    ),
)
def test_every_setting_is_read_by_somebody(name: str) -> None:
    """One that nobody reads is a lie. Of a file with a secret the secret is read, and a harness is chosen by nobody."""
    sources = [path for path in (ROOT / "neuron_jax").rglob("*.py") if path != ROOT / "neuron_jax/config.py"]

    assert name in ("harness", "secret_file") or any(re.search(rf"\.{name}\b", path.read_text()) for path in sources)


def test_the_example_names_every_setting() -> None:
    """The example file loads, changes nothing but its models, and shows every key of every table."""
    config = load_config(EXAMPLE, {"HOME": "/home/u"})
    plain = load_config(None, {"HOME": "/home/u"})

    names = ("access", "server", "engine", "admission", "watchdog", "ranks", "peers")
    assert [getattr(config, name) for name in names] == [getattr(plain, name) for name in names]
    text = EXAMPLE.read_text()
    tables = (*(type(getattr(config, name)) for name in (*names[:-1], "cache")), PeerConfig, ModelSpec)
    assert not [item.name for table in tables for item in attrs.fields(table) if f"{item.name} = " not in text]
