"""`cortex config import`: a fleet's files as the predecessor reads them, and what both of our programs make of them."""

import json
import pathlib
import stat
import tomllib
from typing import Any

import attrs
import pytest

from cortex_gateway.cli import app as cli
from cortex_gateway.cli.config import fetched
from cortex_gateway.cli.moving import neuron_toml
from cortex_gateway.cli.moving.weights import Weights, weights_of
from cortex_gateway.config import Config, Neuron, load_config
from neuron_jax import config as neuron
from neuron_jax.config import ModelSpec

CORTEX = """\
# the gateway of the house
models_config = "/etc/cortex/models.toml"

[gateway]
listen = "0.0.0.0:31313"    # everybody
metrics_listen = "0.0.0.0:31314"

[eviction]
strategy = "lru"
defrag_after_cycles = 50

[[neurons]]
name = "large"              # two cards
endpoint = "http://large.internal:13131"

[[neurons]]
name = "small"
endpoint = "http://small.internal:13131"
note = "under the stairs"

[entitlements]
require_auth = true

[[entitlements.keys]]
key = "sk-word-one"
account_id = "research"
key_id = "research ci"
hard_cap = 6_000_000
window = { kind = "rolling", seconds = 3600 }

[[entitlements.keys]]
key = "sk-word-two"
account_id = "prepaid"
hard_cap = 500

[[entitlements.keys]]
key = "sk-word-three"
account_id = "operator"

[upstream]
enabled = true
url = "https://upstream.example"
bearer = "sk-word-four"
"""
MODELS = """\
# what the fleet may serve
[[models]]
id = "Qwen/Qwen3-32B"
harness = "candle"
quant = "q6k"               # fits two cards
vram_mb = 40000
min_devices = 2
min_device_vram_mb = 24000
pinned_on = ["large", "sold"]
residency_priority = 300
limit.context = 32768
limit.output = 4096
cost.input = 0.0
cost.output = 0.0
capabilities = ["text", "reasoning"]

# never to leave
[[models]]
id = "Qwen/Qwen3-8B"
harness = "candle"
vram_mb = 0
pinned_on = ["small"]
color = "blue"

[[models]]
id = "unsloth/Qwen3-0.6B-GGUF"
harness = "candle"
quant = "Q4_K_M"
# small enough

[[models]]
id = "House/Own"
harness = "candle"
source = "house"

[[models]]
id = "Qwen/Qwen3-8B"
harness = "candle"

[[models]]
id = "Tongyi-MAI/Z-Image-Turbo"
harness = "candle"

[aliases]
"house/large" = "Qwen/Qwen3-32B"   # by name
"house/image" = "Tongyi-MAI/Z-Image-Turbo"
"house/best" = "house/large"
"House/Own" = "Qwen/Qwen3-8B"
"""
NEURON = """\
# the host under the stairs
port = 14141

[[harnesses]]
name = "candle"

[harness.candle]
hf_cache = "{cache}"
default_source = "house"

[harness.candle.sources.house]
endpoint = "https://registry.example"
auth_env = "HOUSE_TOKEN"

[harness.candle.prefix_cache]
enabled = false
budget_mb = 1024

[harness.candle.context_limit]
target_prefill_latency_secs = 60.0
min_free_floor_mb = 1500

[[default_models]]
model_id = "huggingface:Qwen/Qwen3-32B"   # for everybody
harness = "candle"
quant = "q8_0"
tensor_parallel = 2
devices = [0, 1]

[[default_models]]
model_id = "unsloth/Qwen3-0.6B-GGUF"
harness = "candle"
quant = "Q4_K_M"
devices = [0]

[harness.candle.admission]
max_in_flight = 8
max_queue_depth = 24
max_wait_secs = 60
max_per_principal = 2

[harness.candle.image]
te_device = "cpu"
"""


