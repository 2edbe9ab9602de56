"""What a neuron can be told: TOML, then NEURON_A__B variables, as frozen records; must not know HTTP, JAX or models.

A setting is one field here: type, default, what is allowed, and what it is for; docs/configuration.md tells the same at
length. Other programs use the same prefix, and orchestrators set NEURON_PORT for a service of that name: what sets nothing
here is told, and stops nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from attrs import evolve, field, frozen

from neuron_jax.common.addresses import HIGHEST_PORT
from neuron_jax.common.files import OwnSecret, RemoteNeuron, secret_of, with_tls_files
from neuron_jax.common.kinds import ADAPTERS, EACH_FILLED, FILE_ONLY, FILLED, HIDDEN, HOST, Rule, power_of_two, within
from neuron_jax.common.names import LONGEST_NAME
from neuron_jax.common.reader import Reader, read_toml
from neuron_jax.common.variables import names, unused

PREFIX = "NEURON_"
OTHER_VARIABLES = (
    "NEURON_CC_",  # AWS Neuron
    "NEURON_COMPILE_",
    "NEURON_FRAMEWORK_",
    "NEURON_RT_",
)
"""What is no setting of ours, and is set with reason: all of it, in one list. A name with `_` at its end is a beginning."""
Harness = Literal["jax", "candle"]
"""`candle` is what a predecessor's files say; models are served by JAX either way."""
PeerConfig = RemoteNeuron
"""Another neuron that may lend devices to models which this one leads."""
MIB = 2**31
NAME = Rule(f" of 1 to {LONGEST_NAME} characters", lambda name: len(name.strip()) > 0 and len(name) <= LONGEST_NAME)
DEVICES = Rule(
    " of different device indices from 0 to 1023",
    lambda found: 0 < len(found) == len(set(found)) and all(0 <= one < 1024 for one in found),
)


@frozen(kw_only=True)
class AccessConfig(OwnSecret):
    """Who may use this neuron, at the top of the file."""

    trust_network: bool = False  # without a secret: other hosts may load and unload models


@frozen(kw_only=True)
class ServerConfig:
    """[server]: where the daemon listens."""

    host: str = field(default="127.0.0.1", validator=HOST)
    port: int = field(default=13131, validator=within(0, HIGHEST_PORT))  # 0 = any free one
    max_body_mb: int = field(default=32, validator=within(1, 1024))  # a larger request body is refused with 413
    drain_secs: float = field(default=30.0, validator=within(0, 3600))  # work in flight gets this long at shutdown
    allowed_hosts: tuple[str, ...] = field(
        default=(), validator=EACH_FILLED
    )  # names that it answers to besides its own
    allowed_origins: tuple[str, ...] = field(default=(), validator=EACH_FILLED)  # web pages that may ask it
    tls_cert: Path | None = None  # PEM files, relative to the configuration
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # whoever connects needs a certificate that it signed


@frozen(kw_only=True)
class CacheConfig:
    """[cache]: where fetched models and compiled programs stay."""

    models_dir: Path
    compile_dir: Path


@frozen(kw_only=True)
class EngineConfig:
    """[engine]: limits of every engine process; 0 leaves a number to the memory plan. Megabytes are MiB."""

    kv_mb: int = field(default=0, validator=within(0, MIB))  # pool of keys and values, over all devices of a model
    memory_mb: int = field(default=0, validator=within(0, MIB))  # what an engine may use of each device
    max_context: int = field(default=0, validator=within(0, 2**31))  # tokens of one request, prompt and output
    max_slots: int = field(default=0, validator=within(0, 4096))  # requests that run at once
    chunk_tokens: int = field(default=0, validator=within(0, 2**20))  # most tokens in one step
    decode_steps: int = field(default=0, validator=within(0, 64))  # most tokens of an answer in one step
    speculate: int = field(default=-1, validator=within(-1, 64))  # tokens guessed ahead; -1 = where it helps
    page_size: int = field(default=16, validator=power_of_two(128))  # tokens of a page of the pool
    attention: Literal["auto", "native", "pallas", "xla"] = (
        "auto"  # which kernel computes it; auto = the first that can
    )
    prefix_cache: bool = True  # pages of past texts serve later ones that begin alike
    min_free_mb: int = field(default=-1, validator=within(-1, MIB))  # what stays free on a device; -1 = by its kind
    cpu_devices: int = field(default=1, validator=within(1, 64))  # devices to pretend, without an accelerator
    threads: int = field(default=0, validator=within(0, 1024))  # of an engine on a CPU; 0 = its physical cores


