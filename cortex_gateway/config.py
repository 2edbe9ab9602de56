"""What an operator may write in cortex.toml, models.toml and CORTEX_A__B; reads files at start, knows no fleet."""

import os
import pathlib
from collections.abc import Mapping
from typing import Literal

from attrs import evolve, field, frozen

from cortex_gateway.origins import is_host, is_origin
from cortex_gateway.placement.snapshot import Cost, Limit, ModelConfig
from neuron_jax.common.errors import ConfigError
from neuron_jax.common.files import RemoteNeuron as Neuron
from neuron_jax.common.files import secret_of, with_tls_files
from neuron_jax.common.kinds import ADDRESS, FILLED, HIDDEN, Rule, within
from neuron_jax.common.reader import Reader, read_toml
from neuron_jax.common.variables import NESTED, names, unused

DEFAULT_PLACES = (pathlib.Path("cortex.toml"), pathlib.Path("/etc/cortex/cortex.toml"))
ENV_PREFIX = "CORTEX_"
STATE_FILE = "cortex-state.db"
ANSWERS_FILE = "cortex-answers.db"
OTHER_VARIABLES = (
    "CORTEX_API_KEY",  # the commands of `cortex`
    "CORTEX_CACHE",  # `cortex up`, and neurons
    "CORTEX_ENDPOINT",  # the commands of `cortex`
    "CORTEX_LOG",  # both programs: the shape of their log
    "CORTEX_NATIVE",  # neurons
    "CORTEX_THREADS",  # the same, set for an engine by its configuration
    "CORTEX_URL",  # the notebooks
)
"""What is no setting of the gateway, and is set with reason: all of it, in one list."""
REMOVED = {
    "entitlements": "keys are no longer written here: make each with `cortex keys add NAME` (a rolling budget is "
    "--tokens-per-minute; a balance has no counterpart), write [auth] required = true for require_auth = true, remove this",
    "upstream": "an upstream authority is not in this release: remove it",
}

__all__ = [
    "AnswersConfig",
    "Auth",
    "Config",
    "ConfigError",
    "Cost",
    "Discovery",
    "EvictionConfig",
    "GatewayConfig",
    "Limit",
    "ModelConfig",
    "Neuron",
    "find_config",
    "load_config",
    "state_path",
    "unused_variables",
]


HOSTS = Rule(' of names without a port, as "llm.example.com"; "*" is any', lambda hosts: all(map(is_host, hosts)))
ORIGINS = Rule(
    ' of origins as a browser writes them, as "https://chat.example.com:8080"; "*" is any',
    lambda origins: all(map(is_origin, origins)),
)


@frozen(kw_only=True)
class GatewayConfig:
    """[gateway]: where the program listens and how long it is patient."""

    listen: str = field(default="127.0.0.1:31313", validator=ADDRESS)  # host:port of the API
    metrics_listen: str = field(default="127.0.0.1:31314", validator=ADDRESS)  # host:port of /metrics
    hosts: tuple[str, ...] = field(default=(), validator=HOSTS)  # other names that the control routes answer to
    origins: tuple[str, ...] = field(default=(), validator=ORIGINS)  # other web pages that may call it
    stabilize_prompts: bool = True  # what changes with every request of Claude Code's is left out of its prompt
    max_body_mb: int = field(default=32, validator=within(1))  # a larger request body is refused with 413
    wait_secs: float = field(default=600.0, validator=within(0))  # a request may queue this long for room on a node
    max_waiting: int = field(default=256, validator=within(1))  # requests that may queue at once
    load_timeout_secs: float = field(default=1800.0, validator=within(1))  # one load, download included
    watch_secs: float = field(default=2.0, validator=within(0.05))  # between two looks at a node
    look_timeout_secs: float = field(
        default=5.0, validator=within(0.05)
    )  # a look without an answer for so long is missed
    read_timeout_secs: float = field(default=60.0, validator=within(0.1))  # between two pieces of a request, before 408
    write_timeout_secs: float = field(default=60.0, validator=within(0.1))  # that a client takes nothing of its answer
    drain_secs: float = field(
        default=30.0, validator=within(0)
    )  # running requests get this long at shutdown and unload
    neuron_secret: str | None = field(default=None, repr=False, metadata=HIDDEN)  # of neurons without one of their own
    neuron_secret_file: pathlib.Path | None = None
    tls_cert: pathlib.Path | None = None  # PEM files of the API's certificate and key, relative to cortex.toml
    tls_key: pathlib.Path | None = None
    metrics_tls: bool = False  # the same for /metrics


