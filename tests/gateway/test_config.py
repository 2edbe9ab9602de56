"""cortex.toml, models.toml and the environment: what is read, and how what is wrong is told."""

import pathlib
import re

import attrs
import pytest

from cortex_gateway import config as cfg
from cortex_gateway.config import (
    AnswersConfig,
    Auth,
    Config,
    ConfigError,
    EvictionConfig,
    GatewayConfig,
    Neuron,
    find_config,
    load_config,
)
from cortex_gateway.placement.snapshot import Cost, Limit, ModelConfig

ROOT = pathlib.Path(__file__).parents[2]
NODE = '[[neurons]]\nname = "a"\nendpoint = "http://a:13131"\n'


def written(folder: pathlib.Path, cortex: str, models: str | None = None) -> pathlib.Path:
    path = folder / "cortex.toml"
    path.write_text(cortex if models is None else f'models_config = "models.toml"\n{cortex}')
    if models is not None:
        (folder / "models.toml").write_text(models)
    return path


def problems(path: pathlib.Path | None, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {})
    return list(caught.value.problems)


def test_without_a_file_there_is_one_neuron_on_this_machine() -> None:
    """Loopback on every port."""
    assert attrs.evolve(load_config(None, {}), state=None) == Config()
    assert Config().neurons == (Neuron(name="local", endpoint="http://127.0.0.1:13131"),)
    assert Config().gateway.listen == "127.0.0.1:31313"


def test_everything_that_may_be_written_is_read(tmp_path: pathlib.Path) -> None:
    """Both files, each kind of value."""
    path = written(
        tmp_path,
        '[gateway]\nlisten = "[::1]:80"\nwait_secs = 5\n[eviction]\nstrategy = "priority"\ndefrag_after_cycles = 3\n'
        + NODE,
        '[[models]]\nid = "m"\nquant = "int8"\nkv_dtype = "fp8"\ndeterministic = true\n'
        'vram_mb = 9\npinned_on = ["a"]\nlimit = { context = 4096 }\n'
        'cost = { input = 1 }\n[aliases]\nnick = "m"\n',
    )

    assert load_config(path, {}) == Config(
        state=tmp_path / "cortex-state.db",
        gateway=GatewayConfig(listen="[::1]:80", wait_secs=5.0),
        eviction=EvictionConfig(strategy="priority", defrag_after_cycles=3),
        neurons=(Neuron(name="a", endpoint="http://a:13131"),),
        models=(
            ModelConfig(
                id="m",
                quant="int8",
                kv_dtype="fp8",
                deterministic=True,
                vram_mb=9,
                pinned_on=("a",),
                limit=Limit(context=4096),
                cost=Cost(input=1.0),
            ),
        ),
        aliases={"nick": "m"},
    )