@frozen(kw_only=True)
class AdmissionConfig:
    """[admission]: the bounded queue in front of every model."""

    max_queue_depth: int = field(default=32, validator=within(0, 100_000))  # how many requests may wait
    max_wait_secs: float = field(default=120.0, validator=within(0, 86_400))  # and for how long


@frozen(kw_only=True)
class RanksConfig:
    """[ranks]: devices lent to other neurons' models, and borrowed from them."""

    address: str = field(default="127.0.0.1", validator=HOST)  # this host as its peers reach it
    secret: str = field(default="", repr=False, metadata=HIDDEN)  # "" = the neuron's own; with neither nothing is lent
    deadline_secs: float = field(default=60.0, validator=within(1, 3600))  # for all ranks to meet


@frozen(kw_only=True)
class WatchdogConfig:
    """[watchdog]: what counts as hung, in seconds."""

    step_secs: float = field(default=30.0, validator=within(0.1, 86_400))  # a step, besides 20 times its usual
    first_step_secs: float = field(default=300.0, validator=within(0.1, 86_400))  # the first run of a program
    silent_secs: float = field(default=10.0, validator=within(1, 86_400))  # a process that says nothing


@frozen(kw_only=True)
class ModelSpec:
    """One model as a load request, `[[models]]` or `[[default_models]]` names it (docs/wire.md section 1)."""

    model_id: str = field(validator=NAME)
    source: str | None = field(default=None, validator=FILLED)  # folder, file or repository; None = the id says it
    harness: Harness = "jax"
    quant: Literal["auto", "none", "stored", "int8", "int4", "fp8"] = "auto"  # how weights are kept
    kv_dtype: Literal["auto", "float32", "bfloat16", "int8", "fp8"] = "auto"  # how keys and values are kept
    deterministic: bool = False  # the same bits, however a request is served
    tensor_parallel: int = field(default=1, validator=within(1, 64))  # devices that it is spread over
    expert_parallel: int = field(default=1, validator=within(1, 64))  # parts of these with whole experts of their own
    ranks: Literal["host", "device"] = "host"  # one process for each
    hosts: tuple[str, ...] = field(default=(), validator=EACH_FILLED)  # peers that may lend devices
    devices: tuple[int, ...] | None = field(default=None, validator=DEVICES)  # None = the emptiest
    max_context: int | None = field(default=None, validator=within(1, 2**31))  # this and the next three over [engine]
    kv_mb: int | None = field(default=None, validator=within(1, MIB))
    memory_mb: int | None = field(default=None, validator=within(1, MIB))
    speculate: int | None = field(default=None, validator=within(-1, 64))
    replicas: int = field(default=1, validator=within(1, 64))  # engines, each on devices of its own
    adapters: tuple[str, ...] = field(default=(), validator=ADAPTERS)  # NAME=FOLDER: served beside it, as id:NAME
    transform: str | None = field(
        default=None, validator=FILLED
    )  # Python file, run by its engines; never from a request
    aliases: tuple[str, ...] = field(default=(), validator=EACH_FILLED)  # other names on this neuron's API


@frozen(kw_only=True)
class HarnessEntry:
    """A predecessor's `[[harnesses]]`: checked, and there is only one kind of engine to choose."""

    name: Harness