@pytest.fixture
def etc(tmp_path: pathlib.Path) -> pathlib.Path:
    """Its files, and of one model what it has fetched."""
    folder, cache = tmp_path / "etc", tmp_path / "hub"
    snapshot = cache / "models--Qwen--Qwen3-32B/snapshots/abc"
    (cache / "models--Qwen--Qwen3-32B/refs").mkdir(parents=True)
    (cache / "models--Qwen--Qwen3-32B/refs/main").write_text("abc\n")
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).touch()
    folder.mkdir()
    (folder / "cortex.toml").write_text(CORTEX)
    (folder / "cortex.toml").chmod(0o640)
    (folder / "models.toml").write_text(MODELS)
    (folder / "neuron.toml").write_text(NEURON.replace("{cache}", str(cache)))
    return folder


def run(*words: str | pathlib.Path) -> int:
    return cli.run(["config", "import", *map(str, words)])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, list[tuple[str, str, str]]]:
    """By file, what became of its keys: (kind, key, words)."""
    said = capsys.readouterr().out
    return {
        pathlib.Path(one["read"]).name: [(note["kind"], note["key"], note["words"]) for note in one["notes"]]
        for one in json.loads(said)
    }


@pytest.fixture
def moved(etc: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    assert run(etc, "--out", tmp_path / "ours") == 0
    return tmp_path / "ours"


def test_the_gateway_starts_with_what_is_written(moved: pathlib.Path) -> None:
    """Same addresses and nodes; models are evicted by the classes that they had."""
    config: Config = load_config(moved / "cortex.toml", {})

    assert (config.gateway.listen, config.gateway.metrics_listen) == ("0.0.0.0:31313", "0.0.0.0:31314")
    assert config.neurons == (
        Neuron(name="large", endpoint="http://large.internal:13131"),
        Neuron(name="small", endpoint="http://small.internal:13131"),
    )
    assert (config.eviction.strategy, config.eviction.defrag_after_cycles) == ("priority", 50)
    assert config.auth.required is True
    assert {model.id: model.priority for model in config.models} == {
        "Qwen/Qwen3-32B": 300,
        "Qwen/Qwen3-8B": 1000,
        "unsloth/Qwen3-0.6B-GGUF": 100,
        "House/Own": 100,
    }
    large, kept, gguf, own = config.models
    assert (large.quant, large.shards, large.hosts, large.pinned_on) == ("int8", 2, ("large",), ())
    assert (large.limit, large.cost and large.cost.input) == (None, 0.0)
    assert (kept.pinned_on, kept.hosts, kept.vram_mb) == (("small",), (), None)
    assert (gguf.source, gguf.quant) == ("hf:unsloth/Qwen3-0.6B-GGUF:Q4_K_M", None)
    assert own.source is None
    assert {model.harness for model in config.models} == {"jax"}
    assert config.aliases == {"house/large": "Qwen/Qwen3-32B"}


def test_the_neuron_starts_with_what_is_written(moved: pathlib.Path, etc: pathlib.Path) -> None:
    """It listens and obeys as before; what was fetched is not fetched again."""
    config = neuron.load_config(moved / "neuron.toml", {"HOME": "/nowhere"})

    assert (config.server.host, config.server.port, config.access.trust_network) == ("0.0.0.0", 14141, True)
    assert (config.engine.max_slots, config.engine.min_free_mb, config.engine.prefix_cache) == (8, 1500, False)
    assert (config.admission.max_queue_depth, config.admission.max_wait_secs) == (24, 60)
    assert config.default_models == (
        ModelSpec(
            model_id="Qwen/Qwen3-32B",
            source=str(etc.parent / "hub/models--Qwen--Qwen3-32B/snapshots/abc"),
            quant="int8",
            tensor_parallel=2,
            devices=(0, 1),
        ),
        ModelSpec(model_id="unsloth/Qwen3-0.6B-GGUF", source="hf:unsloth/Qwen3-0.6B-GGUF:Q4_K_M", devices=(0,)),
    )


def test_comments_stay_where_they_were(moved: pathlib.Path) -> None:
    """Also in entries whose keys have other names now."""
    cortex, models, daemon = ((moved / name).read_text() for name in ("cortex.toml", "models.toml", "neuron.toml"))

    assert cortex.startswith("# the gateway of the house\n")
    assert 'listen = "0.0.0.0:31313"    # everybody\n' in cortex
    assert 'name = "large"              # two cards\n' in cortex
    assert 'quant = "int8"               # fits two cards\n' in models
    assert models.index("hosts") < models.index("# never to leave") < models.index("Qwen/Qwen3-8B")
    assert models.index("hf:unsloth") < models.index("# small enough")
    assert daemon.startswith("# the host under the stairs\ntrust_network = true\n")
    assert 'model_id = "Qwen/Qwen3-32B"   # for everybody\n' in daemon


def test_every_key_is_kept_or_named(
    etc: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is nowhere in our files is in what the operator reads."""
    assert run(etc, "--out", tmp_path / "ours", "--json") == 0

    notes = told(capsys)
    silent = {"harnesses[0].name", "models[0].harness", "default_models[0].harness", "models[1].vram_mb"}
    for name, all_notes in notes.items():
        before = dict(leaves(tomllib.loads((etc / name).read_text())))
        after = dict(leaves(tomllib.loads((tmp_path / "ours" / name).read_text())))
        named = " ".join(f"{key} {words}" for _, key, words in all_notes)
        lost = {path for path in before if path not in after} - silent
        assert not [path for path in lost if not any(part in named for part in parts(path))], name


def leaves(table: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(table, dict):
        return [leaf for key, value in table.items() for leaf in leaves(value, f"{path}.{key}" if path else key)]
    if isinstance(table, list) and table and isinstance(table[0], dict):
        return [leaf for index, value in enumerate(table) for leaf in leaves(value, f"{path}[{index}]")]
    return [(path, table)]


def parts(path: str) -> list[str]:
    """The key by itself, or the table that went with it."""
    words = [word.split("[")[0] for word in path.split(".")]
    return [words[-1], ".".join(words[:2]), words[0]] if words[0] in ("entitlements", "upstream") else words[-2:]


def test_what_is_left_to_do_is_said(
    etc: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command for each key's successor, and that the network is trusted; no secret in what is said or written."""
    assert run(etc, "--out", tmp_path / "ours") == 0

    said = capsys.readouterr().out
    assert "cortex keys add research-ci --tokens-per-minute 100000 " in said
    assert "cortex keys add prepaid    (its balance of 500 tokens has no counterpart)" in said
    assert "cortex keys add operator\n" in said
    assert "to do    trust_network: is set" in said
    assert "gone     upstream: " in said
    assert "gone     models Tongyi-MAI/Z-Image-Turbo: makes pictures" in said
    written = "".join(file.read_text() for file in (tmp_path / "ours").iterdir())
    assert "sk-word" not in said + written


def test_nothing_is_written_over_unasked(etc: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In place it takes --force, which keeps the old files; what a file's mode hid stays hidden."""
    assert run(etc) == 1
    assert "there already; give --out DIR, or --force" in capsys.readouterr().err
    assert (etc / "cortex.toml").read_text() == CORTEX

    assert run(etc, "--force") == 0
    assert (etc / "cortex.toml.before-import").read_text() == CORTEX
    assert {stat.S_IMODE((etc / name).stat().st_mode) for name in ("cortex.toml", "cortex.toml.before-import")} == {
        0o640
    }
    assert load_config(etc / "cortex.toml", {}).auth.required

    assert run(etc, "--force") == 1
    assert "is one of ours already: helexa has no auth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("cortex.toml", "[gateway", "not valid TOML"),
        ("cortex.toml", '[gateway]\nlisten = "nowhere"\nmetrics_listen = "0.0.0.0:1"\n', 'found "nowhere"'),
        ("models.toml", '[[models]]\nid = "a"\nmin_devices = "two"\n', 'found "two"; allowed: a whole number'),
        ("neuron.toml", "harness = 7\n[[default_models]]\nquant = 8\n", "harness: found 7; allowed: a table"),
        ("other.toml", "", "there is no cortex.toml"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], name: str, text: str, why: str
) -> None:
    """Where the predecessor began with an empty catalogue, too."""
    if name == "models.toml":
        (tmp_path / "cortex.toml").write_text('[[neurons]]\nname = "a"\nendpoint = "http://a:1"\n')
    (tmp_path / name).write_text(text)
    assert run(tmp_path, "--out", tmp_path / "ours") == 1

    assert why in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_nodes_of_its_own_example_are_neurons(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have sizes, which neurons tell, and pins, which are the catalogue's."""
    (tmp_path / "cortex.toml").write_text(
        '[gateway]\nlisten = "127.0.0.1:31313"\nmetrics_listen = "127.0.0.1:31314"\n[eviction]\nstrategy = "lru"\n'
        '[[nodes]]\nname = "a"\nendpoint = "http://a:8080"\nvram_mb = 1\npinned = ["org/m"]\n'
    )
    assert run(tmp_path / "cortex.toml", "--out", tmp_path / "ours", "--json") == 0

    assert [(kind, key) for kind, key, _ in told(capsys)["cortex.toml"]] == [
        ("to do", "nodes.pinned"),
        ("changed", "nodes"),
    ]
    config = load_config(tmp_path / "ours/cortex.toml", {})
    assert config.neurons == (Neuron(name="a", endpoint="http://a:8080"),)
    assert config.eviction.strategy == "lru"


@pytest.mark.parametrize(
    ("name", "quant", "found"),
    [
        ("Qwen/Qwen3-8B", None, Weights("Qwen/Qwen3-8B")),
        ("huggingface:Qwen/Qwen3-8B", "bf16", Weights("Qwen/Qwen3-8B", "none")),
        ("org/m", "Q8_0", Weights("org/m", "int8")),
        ("org/m", "q5k", Weights("org/m", "int8")),
        ("org/m", "q4_k_m", Weights("org/m", "int4")),
        ("org/m", "q2k", Weights("org/m", "int4")),
        ("org/m", "iq9", Weights("org/m")),
        ("org/m-gguf", "IQ4_XS", Weights("org/m-gguf", None, "hf:org/m-gguf:IQ4_XS")),
        ("house:org/m", None, Weights("org/m")),
    ],
)
def test_formats_and_ids_have_names_here(name: str, quant: str | None, found: Weights) -> None:
    """What is not the same, or not here, comes with a reason."""
    made = weights_of(name, quant)

    assert (made.id, made.quant, made.source) == (found.id, found.quant, found.source)
    assert bool(made.why_quant) == bool(quant)
    assert bool(made.why_source) == name.startswith("house:")


def test_of_files_that_were_fetched_the_right_one_is_used(tmp_path: pathlib.Path) -> None:
    """A tag names one GGUF file; a folder without weights, and one never fetched, is none."""
    snapshot = tmp_path / "models--org--m-GGUF/snapshots/1"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--m-GGUF/refs").mkdir()
    (tmp_path / "models--org--m-GGUF/refs/main").write_text("1")
    for file in ("m-Q4_K_M.gguf", "m-Q8_0.gguf", "config.json"):
        (snapshot / file).touch()

    assert fetched(["/nowhere", str(tmp_path)], "org/m-GGUF", "q4_k_m") == str(snapshot / "m-Q4_K_M.gguf")
    assert fetched([str(tmp_path)], "org/m-GGUF", "Q2_K") is None
    assert fetched([str(tmp_path)], "org/m-GGUF", None) is None
    assert fetched([str(tmp_path)], "org/never", None) is None


def test_ours_is_told_from_theirs() -> None:
    """By every table of neuron.toml that the predecessor has not."""
    fields = {item.name for item in attrs.fields(neuron.NeuronToml)}

    assert fields - {"port", "harnesses", "default_models"} == neuron_toml.OURS