@pytest.mark.parametrize(
    ("cortex", "told"),
    [
        ("[gateway]\nlistn = 1\n", 'gateway.listn: is not a key here; allowed: "listen", .* did you mean "listen"'),
        ("[gatway]\n", 'gatway: is not a key here; .* did you mean "gateway"'),
        (
            '[gateway]\nhosts = ["a", "b:80"]\n',
            r'gateway.hosts: found \["a", "b:80"\]; allowed: a list of names without a port, as "llm.example.com"',
        ),
        (
            '[gateway]\norigins = ["https://a/"]\n',
            r'gateway.origins: found \["https://a/"\]; allowed: a list of origins as a browser writes them',
        ),
        ("[gateway]\nmax_body_mb = 0\n", "gateway.max_body_mb: found 0; allowed: a whole number from 1 on"),
        ('[gateway]\nmax_body_mb = "8"\n', 'gateway.max_body_mb: found "8"; allowed: a whole number'),
        ("[gateway]\nmax_body_mb = true\n", "gateway.max_body_mb: found True; allowed: a whole number"),
        ("[gateway]\nwait_secs = nan\n", "gateway.wait_secs: found nan; allowed: a finite number"),
        ("gateway = 3\n", "gateway: found 3; allowed: a table"),
        ('[gateway]\nlisten = "31313"\n', 'gateway.listen: found "31313"; must be host:port, as 127.0.0.1:31313'),
        ('[gateway]\nlisten = "a:99999"\n', 'gateway.listen: found "a:99999"; a port is a number from 0 to 65535'),
        ('[gateway]\nlisten = "::1"\n', r'gateway.listen: found "::1"; an IPv6 address .* as "\[::1\]:31313"'),
        ('[gateway]\nmetrics_listen = "[::1:5"\n', r'gateway.metrics_listen: found "\[::1:5"; the port stands behind'),
        ('[eviction]\nstrategy = "fifo"\n', 'eviction.strategy: found "fifo"; allowed: "lru", "priority"'),
        ('[eviction]\nstrategy = "lrv"\n', 'did you mean "lru"'),
        (
            "[entitlements]\nrequire_auth = false\n",
            r"entitlements: .* `cortex keys add NAME` .* \[auth\] required = true",
        ),
        ('[auth]\nrequired = "yes"\n', 'auth.required: found "yes"; allowed: true or false'),
        ("[auth]\nrequire = true\n", 'auth.require: is not a key here; .* did you mean "required"'),
        ("[upstream]\nenabled = false\n", "upstream: an upstream authority is not in this release"),
        ('[[neurons]]\nname = "b"\n', r"neurons\[1\].endpoint: is missing"),
        ('[[neurons]]\nname = "b"\nendpoint = "b:13131"\n', r"neurons\[1\].endpoint: found .* must be a URL"),
        ('[[neurons]]\nname = "b"\nendpoint = "http://::1:5"\n', r'neurons\[1\].endpoint: .* as "\[::1\]:5"'),
        (NODE.replace("//a", "//b"), 'neurons.name: found "a" 2 times'),
        (NODE.replace('"a"', '"b"'), 'neurons.endpoint: found "http://a:13131" 2 times'),
        (
            '[gateway]\nlisten = "127.0.0.1:80"\nmetrics_listen = "127.0.0.1:80"\n',
            'gateway.metrics_listen: found "127.0.0.1:80"; must be another than listen',
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: pathlib.Path, cortex: str, told: str) -> None:
    """File, key, what was found and what is allowed."""
    top, rest = (cortex + NODE, "") if not cortex.startswith("[[") else (NODE, cortex)
    path = written(tmp_path, top + rest)

    (problem,) = problems(path)

    assert problem.startswith(f"{path}: ")
    assert re.search(told, problem), problem


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ("[[models]]\nid = 'm'\nvram = 3\n", r'models\[0\].vram: is not a key here; .* did you mean "vram_mb"'),
        ("[[models]]\nquant = 'auto'\n", r"models\[0\].id: is missing"),
        ("[[models]]\nid = ''\n", r'models\[0\].id: found ""'),
        ("[[models]]\nid = 'm'\npinned_on = ['b']\n", r'models\[0\].pinned_on: found "b"; allowed: "a"'),
        ("[[models]]\nid = 'm'\npinned_on = 'a'\n", r'models\[0\].pinned_on: found "a"; allowed: a list'),
        ("[[models]]\nid = 'm'\nlimit = 5\n", r"models\[0\].limit: found 5; allowed: a table"),
        ("[[models]]\nid = 'm'\ncost = { input = -1 }\n", r"models\[0\].cost.input: found -1"),
        ("[[models]]\nid = 'm'\n[[models]]\nid = 'm'\n", 'models.id: found "m" 2 times'),
        ("[aliases]\nx = 5\n", "aliases.x: found 5; allowed: a string"),
        ("aliases = 5\n", "aliases: found 5; allowed: a table"),
        ("[aliases]\nx = 'y'\ny = 'm'\n", 'aliases.x: found "y", which is an alias'),
        ("[[models]]\nid = 'm'\n[aliases]\nm = 'n'\n", "aliases.m: is the id of a model as well"),
        ("[[models]\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_the_catalogue_stops_the_start(tmp_path: pathlib.Path, models: str, told: str) -> None:
    """Never an empty catalogue with a warning."""
    (problem,) = problems(written(tmp_path, NODE, models))

    assert problem.startswith(str(tmp_path / "models.toml"))
    assert re.search(told, problem), problem


def test_every_problem_is_told_at_once(tmp_path: pathlib.Path) -> None:
    """So that one edit mends them all."""
    told = problems(written(tmp_path, f"x = 1\n[gateway]\nmax_body_mb = 0\ndrain_secs = -1\n{NODE}"))

    assert len(told) == 3


def test_a_file_that_is_not_there_is_an_error(tmp_path: pathlib.Path) -> None:
    """Both of them."""
    assert "cannot be read: No such file" in problems(tmp_path / "none.toml")[0]
    assert "models.toml: cannot be read" in problems(written(tmp_path, f'models_config = "models.toml"\n{NODE}'))[0]


def test_a_file_without_neurons_is_an_error(tmp_path: pathlib.Path) -> None:
    """A gateway in front of nothing helps nobody."""
    assert "neurons: needs at least one [[neurons]]" in problems(written(tmp_path, "[gateway]\n"))[0]


def test_the_environment_lies_over_the_file(tmp_path: pathlib.Path) -> None:
    """Strings as they are, everything else as TOML; other programs' variables are not ours."""
    environ = {
        "CORTEX_GATEWAY__LISTEN": "0.0.0.0:80",
        "CORTEX_GATEWAY__MAX_BODY_MB": "7",
        "CORTEX_EVICTION__STRATEGY": "priority",
        "CORTEX_NEURONS": '[{name = "z", endpoint = "http://z:1"}]',
        "CORTEX_ENDPOINT": "http://elsewhere",
        "PATH": "/bin",
    }

    found = load_config(written(tmp_path, f"[gateway]\nmax_body_mb = 3\nwait_secs = 1\n{NODE}"), environ)

    assert found.gateway == GatewayConfig(listen="0.0.0.0:80", max_body_mb=7, wait_secs=1.0)
    assert found.eviction.strategy == "priority"
    assert found.neurons == (Neuron(name="z", endpoint="http://z:1"),)


@pytest.mark.parametrize(
    ("cortex", "environ", "place"),
    [
        ("", {}, "HERE/cortex-state.db"),
        ('[auth]\nstate = "var/s.db"\n', {}, "HERE/var/s.db"),
        ('[auth]\nstate = "/var/s.db"\n', {"XDG_STATE_HOME": "/xdg"}, "/var/s.db"),
        ("", {"CORTEX_AUTH__STATE": "/env/s.db"}, "/env/s.db"),
        (None, {"XDG_STATE_HOME": "/xdg"}, "/xdg/cortex/cortex-state.db"),
        (None, {"XDG_STATE_HOME": "xdg"}, "HOME/.local/state/cortex/cortex-state.db"),
        (None, {}, "HOME/.local/state/cortex/cortex-state.db"),
        (None, {"CORTEX_AUTH__STATE": "s.db"}, "CWD/s.db"),
    ],
)
def test_the_database_has_one_place(
    tmp_path: pathlib.Path, cortex: str | None, environ: dict[str, str], place: str
) -> None:
    """Beside the file, or in the user's folder for state where there is none; the command and the gateway agree."""
    path = None if cortex is None else written(tmp_path, cortex + NODE)
    folders = {"HERE": tmp_path, "HOME": pathlib.Path.home(), "CWD": pathlib.Path.cwd()}
    first, _, rest = place.partition("/")

    assert load_config(path, environ).state == (folders[first] / rest if first else pathlib.Path(place))


@pytest.mark.parametrize(("text", "required"), [("", None), ("required = true", True), ("required = false", False)])
def test_unset_is_told_from_false(tmp_path: pathlib.Path, text: str, *, required: bool | None) -> None:
    """For the warning, which false takes away."""
    assert load_config(written(tmp_path, f"[auth]\n{text}\n{NODE}"), {}).auth == Auth(required=required)
    assert load_config(None, {"CORTEX_AUTH__REQUIRED": "true"}).auth.required is True


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("CORTEX_GATEWAY__MAX_BODY_MB", "many", 'found "many"; allowed: a whole number'),
        ("CORTEX_GATEWAY__LISN", "x", 'allowed: "listen", .* did you mean "listen"'),
        (
            "CORTEX_GATWAY__LISTEN",
            "x",
            'allowed: "gateway", "eviction", "auth", "answers", "neurons", "discovery"; did you mean "gateway"',
        ),
        ("CORTEX_GATEWAY__LISTEN__PORT", "x", "allowed: nothing"),
        ("CORTEX_NEURONS", "[{", "not TOML"),
        ("CORTEX_GATEWAY__NEURON_SECRET", "", "allowed: a word of visible ASCII"),
        ("CORTEX_NEURONS", "3", "found 3; allowed: a list"),
        ("CORTEX_NEURONS", '[{name = "a", endpoint = "a:1"}]', r'neurons\[0\].endpoint: found "a:1"; must be a URL'),
        ("CORTEX_GATEWAY", "{listn = 3}", 'gateway.listn: is not a key here; .* did you mean "listen"'),
        ("CORTEX_NEURONS__1__NAME", "a", "there are 0 neurons; the next is 0"),
        ("CORTEX_NEURONS__A__NAME", "a", 'found "a"; there are 0 neurons; the next is 0'),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, told: str) -> None:
    """Not the file's fault: the variable's."""
    (problem,) = problems(None, {name: value})

    assert problem.startswith(f"environment: {name}: ")
    assert re.search(told, problem), problem


def test_an_entry_of_a_list_is_set_by_its_number(tmp_path: pathlib.Path) -> None:
    """As on a neuron: changed where it is there, added where it is the next."""
    environ = {"CORTEX_NEURONS__0__ENDPOINT": "http://b:1", "CORTEX_NEURONS__1__NAME": "z"}
    told = problems(written(tmp_path, NODE), environ)
    found = load_config(written(tmp_path, NODE), {**environ, "CORTEX_NEURONS__1__ENDPOINT": "http://z:1"})

    missing = "neurons[1].endpoint: is missing; allowed: a string, a URL as http://host:port"
    assert told == [f"environment: CORTEX_NEURONS__1__NAME: {missing}"]
    assert [(one.name, one.endpoint) for one in found.neurons] == [("a", "http://b:1"), ("z", "http://z:1")]


def test_a_variable_that_sets_nothing_is_told() -> None:
    """With the nearest that would; not what somebody else sets with reason."""
    environ = {
        "CORTEX_GATEWAY_LISTEN": "x",
        "CORTEX_NURONS": "[]",
        "CORTEX_ENDPIONT": "http://a",
        "CORTEX_WHATEVER": "",
        "CORTEX_GATEWAY__LISTEN": "127.0.0.1:1",
        "CORTEX_NEURONS": "[]",
        "CORTEX_PORT": "tcp://10.0.0.1:31313",
        "CORTEX_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "CORTEX_PORT_31313_TCP_ADDR": "10.0.0.1",
        **dict.fromkeys(cfg.OTHER_VARIABLES, "1"),
    }

    assert cfg.unused_variables(environ) == [
        "environment: CORTEX_ENDPIONT is not used; did you mean CORTEX_ENDPOINT?",
        "environment: CORTEX_GATEWAY_LISTEN is not used; did you mean CORTEX_GATEWAY__LISTEN?",
        "environment: CORTEX_NURONS is not used; did you mean CORTEX_NEURONS?",
        "environment: CORTEX_WHATEVER is not used",
    ]


def test_cortex_up_is_not_configured() -> None:
    """So a setting in the environment does nothing there, and that is told."""
    found = cfg.unused_variables({"CORTEX_GATEWAY__LISTEN": "x", "CORTEX_CACHE": "x"}, serving=False)

    assert found == ["environment: CORTEX_GATEWAY__LISTEN is not used: only `cortex serve` is configured"]


def test_the_list_of_other_variables_is_whole() -> None:
    """Every CORTEX_ name in the tree that is no setting of the gateway."""
    sources = [
        *(ROOT / "cortex_gateway").rglob("*.py"),
        *(ROOT / "neuron_jax").rglob("*.py"),
        *ROOT.glob("models/**/*.py"),
    ]
    texts = [path.read_text() for path in [*sources, *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docs/*.md")]]
    named = {name for text in texts for name in re.findall(r"\bCORTEX_[A-Z]+(?:_[A-Z]+)*\b(?!_)", text)}

    assert cfg.unused_variables(dict.fromkeys(named, "1")) == []


def test_the_first_default_place_that_exists_is_read(tmp_path: pathlib.Path) -> None:
    """A named file always wins, even one that is not there."""
    here, there = tmp_path / "here.toml", tmp_path / "there.toml"
    assert find_config(None, (here, there)) is None
    there.touch()

    assert find_config(None, (here, there)) == there
    assert find_config(here, (there,)) == here


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ('hosts = ["a", "zed"]', r'models\[0\].hosts: found "zed"; allowed: "a", "b"'),
        ('hosts = ["a", "a"]', r'models\[0\].hosts: found "a" 2 times'),
        ('hosts = ["a"]\npinned_on = ["b"]', r'models\[0\].pinned_on: found "b"; allowed: "a"'),
        ('ranks = "core"', r'models\[0\].ranks: found "core"; allowed: "host", "device"'),
    ],
)
def test_the_hosts_of_a_model_are_checked(tmp_path: pathlib.Path, model: str, told: str) -> None:
    """They are nodes, each once, and the leader is one of them."""
    nodes = "".join(f'[[neurons]]\nname = "{name}"\nendpoint = "http://{name}"\n' for name in "ab")
    path = written(tmp_path, nodes, f'[[models]]\nid = "m"\n{model}\n')

    with pytest.raises(ConfigError, match=told):
        load_config(path, {})


def test_the_examples_load() -> None:
    """As they stand."""
    found = load_config(ROOT / "examples/cortex.example.toml", {})

    assert [neuron.name for neuron in found.neurons] == ["beast", "attic"]
    assert found.aliases["demo"] == "smollm2-135m-instruct"


def test_where_a_neuron_s_secret_comes_from(tmp_path: pathlib.Path) -> None:
    """Its own, or the one of [gateway]; each a word or a file beside the configuration."""
    (tmp_path / "word").write_text("of the file\n")
    nodes = "".join(f'[[neurons]]\nname = "{name}"\nendpoint = "http://{name}"\n{{{name}}}\n' for name in "abc")
    path = written(
        tmp_path,
        '[gateway]\nneuron_secret_file = "word"\n' + nodes.format(a='secret = "of a"', b="", c='secret_file = "word"'),
    )

    found = [one.secret for one in load_config(path, {}).neurons]
    environ = {"CORTEX_GATEWAY__NEURON_SECRET": "from outside", "CORTEX_NEURONS__2__SECRET": "of c"}
    changed = [one.secret for one in load_config(path, environ).neurons]

    assert found == ["of a", "of the file", "of the file"]
    assert changed == ["of a", "from outside", "of c"]
    assert load_config(None, {"CORTEX_GATEWAY__NEURON_SECRET": "x"}).neurons[0].secret == "x"
    assert not [word for word in (*found, *changed) if str(word) in repr(load_config(path, environ))]


@pytest.mark.parametrize(
    ("cortex", "told"),
    [
        ('[gateway]\nneuron_secret = "hunter2\\n"\n', "gateway.neuron_secret: allowed: a word of visible ASCII"),
        ('[gateway]\nneuron_secret = ["hunter2"]\n', "gateway.neuron_secret: allowed: a word of visible ASCII"),
        ('[gateway]\nneuron_secret = "hunter2"\nneuron_secret_file = "f"\n', "gateway.neuron_secret: is there besides"),
        ('[gateway]\nneuron_secret_file = "none"\n', "neuron_secret_file: .*none cannot be read: No such file"),
        ('[gateway]\nneuron_secret_file = "binary"\n', "neuron_secret_file: allowed: a word of visible ASCII"),
        (
            '[[neurons]]\nname = "b"\nendpoint = "http://a:13131/b"\nsecret = "hunter2"\n',
            r"neurons\[1\].secret: is not that of another neuron at the same address, http://a:13131",
        ),
        ('[[gateway]]\nneuron_secret = "hunter2"\n', "gateway: found a list of tables; allowed: a table"),
    ],
)
def test_a_wrong_secret_is_told_and_not_shown(tmp_path: pathlib.Path, cortex: str, told: str) -> None:
    (tmp_path / "binary").write_bytes(b"\xffhunter2")
    (problem,) = problems(written(tmp_path, cortex + NODE))

    assert re.search(told, problem), problem
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (cls, field.name)
        for cls in (GatewayConfig, EvictionConfig, Auth, AnswersConfig, Neuron, ModelConfig, Limit, Cost, Config)
        for field in attrs.fields(cls)
    ],
)
def test_every_field_has_a_reader(cls: type, name: str) -> None:
    """A setting that nobody reads is a lie. Cost is passed on whole."""
    folders = ("cortex_gateway", "neuron_jax/common")
    sources = [path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py")]

    assert cls is Cost or any(f".{name}" in source for source in sources)