@frozen(kw_only=True)
class NeuronToml(AccessConfig):
    """neuron.toml as it stands."""

    port: int | None = field(default=None, validator=within(0, HIGHEST_PORT), metadata=FILE_ONLY)  # the predecessor's
    server: ServerConfig = ServerConfig()
    cache: CacheConfig
    engine: EngineConfig = EngineConfig()
    admission: AdmissionConfig = AdmissionConfig()
    ranks: RanksConfig = RanksConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    harnesses: tuple[HarnessEntry, ...] = ()
    peers: tuple[PeerConfig, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    default_models: tuple[ModelSpec, ...] = ()


@frozen(kw_only=True)
class NeuronConfig:
    """Everything a neuron is told at start. `models` is what the host offers, `default_models` is loaded at start.

    `environ` is the environment that engine processes inherit, without our secrets; it may hold others, so it is never shown.
    """

    cache: CacheConfig
    access: AccessConfig = AccessConfig()
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    admission: AdmissionConfig = AdmissionConfig()
    ranks: RanksConfig = RanksConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    peers: tuple[PeerConfig, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    default_models: tuple[ModelSpec, ...] = ()
    environ: Mapping[str, str] = field(factory=dict, repr=False)


def cache_root(environ: Mapping[str, str]) -> Path:
    """The user's cache folder: $CORTEX_CACHE, else $XDG_CACHE_HOME/cortex, else ~/.cache/cortex."""
    if environ.get("CORTEX_CACHE"):
        return Path(environ["CORTEX_CACHE"]).expanduser()
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]).expanduser() / "cortex"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".cache" / "cortex"


def load_config(path: Path | None, environ: Mapping[str, str]) -> NeuronConfig:
    """Defaults, then the file at `path`, then `environ`. Raises ConfigError that lists every problem."""
    reader, table, root = Reader.of(path), read_toml(path), cache_root(environ)
    beneath = {
        "cache": {"models_dir": str(root / "models"), "compile_dir": str(root / "compiled")},
        "server": {"port": table["port"]} if type(table.get("port")) is int else {},
    }
    top = reader.read(NeuronToml, table, PREFIX, environ, beneath)
    if top.port not in (None, top.server.port):
        reader.complain("port", f"found {top.port}, and server.port is {top.server.port}; give one of them")
    secret = secret_of(reader, "secret", top.secret, top.secret_file) or ""
    for key in ("models", "default_models"):
        specs: tuple[ModelSpec, ...] = getattr(top, key)
        reader.unique(key, [name for spec in specs for name in (spec.model_id, *spec.aliases)])
    config = NeuronConfig(
        access=AccessConfig(secret=secret, secret_file=top.secret_file, trust_network=top.trust_network),
        cache=top.cache,
        server=with_tls_files(reader, "server", top.server),
        engine=top.engine,
        admission=top.admission,
        ranks=evolve(top.ranks, secret=top.ranks.secret or secret),
        watchdog=top.watchdog,
        peers=tuple(_checked_peer(reader, f"peers[{index}]", peer) for index, peer in enumerate(top.peers)),
        models=top.models,
        default_models=top.default_models,
        environ={name: environ[name] for name in environ if not _may_hold_secrets(name)},
    )
    reader.finish()
    return config


def unused_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each NEURON_ variable that sets nothing."""
    return unused(environ, PREFIX, names(NeuronToml, PREFIX), OTHER_VARIABLES)


def _checked_peer(reader: Reader, path: str, peer: PeerConfig) -> PeerConfig:
    secret = secret_of(reader, f"{path}.secret", peer.secret, peer.secret_file)
    return evolve(with_tls_files(reader, path, peer), secret=secret)


def _may_hold_secrets(name: str) -> bool:
    """A variable of this program or of the gateway that is nothing to a process which computes."""
    whole = ("NEURON_PEERS", "NEURON_RANKS", "CORTEX_NEURONS", "CORTEX_GATEWAY", "CORTEX_DISCOVERY")
    return name in whole or (name.startswith((PREFIX, "CORTEX_")) and ("SECRET" in name or "KEY" in name))