@frozen(kw_only=True)
class EvictionConfig:
    """[eviction]: who leaves when a model does not fit or nobody asks for it, and when a node's engines are started afresh."""

    strategy: Literal["lru", "priority"] = "lru"
    idle_secs: float = field(default=0.0, validator=within(0))  # a model nobody asks for so long is unloaded; 0 = never
    defrag_after_cycles: int = field(
        default=0, validator=within(0)
    )  # unloads before a node's engines restart; 0 = never


@frozen(kw_only=True)
class Auth:
    """[auth]: who is asked for a key. The keys are in the database at `state`, made by `cortex keys add`."""

    required: bool | None = None  # inference needs a key; None = it does not, and where others reach it that is told
    metrics: bool = False  # /metrics needs a key of scope admin
    state: pathlib.Path | None = None  # path of the database, relative to this file; None = see `state_path`


@frozen(kw_only=True)
class AnswersConfig:
    """[answers]: what /v1/responses keeps, beside the database of keys."""

    keep_hours: float = field(default=720.0, validator=within(1))  # since an answer was last used
    max_mb: int = field(default=512, validator=within(1))  # of all keys' together


@frozen(kw_only=True)
class Discovery:
    """[[discovery]]: neurons that a name server knows, besides those of [[neurons]]."""

    srv: str = field(validator=FILLED)  # _neuron._tcp.<service>.<namespace>.svc.cluster.local
    scheme: Literal["http", "https"] = "http"  # of their endpoints
    every_secs: float = field(default=10.0, validator=within(0.05))  # between two questions
    secret: str | None = field(default=None, repr=False, metadata=HIDDEN)  # what they want to be shown
    secret_file: pathlib.Path | None = None  # or the file that holds it


@frozen(kw_only=True)
class CortexToml:
    """cortex.toml as it stands."""

    models_config: pathlib.Path | None = None  # path of models.toml, relative to this file
    gateway: GatewayConfig = GatewayConfig()
    eviction: EvictionConfig = EvictionConfig()
    auth: Auth = Auth()
    answers: AnswersConfig = AnswersConfig()
    neurons: tuple[Neuron, ...] = ()
    discovery: tuple[Discovery, ...] = ()


@frozen(kw_only=True)
class ModelsToml:
    """models.toml as it stands."""

    models: tuple[ModelConfig, ...] = ()
    aliases: Mapping[str, str] = field(factory=dict)  # name -> id, one step only


@frozen(kw_only=True)
class Config:
    """Everything the gateway was told, checked and merged. `state` is where its database is; None = it has none."""

    gateway: GatewayConfig = GatewayConfig()
    eviction: EvictionConfig = EvictionConfig()
    auth: Auth = Auth()
    answers: AnswersConfig = AnswersConfig()
    state: pathlib.Path | None = None
    neurons: tuple[Neuron, ...] = (Neuron(name="local", endpoint="http://127.0.0.1:13131"),)
    discovery: tuple[Discovery, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    aliases: Mapping[str, str] = field(factory=dict)

    @property
    def answers_path(self) -> pathlib.Path | None:
        """Where answers are kept, in a database of their own; None = in memory."""
        return None if self.state is None else self.state.with_name(ANSWERS_FILE)


def find_config(path: pathlib.Path | None, places: tuple[pathlib.Path, ...] = DEFAULT_PLACES) -> pathlib.Path | None:
    """The file to read: the one named, else the first default place that exists, else None (defaults only)."""
    if path is not None:
        return path
    return next((place for place in places if place.is_file()), None)


def load_config(path: pathlib.Path | None, environ: Mapping[str, str]) -> Config:
    """Read and check everything. Raises ConfigError that lists every problem with file, key, found and allowed."""
    reader = Reader.of(path, removed=REMOVED)
    top = reader.read(CortexToml, read_toml(path), ENV_PREFIX, environ)
    if path and not (top.neurons or top.discovery):
        reader.complain("neurons", 'needs at least one [[neurons]] with name and endpoint = "http://host:13131"')
    told = top.neurons if top.discovery else top.neurons or Config().neurons
    reader.unique("neurons.name", [neuron.name for neuron in told])
    reader.unique("neurons.endpoint", [neuron.endpoint.rstrip("/") for neuron in told])
    reader.unique("discovery.srv", [one.srv for one in top.discovery])
    models = _read_models(top, [neuron.name for neuron in told], reader)
    gateway = with_tls_files(reader, "gateway", top.gateway)
    if gateway.metrics_listen == gateway.listen and not gateway.listen.endswith(":0"):
        reader.complain("gateway.metrics_listen", f'found "{gateway.listen}"; must be another than listen')
    if gateway.metrics_tls and not gateway.tls_cert:
        reader.complain("gateway.metrics_tls", "needs tls_cert beside it")
    common = secret_of(reader, "gateway.neuron_secret", gateway.neuron_secret, gateway.neuron_secret_file)
    secrets = _secrets(common, told, reader)
    neurons = tuple(
        evolve(with_tls_files(reader, f"neurons[{index}]", one), secret=secrets[index])
        for index, one in enumerate(told)
    )
    discovery = tuple(
        evolve(one, secret=secret_of(reader, f"discovery[{index}].secret", one.secret, one.secret_file) or common)
        for index, one in enumerate(top.discovery)
    )
    reader.finish()
    return Config(
        gateway=gateway,
        eviction=top.eviction,
        auth=top.auth,
        answers=top.answers,
        state=state_path(top.auth.state, path, environ),
        neurons=neurons,
        discovery=discovery,
        models=models.models,
        aliases=models.aliases,
    )


def _secrets(common: str | None, neurons: tuple[Neuron, ...], reader: Reader) -> list[str | None]:
    """What each neuron is shown: its own secret, else that of [gateway]."""
    found: list[str | None] = []
    shown: dict[str, str | None] = {}
    for index, one in enumerate(neurons):
        path = f"neurons[{index}].secret"
        found.append(secret_of(reader, path, one.secret, one.secret_file) or common)
        if shown.setdefault("/".join(one.endpoint.split("/")[:3]), found[-1]) != found[-1]:
            reader.complain(path, f"is not that of another neuron at the same address, {one.endpoint}")
    return found


def state_path(told: pathlib.Path | None, config: pathlib.Path | None, environ: Mapping[str, str]) -> pathlib.Path:
    """Where the database is: as told, else beside the config file, else in the user's folder for state.

    Source: XDG Base Directory Specification, XDG_STATE_HOME, which counts only when it is absolute.
    """
    if told is not None or config is not None:
        folder = config.parent if config else pathlib.Path(os.curdir)
        return (folder / (told or STATE_FILE)).absolute()
    home = pathlib.Path(environ.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else pathlib.Path.home() / ".local" / "state") / "cortex" / STATE_FILE


def unused_variables(environ: Mapping[str, str], *, serving: bool = True) -> list[str]:
    """A line for each CORTEX_ variable that sets nothing; with `serving` off (`cortex up`) settings set nothing, too."""
    if serving:
        return unused(environ, ENV_PREFIX, names(CortexToml, ENV_PREFIX), OTHER_VARIABLES)
    ignored = [name for name in sorted(environ) if name.startswith(ENV_PREFIX) and NESTED in name]
    return [
        *unused(environ, ENV_PREFIX, (), OTHER_VARIABLES),
        *(f"environment: {name} is not used: only `cortex serve` is configured" for name in ignored),
    ]


def _read_models(top: CortexToml, nodes: list[str], cortex: Reader) -> ModelsToml:
    """models.toml, its names checked against each other and its pins against the nodes."""
    if top.models_config is None:
        return ModelsToml()
    file = cortex.folder / top.models_config
    reader = Reader.of(file, problems=cortex.problems)
    read = reader.read(ModelsToml, read_toml(file))
    ids = [model.id for model in read.models]
    reader.unique("models.id", ids)
    for alias, target in read.aliases.items():
        if alias in ids:
            reader.complain(f"aliases.{alias}", "is the id of a model as well; an alias needs a name of its own")
        if target in read.aliases:
            reader.complain(f"aliases.{alias}", f'found "{target}", which is an alias; name the model id itself')
    for index, model in enumerate(() if top.discovery else read.models):  # else nobody knows all their names
        _check_nodes(reader, f"models[{index}]", model, nodes)
    return read


def _check_nodes(reader: Reader, path: str, model: ModelConfig, nodes: list[str]) -> None:
    reader.unique(f"{path}.hosts", model.hosts)
    for host in sorted(set(model.hosts) - set(nodes)):
        reader.unknown(f"{path}.hosts", host, nodes)
    for pin in sorted(set(model.pinned_on) - set(nodes)):
        reader.unknown(f"{path}.pinned_on", pin, nodes)
    for pin in sorted(set(model.pinned_on) & set(nodes) - set(model.hosts)) if model.hosts else ():
        reader.unknown(f"{path}.pinned_on", pin, model.hosts)
